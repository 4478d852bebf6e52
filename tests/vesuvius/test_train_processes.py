"""The command that trains on several GPUs, on two processes of the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from core.checkpoint import TRAINING_STATE, load
from tests.processes import ACCELERATE, kill_two_processes, run_in_two_processes

OPTIONS = [
    *("--network.base-channels", "2", "--network.num-stages", "2", "--window.num-layers", "8"),
    *("--sampling.patch-size", "32", "--sampling.num-buckets", "4", "--sampling.bucket-cap", "6"),
    *("--sampling.num-void", "4", "--sampling.translation", "-8", "8", "--validation.gap", "16"),
    *("--validation.tile-size", "48", "--validation.stride", "32", "--training.epochs", "2"),
    *("--training.batch-size", "4", "--training.checkpoint-every-steps", "1"),
]


@pytest.mark.slow
def test_two_processes_train_validate_once_and_resume_after_a_kill(prepared, tmp_path):
    def command(out: str) -> tuple[str, ...]:
        where = ("--data", str(prepared), "--out", str(tmp_path / out))
        return ("-m", "vesuvius", "train", "small", *where, *OPTIONS)

    said = run_in_two_processes(*command("whole"), launcher=ACCELERATE)
    assert len(re.findall(r"^\d+ patches from 2 fragments", said, re.M)) == 1
    assert len(re.findall(r"^epoch \d: loss", said, re.M)) == 2
    last = Path("checkpoints", "last.safetensors")
    kill_two_processes(
        *command("killed"), launcher=ACCELERATE, when_exists=tmp_path / "killed" / last
    )
    run_in_two_processes(*command("killed"), "--resume", launcher=ACCELERATE)
    names = [{path.name for path in (tmp_path / out).rglob("*.*")} for out in ("whole", "killed")]
    assert {"config.json", "metrics.jsonl", "best.safetensors", "epoch_002_2.png"} <= names[0]
    assert {n for n in names[0] if "tfevents" not in n} == {
        n for n in names[1] if "tfevents" not in n
    }
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    (expected, meta), (found, _) = (
        load(tmp_path / out / last, TRAINING_STATE) for out in ("whole", "killed")
    )
    assert meta["num_processes"] == 2
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
