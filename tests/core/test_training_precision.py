from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from core.training import TrainingConfig, Validation, fit


@pytest.fixture(autouse=True)
def fresh_precision() -> Iterator[None]:
    """Let each test choose a precision; accelerate keeps one per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Ones:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.ones(6)


def train(model: nn.Module, run_path: Path, precision: str) -> list[torch.dtype]:
    """Return the dtype of a layer inside the network and of its output, in turns."""
    seen: list[torch.dtype] = []

    def loss_fn(model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        y = model(batch)
        seen.append(y.dtype)
        return (y**2).mean(), {}

    hook = model[0].register_forward_hook(lambda layer, x, y: seen.append(y.dtype))
    config = TrainingConfig(epochs=1, batch_size=2, learning_rate=0.1, precision=precision)
    fit(model, Ones(), loss_fn, lambda model: Validation(0.0), config, run_path, {})
    hook.remove()
    return seen


def test_mixed_precision_is_inside_the_network_and_taken_off_at_the_end(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    for name in ("first", "the same network once more"):
        assert train(model, tmp_path / name, "bf16") == [torch.bfloat16, torch.float32] * 2
        assert torch.equal(model(torch.ones(6)), model[0](torch.ones(6)))
        stored = json.loads((tmp_path / name / "config.json").read_text())
        assert stored["training"]["precision"] == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_auto_is_full_precision_without_a_gpu(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    assert train(model, tmp_path, "auto") == [torch.float32] * 4
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["training"]["precision"] == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 'fp16' needs a CUDA GPU, found cpu"):
        train(nn.Sequential(nn.Linear(6, 1)), tmp_path, "fp16")


@pytest.mark.gpu
def test_auto_is_half_precision_on_a_gpu(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    assert train(model, tmp_path, "auto") == [half, torch.float32] * 2
