from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.test_utils.testing import AccelerateTestCase
from torch import Tensor, nn

from core.training import TrainingConfig, Validate, Validation, fit
from core.training_run import start_accelerator


@pytest.fixture(autouse=True)
def fresh_precision() -> Iterator[None]:
    """Let each test choose device and precision, of which a process keeps the first."""
    forget = AccelerateTestCase().tearDown
    forget()
    yield
    forget()


class Ones:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.ones(6)


def train(
    model: nn.Module,
    run_path: Path,
    precision: str,
    validate: Validate = lambda model: Validation(0.0),
    resume: bool = False,
) -> list[torch.dtype]:
    """Return the dtype of a layer inside the network and of its output, in turns."""
    seen: list[torch.dtype] = []

    def loss_fn(model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        y = model(batch)
        seen.append(y.dtype)
        return (y**2).mean(), {}

    hook = model[0].register_forward_hook(lambda layer, x, y: seen.append(y.dtype))
    config = TrainingConfig(epochs=1, batch_size=2, learning_rate=0.1, precision=precision)
    fit(model, Ones(), loss_fn, validate, config, run_path, {}, resume)
    hook.remove()
    return seen


def test_mixed_precision_is_inside_the_network_and_taken_off_at_the_end(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    for name in ("first", "the same network once more"):
        assert train(model, tmp_path / name, "bf16") == [torch.bfloat16, torch.float32] * 2
        assert torch.equal(model(torch.ones(6)), model[0](torch.ones(6)))
        stored = json.loads((tmp_path / name / "config.json").read_text())
        assert stored["training"]["precision"] == "bf16"


def test_a_run_that_fails_leaves_no_precision_on_the_network(tmp_path: Path) -> None:
    def fail(model: nn.Module) -> Validation:
        raise KeyError

    x, model, other = torch.ones(6), nn.Sequential(nn.Linear(6, 1)), nn.Sequential(nn.Linear(6, 2))
    with pytest.raises(KeyError):
        train(model, tmp_path / "failed", "bf16", fail)
    assert torch.equal(model(x), model[0](x))
    assert train(model, tmp_path / "next", "bf16") == [torch.bfloat16, torch.float32] * 2
    with pytest.raises(ValueError, match="does not fit the model"):
        train(other, tmp_path / "next", "bf16", resume=True)
    assert torch.equal(other(x), other[0](x))


def test_a_second_precision_in_one_process_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    train(model, tmp_path / "first", "auto")
    message = "precision is 'bf16', but this process trained with 'no' before and keeps to it"
    with pytest.raises(RuntimeError, match=message):
        train(model, tmp_path / "second", "bf16")
    assert not (tmp_path / "second").exists()


def test_the_cpu_is_used_on_a_machine_with_a_gpu_if_accelerate_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    accelerator = start_accelerator("auto")
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")


def test_auto_is_full_precision_on_a_cpu(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    assert train(model, tmp_path, "auto") == [torch.float32] * 4
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["training"]["precision"] == "no"


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 'fp16' needs a CUDA GPU, found cpu"):
        train(nn.Sequential(nn.Linear(6, 1)), tmp_path, "fp16")


@pytest.mark.gpu
def test_auto_is_half_precision_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    model = nn.Sequential(nn.Linear(6, 1))
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    assert train(model, tmp_path, "auto") == [half, torch.float32] * 2
