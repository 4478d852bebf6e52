from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from core import checkpoint, training_run
from core.training import TrainingConfig, Validation, fit
from core.training_run import start_accelerator

Loss = tuple[Tensor, Mapping[str, Any]]


class Noise:
    """5 samples, so 3 optimiser steps an epoch."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.randn(6, generator=torch.Generator().manual_seed(1000 * key[0] + key[1]))


def make_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def mean_square(model: nn.Module, batch: Tensor) -> Loss:
    y = model(batch)
    return (y**2).mean(), {"largest": y.abs().max()}


def without_finite_gradient(model: nn.Module, batch: Tensor) -> Loss:
    """Return a loss of 0 whose gradient is NaN."""
    return (model(batch) * 0).sqrt().sum(), {}


def train(
    run_path: Path,
    loss_fn: Callable[[nn.Module, Tensor], Loss],
    epochs: int = 2,
    score: float = 0.0,
) -> None:
    config = TrainingConfig(
        epochs, batch_size=2, learning_rate=0.05, ema_decay=0.9, checkpoint_every_steps=1
    )
    fit(make_model(), Noise(), loss_fn, lambda model: Validation(score), config, run_path, {})


def last_state(run_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = run_path / "checkpoints" / "last.safetensors"
    return checkpoint.load(path, checkpoint.TRAINING_STATE)


def scale_gradients(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Give training on a CPU the gradient scaler of fp16."""

    def start(precision: str) -> Accelerator:
        accelerator = start_accelerator(precision)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    monkeypatch.setattr(training_run, "start_accelerator", start)


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    def loss_fn(model: nn.Module, batch: Tensor) -> Loss:
        weights.append(model[0].weight.detach().clone())
        loss, parts = mean_square(model, batch)
        return loss * (math.nan if len(weights) == 5 else 1), parts

    message = (
        r"the loss is not finite at epoch 2 step 2 of 3, learning rate 0\.\d+: loss nan, "
        r"largest \d.*last good checkpoint: .*last\.safetensors"
    )
    with pytest.raises(RuntimeError, match=message) as error:
        train(tmp_path, loss_fn)
    assert "\n" not in str(error.value)
    tensors, meta = last_state(tmp_path)
    assert torch.equal(tensors["model.0.weight"], weights[-1])
    assert (meta["position"]["epoch"], meta["position"]["step"]) == (1, 1)


def test_a_part_of_the_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def loss_fn(model: nn.Module, batch: Tensor) -> Loss:
        return mean_square(model, batch)[0], {"x": math.nan}

    message = r"the loss part 'x' is not finite at epoch 1 step 1 of 3.*: loss \d.*, x nan; "
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path, loss_fn)


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    def loss_fn(model: nn.Module, batch: Tensor) -> Loss:
        weights.append(model[0].weight)
        return without_finite_gradient(model, batch)

    with pytest.raises(RuntimeError, match=r"the gradient is not finite .*: loss 0; .*none yet"):
        train(tmp_path, loss_fn)
    assert torch.equal(weights[0], make_model()[0].weight)


def test_gradients_that_no_scale_makes_finite_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_gradients(monkeypatch, 8.0)
    message = (
        r"the gradient \(its scale fell to 0\.5, every overflow halves it\) is not finite "
        r"at epoch 2 step 1 of 3.*: loss 0; last good checkpoint: .*last\.safetensors"
    )
    with pytest.raises(RuntimeError, match=message) as error:
        train(tmp_path, without_finite_gradient)
    assert "\n" not in str(error.value)
    assert torch.equal(last_state(tmp_path)[0]["model.0.weight"], make_model()[0].weight)


def test_a_skipped_step_leaves_the_average_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_gradients(monkeypatch, 2.0**16)
    train(tmp_path, without_finite_gradient, epochs=1)
    tensors, _ = last_state(tmp_path)
    assert tensors["model.1.running_mean"].any()
    assert not tensors["average.1.running_mean"].any()


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the validation score of epoch 1 is nan"):
        train(tmp_path, mean_square, score=math.nan)
