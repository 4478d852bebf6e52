from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from core import checkpoint
from core.training_state import TrainingState, capture_random_state, restore_random_state

CPU = torch.device("cpu")


def make_state(scale: float = 2.0) -> TrainingState:
    state = TrainingState(Accelerator(mixed_precision="no"), nn.Linear(3, 1), 0.1, 0.0, 0.0)
    state.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


def test_the_gradient_scaler_is_part_of_the_state(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    make_state(scale=8.0).save(path, {})
    restored = make_state(scale=2.0)
    restored.restore(*checkpoint.load(path, checkpoint.TRAINING_STATE), path)
    assert restored.accelerator.scaler.get_scale() == 8.0


def test_the_checkpoint_names_every_tensor_by_its_parameter(tmp_path: Path) -> None:
    state = make_state()
    state.model(torch.ones(2, 3)).sum().backward()
    state.optimizer.step()
    state.save(tmp_path / "last.safetensors", {"recipe": "tiny"})
    tensors, meta = checkpoint.load(tmp_path / "last.safetensors", checkpoint.TRAINING_STATE)
    kinds = ("model", "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    assert tensors.keys() == {f"{kind}.{name}" for kind in kinds for name in ("weight", "bias")}
    assert meta["recipe"] == "tiny"


def test_every_generator_goes_on_where_it_was_captured() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),  # noqa: NPY002
            np.random.randn(),  # noqa: NPY002
            torch.rand(()).item(),
        ]

    draw()  # leaves half of a pair of normal numbers behind, which is part of the state
    state = capture_random_state(CPU)
    expected = draw()
    draw()
    restore_random_state(state, CPU)
    assert draw() == expected
