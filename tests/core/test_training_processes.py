"""Two processes that share every batch train as one that accumulates their shares.

This file is also the script that each of the two processes runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core import checkpoint
from core.schedule import EpochPlan
from core.training import TrainingConfig, Validation, fit
from core.unet3d import RepModeUNet
from tests.processes import run_in_two_processes

CONFIG = TrainingConfig(
    epochs=2,
    batch_size=4,
    learning_rate=0.01,
    clip_norm=0.5,
    ema_decay=0.9,
    seed=4,
    checkpoint_every_steps=1,
)
NUM_SAMPLES = 12  # 3 steps an epoch


class Volumes:
    """Noise of two tasks; a pure function of epoch and index."""

    def __init__(self, num_samples: int = NUM_SAMPLES) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        x = torch.randn(1, 4, 8, 8, generator=generator) + key[1]
        return {"x": x, "y": x.roll(1, 3), "task": torch.tensor(key[1] % 2)}


def make_model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return RepModeUNet(num_tasks=2, base_channels=2, num_stages=1, dropout=dropout)


def squared_error(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    error = (model(batch["x"], batch["task"]) - batch["y"]) ** 2
    return error.mean(), {"largest": error.amax((1, 2, 3, 4)).mean()}


def validate(model: nn.Module) -> Validation:
    return Validation(score=-float(torch.randn(3).square().mean()), metrics={"threshold": 0.5})


def train(out: Path, config: TrainingConfig = CONFIG, **changes: Any) -> nn.Module:
    arguments = {"model": make_model(), "dataset": Volumes(), "loss_fn": squared_error}
    arguments |= {"validate": validate, "config": config, "run_path": out, "description": {}}
    arguments |= changes
    fit(**arguments)
    return arguments["model"]


def one_step(config: TrainingConfig) -> TrainingConfig:
    return replace(config, epochs=1, ema_decay=0.0, checkpoint_every_steps=0)


# --- what each of the two processes does


def work(out: Path, rank: int) -> None:
    def once(model: nn.Module) -> Validation:
        with open(out / f"validated_{rank}", "a") as file:
            file.write("x")
        return validate(model)

    trained = train(out / "shared", validate=once)
    save_file(trained.state_dict(), out / f"model_{rank}.safetensors")
    torch.save(torch.initial_seed(), out / f"seed_{rank}")
    train(out / "one step", one_step(CONFIG), dataset=Volumes(4))
    train(out / "whole", model=make_model(0.3))
    with pytest.raises(KeyboardInterrupt):
        train(out / "stopped", model=make_model(0.3), loss_fn=stopping_at(4))
    train(out / "stopped", model=make_model(0.3), resume=True)


def stopping_at(call: int) -> Callable[..., Any]:
    calls = iter(range(1000))

    def stopped(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return squared_error(*arguments)

    return stopped


# --- what must hold of it


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    run_in_two_processes(__file__, str(path))
    return path


def last_state(run_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = run_path / "checkpoints" / "last.safetensors"
    return checkpoint.load(path, checkpoint.TRAINING_STATE)


def trace(run_path: Path) -> dict[str, list[float]]:
    """Return the loss, its part and the learning rate of every step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_path / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("step/")]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


def test_the_loss_trace_is_that_of_one_process_that_accumulates_the_half_batches(
    out: Path, tmp_path: Path
) -> None:
    train(tmp_path, replace(CONFIG, batch_size=2, accumulate=2))
    found, expected = trace(out / "shared"), trace(tmp_path)
    assert found.keys() == {"step/loss", "step/largest", "step/learning_rate"}
    assert len(found["step/loss"]) == 6
    assert len(set(found["step/loss"])) == 6
    # Both halve and add the same two gradients. Only how the sums over voxels are split could
    # differ, and six steps carry a rounding of 6e-8 on.
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-5), tag
    tensors, twins = last_state(out / "shared")[0], last_state(tmp_path)[0]
    trained = [f"model.{name}" for name, _ in make_model().named_parameters()]
    for name in trained:
        torch.testing.assert_close(tensors[name], twins[name], rtol=1e-4, atol=1e-6)


def test_other_shares_would_give_another_trace(out: Path, tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, batch_size=4))  # statistics over the whole batch
    assert trace(out / "shared")["step/loss"] != pytest.approx(
        trace(tmp_path)["step/loss"], rel=1e-3
    )


def test_every_process_ends_with_the_saved_network(out: Path) -> None:
    models = [load_file(out / f"model_{rank}.safetensors") for rank in (0, 1)]
    saved = last_state(out / "shared")[0]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
        assert torch.equal(tensor, saved[f"model.{name}"]), name


def test_running_statistics_are_averages_over_the_processes(out: Path) -> None:
    order = EpochPlan(4, 4, 1, CONFIG.seed).batches(0)[0]
    halves = []
    for share in (order[:2], order[2:]):
        model, samples = make_model().train(), [Volumes(4)[0, index] for index in share]
        model(torch.stack([s["x"] for s in samples]), torch.stack([s["task"] for s in samples]))
        halves.append(dict(model.named_buffers()))
    saved = last_state(out / "one step")[0]
    running = [name for name, buffer in halves[0].items() if buffer.is_floating_point()]
    assert any("running_var" in name for name in running)
    for name in running:
        expected = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(saved[f"model.{name}"], expected)
        assert not torch.allclose(saved[f"model.{name}"], halves[0][name], rtol=1e-5)


def test_the_main_process_alone_validates(out: Path) -> None:
    assert (out / "validated_0").read_text() == "xx"
    assert not (out / "validated_1").exists()


def test_each_process_draws_other_random_numbers(out: Path) -> None:
    assert [torch.load(out / f"seed_{rank}") for rank in (0, 1)] == [4, 5]
    assert len(last_state(out / "shared")[1]["random_states"]) == 2


def test_a_stopped_run_resumes_with_the_same_bits(out: Path) -> None:
    (found, meta), (expected, twin) = last_state(out / "stopped"), last_state(out / "whole")
    assert meta["random_states"] == twin["random_states"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_process_cannot_resume_what_two_began(out: Path) -> None:
    with pytest.raises(ValueError, match="num_processes was 2, now 1"):
        train(out / "shared", resume=True)


if __name__ == "__main__":
    from accelerate import PartialState

    work(Path(sys.argv[1]), PartialState(cpu=True).process_index)
