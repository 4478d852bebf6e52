from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import checkpoint
from core.schedule import EpochPlan, learning_rate_factor
from core.training import TrainingConfig, Validation, fit
from core.training_state import TrainingState

CONFIG = TrainingConfig(
    epochs=3,
    batch_size=2,
    learning_rate=0.05,
    warmup_epochs=0.5,
    accumulate=2,
    ema_decay=0.9,
    seed=4,
    checkpoint_every_steps=1,
)
NUM_SAMPLES = 11  # 6 batches, 3 optimiser steps an epoch
DESCRIPTION = {"recipe": "tiny", "tasks": ("ink",)}


class Lines:
    """Noisy points of a line; a pure function of epoch and index."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        x = torch.randn(6, generator=generator)
        return {"x": x, "y": x.sum(), "key": torch.tensor(key)}


def make_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def squared_error(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Draw from every generator, so that a resumed run shows whether all were restored."""
    noise = random.random() + np.random.rand() + random.gauss(0, 1) + np.random.randn()  # noqa: NPY002
    error = (model(batch["x"])[:, 0] - batch["y"]) ** 2
    loss = error.mean() * (1 + 0.01 * noise)
    return loss, {"largest": error.max(), "noise": noise}


def validate(model: nn.Module) -> Validation:
    x = torch.randn(16, 6)  # draws from the global generator on purpose
    error = float(((model(x)[:, 0] - x.sum(1)) ** 2).mean())
    grey = np.full((4, 5), 100, dtype=np.uint8)
    return Validation(
        score=-error,
        metrics={"mse": error, "undefined": math.nan},
        previews={"grey": grey, "colour": np.stack([grey] * 3, axis=2)},
        meta={"threshold": 0.5},
    )


class Stop(Exception):
    pass


def stopping_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` made to raise at its `call`-th call, counted from 0."""
    calls = iter(range(1000))

    def stopped(*args: Any) -> Any:
        if next(calls) == call:
            raise Stop
        return function(*args)

    return stopped


def train(run_path: Path, config: TrainingConfig = CONFIG, **changes: Any) -> nn.Module:
    arguments = {"dataset": Lines(), "loss_fn": squared_error, "validate": validate}
    arguments |= {"model": make_model(), "config": config, "run_path": run_path}
    arguments |= {"description": DESCRIPTION} | changes
    fit(**arguments)
    return arguments["model"]


def rows(run_path: Path) -> list[dict[str, Any]]:
    text = (run_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in lines
    ]


def last_state(run_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = run_path / "checkpoints" / "last.safetensors"
    tensors, meta = checkpoint.load(path, checkpoint.TRAINING_STATE)
    meta["position"].pop("seconds")
    return tensors, meta


def assert_same_run(found: Path, expected: Path) -> None:
    best = Path("checkpoints", "best.safetensors")
    assert rows(found) == rows(expected)
    assert (found / best).read_bytes() == (expected / best).read_bytes()
    (tensors, meta), (expected_tensors, expected_meta) = last_state(found), last_state(expected)
    assert meta == expected_meta
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected_tensors[name]), name


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way on networks this small."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(run_path)
    return run_path


# --- exact resume


@pytest.mark.parametrize("call", range(2, 18))
def test_a_run_stopped_in_any_batch_resumes_bit_identically(
    uninterrupted: Path, tmp_path: Path, call: int
) -> None:
    with pytest.raises(Stop):
        train(tmp_path, loss_fn=stopping_at(call, squared_error))
    random.seed(99)
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_stopped_in_validation_resumes_bit_identically(
    uninterrupted: Path, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(Stop):
        train(tmp_path, validate=stopping_at(epoch, validate))
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("save", range(1, 12))
def test_a_run_stopped_before_any_checkpoint_is_written_logs_nothing_twice(
    uninterrupted: Path, tmp_path: Path, save: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", stopping_at(save, TrainingState.save))
        with pytest.raises(Stop):
            train(tmp_path)
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_stopped_twice_resumes_bit_identically(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tmp_path, loss_fn=stopping_at(5, squared_error))
    with pytest.raises(Stop):
        train(tmp_path, loss_fn=stopping_at(6, squared_error), resume=True)
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_without_step_checkpoints_the_epoch_is_repeated(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every_steps=0)
    train(tmp_path / "whole", config)
    with pytest.raises(Stop):
        train(tmp_path / "stopped", config, loss_fn=stopping_at(10, squared_error))
    assert last_state(tmp_path / "stopped")[1]["position"]["epoch"] == 1
    train(tmp_path / "stopped", config, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path) -> None:
    last = uninterrupted / "checkpoints" / "last.safetensors"
    before = last.read_bytes(), rows(uninterrupted)
    model = make_model()
    result = fit(
        model, Lines(), squared_error, validate, CONFIG, uninterrupted, DESCRIPTION, resume=True
    )
    assert (last.read_bytes(), rows(uninterrupted)) == before
    assert (result.epochs, result.steps) == (3, 9)
    assert result.best_score == max(row["score"] for row in rows(uninterrupted))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_number_of_workers_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_workers=2)
    with pytest.raises(Stop):
        train(tmp_path, config, loss_fn=stopping_at(9, squared_error))
    train(tmp_path, config, resume=True)
    assert rows(tmp_path) == rows(uninterrupted)
    tensors, expected = last_state(tmp_path)[0], last_state(uninterrupted)[0]
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


# --- what is refused


def test_resuming_another_network_dataset_or_configuration_is_refused(uninterrupted: Path) -> None:
    with pytest.raises(ValueError, match=r"last.safetensors does not fit the model: 0.weight is"):
        train(uninterrupted, model=nn.Sequential(nn.Linear(5, 1)), resume=True)
    with pytest.raises(ValueError, match="samples_per_epoch was 11, now 3"):
        train(uninterrupted, dataset=[0, 1, 2], resume=True)
    with pytest.raises(ValueError, match=r"training\.epochs was 3, now 4; .* rate follows it"):
        train(uninterrupted, replace(CONFIG, epochs=4), resume=True)
    with pytest.raises(ValueError, match=r"description\.recipe was 'tiny', now 'big'"):
        train(uninterrupted, description={**DESCRIPTION, "recipe": "big"}, resume=True)


def test_resuming_with_other_parameters_frozen_is_refused(uninterrupted: Path) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"frozen_parameters was \[\], now \['0\.weight', '0\.bias'\]; use"
    ):
        train(uninterrupted, model=model, resume=True)


def test_resuming_on_another_kind_of_device_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "last.safetensors"
    tensors, meta = checkpoint.load(path, checkpoint.TRAINING_STATE)
    checkpoint.save(path, checkpoint.TRAINING_STATE, tensors, {**meta, "device": "cuda"})
    with pytest.raises(ValueError, match="device was 'cuda', now 'cpu'; use"):
        train(tmp_path, resume=True)


def test_a_folder_with_a_run_and_a_folder_without_one_are_refused(
    uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"already holds a run .* --resume or choose another --out"
    ):
        train(uninterrupted)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "checkpoints" / "last.safetensors")):
        train(tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the dataset has 0 samples"):
        train(tmp_path, dataset=[])


# --- the steps themselves


@pytest.mark.parametrize(("clip_norm", "ema_decay"), [(0.05, 0.9), (0.0, 0.0)])
def test_the_loop_equals_a_plain_torch_loop(
    tmp_path: Path, clip_norm: float, ema_decay: float
) -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        return ((model(batch["x"])[:, 0] - batch["y"]) ** 2).mean(), {}

    config = replace(CONFIG, clip_norm=clip_norm, ema_decay=ema_decay)
    trained = train(tmp_path, config, loss_fn=loss_fn)

    model, data = make_model().train(), Lines()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = EpochPlan(NUM_SAMPLES, batch_size=2, accumulate=2, seed=4)
    torch.manual_seed(4)
    step = 0
    for epoch in range(3):
        batches = plan.batches(epoch)
        losses = []
        for chosen in (batches[:2], batches[2:4], batches[4:]):
            optimizer.zero_grad()
            for batch in chosen:
                samples = [data[epoch, index] for index in batch]
                x, y = (torch.stack([sample[key] for sample in samples]) for key in "xy")
                loss = ((model(x)[:, 0] - y) ** 2).mean()
                (loss / len(chosen)).backward()
                losses.append(loss.item())
            if clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.param_groups[0]["lr"] = 0.05 * learning_rate_factor(step, 9, 2, 1e-4, 0.01)
            optimizer.step()
            step += 1
            decay = min(0.9, (1 + step) / (10 + step))
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    average[name].lerp_(tensor, 1 - decay)
                else:
                    average[name].copy_(tensor)
        assert rows(tmp_path)[epoch]["train"]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        torch.randn(16, 6)  # what validate draws
    for name, tensor in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    kept = {name: x for name, x in last_state(tmp_path)[0].items() if name.startswith("average.")}
    assert len(kept) == (len(average) if ema_decay else 0)
    for name, tensor in kept.items():
        assert torch.equal(tensor, average[name.removeprefix("average.")]), name


def test_a_warm_up_as_long_as_the_run_ends_at_the_peak(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, batch_size=NUM_SAMPLES, warmup_epochs=0.9)
    train(tmp_path, config)
    assert [row["lr"] for row in rows(tmp_path)] == [0.05]


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(tmp_path, model=model)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[3].weight, make_model()[3].weight)


def test_scaling_the_rate_by_hand_or_by_the_rule_is_the_same_run(
    uninterrupted: Path, tmp_path: Path
) -> None:
    # 2 samples in 2 batches make 4 of a step, twice the 2 that the rate is given for
    train(tmp_path, replace(CONFIG, learning_rate=0.025, reference_samples=2))
    assert rows(tmp_path) == rows(uninterrupted)


# --- what is left behind


def test_the_run_folder_holds_what_it_should(uninterrupted: Path) -> None:
    written = {
        path.relative_to(uninterrupted).as_posix()
        for path in uninterrupted.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard"
    }
    previews = {
        f"previews/epoch_00{n}_{name}.png" for n in (1, 2, 3) for name in ("grey", "colour")
    }
    checkpoints = {"checkpoints/last.safetensors", "checkpoints/best.safetensors"}
    assert written == {"provenance.json", "config.json", "metrics.jsonl"} | previews | checkpoints
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["description"] == {"recipe": "tiny", "tasks": ["ink"]}
    assert config["training"]["learning_rate"] == 0.05


def test_further_files_are_written_for_a_new_run(tmp_path: Path) -> None:
    train(tmp_path / "run", files={"points.csv": "y,x\n"})
    assert (tmp_path / "run" / "points.csv").read_text() == "y,x\n"


def test_metrics_have_one_line_per_epoch(uninterrupted: Path) -> None:
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert [(row["epoch"], row["step"]) for row in rows(uninterrupted)] == [(1, 3), (2, 6), (3, 9)]
    assert first["train"].keys() == {"loss", "largest", "noise"}
    assert first["validation"] == {"mse": -first["score"], "undefined": None}
    assert first["samples_per_s"] == pytest.approx(12 / first["seconds"])
    assert rows(uninterrupted)[-1]["lr"] == pytest.approx(0.05 * 0.01)


def test_the_best_checkpoint_has_the_weights_that_were_validated(uninterrupted: Path) -> None:
    scores = [row["score"] for row in rows(uninterrupted)]
    path = uninterrupted / "checkpoints" / "best.safetensors"
    weights, meta = checkpoint.load(path, checkpoint.WEIGHTS)
    assert meta["validation"]["score"] == max(scores)
    assert meta["validation"]["epoch"] == scores.index(max(scores)) + 1
    assert meta["validation"]["meta"] == {"threshold": 0.5}
    assert meta["description"] == {"recipe": "tiny", "tasks": ["ink"]}
    checkpoint.load_weights(make_model(), weights, path)


def test_validation_sees_the_average_in_evaluation_mode_without_gradients(tmp_path: Path) -> None:
    seen = []

    def look(model: nn.Module) -> Validation:
        seen.append((model.training, torch.is_grad_enabled(), model[0].weight.clone()))
        return Validation(score=0.0)

    trained = train(tmp_path, replace(CONFIG, epochs=1), validate=look)
    assert seen[0][:2] == (False, False)
    assert torch.equal(seen[0][2], last_state(tmp_path)[0]["average.0.weight"])
    assert not torch.equal(seen[0][2], trained[0].weight)
