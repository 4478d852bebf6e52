from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core import checkpoint
from core.checkpoint import TRAINING_STATE, WEIGHTS, load, load_weights, save

META = {"recipe": "small", "threshold": 0.1 + 0.2, "tasks": ["ink", "π"], "nested": {"none": None}}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "double": torch.randn(5, generator=generator, dtype=torch.float64),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "transposed": torch.arange(6).view(2, 3).T,
    }


def assert_saved(loaded: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    assert meta == META
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save(path, WEIGHTS, tensors(), META)
    return path


def test_what_is_loaded_is_what_was_saved(path: Path) -> None:
    assert_saved(*load(path, WEIGHTS))


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    save(path, WEIGHTS, tensors(), META)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_refused_in_one_line(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"best.safetensors is damaged or no checkpoint") as error:
        load(path, WEIGHTS)
    assert "\n" not in str(error.value)


def test_a_damaged_header_is_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] = 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load(path, WEIGHTS)


def test_a_flipped_bit_is_refused_or_changes_nothing(path: Path) -> None:
    content = path.read_bytes()
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            assert_saved(*load(path, WEIGHTS))


def test_a_flipped_bit_of_a_weight_is_named_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.safetensors is damaged .* copy it again"):
        load(path, WEIGHTS)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"repmode": "{"}, {"repmode": "[]"}])
def test_a_safetensors_file_of_others_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="no checkpoint of this project"):
        load(tmp_path / "other.safetensors", WEIGHTS)


def test_another_kind_version_or_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="holds 'weights', needed is 'training state'"):
        load(path, TRAINING_STATE)
    header = {"format_version": 99, "kind": WEIGHTS, "meta": {}}
    save_file({}, path, metadata={"repmode": json.dumps(header)})
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads 3"):
        load(path, WEIGHTS)
    with pytest.raises(FileNotFoundError, match=str(path.parent / "none")):
        load(path.parent / "none", WEIGHTS)


def test_a_failed_write_is_an_os_error_and_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"best.safetensors cannot be written"):
            save(path, WEIGHTS, {"x": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_meta_that_json_cannot_carry_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save(path, WEIGHTS, {}, {"score": float("nan")})


def test_weights_of_the_same_network_are_loaded(path: Path) -> None:
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    load_weights(target, source.state_dict(), path)
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (nn.Linear(4, 2), r"weight is \(2, 4\) in the file and \(3, 4\) in the model"),
        (nn.Linear(4, 3, bias=False), r"bias is missing in the file and \(3,\) in the model"),
        (nn.Bilinear(4, 4, 3), r"weight is \(3, 4, 4\) in the file"),
    ],
)
def test_weights_of_another_network_are_refused(path: Path, other: nn.Module, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_weights(nn.Linear(4, 3), other.state_dict(), path)


def test_an_unexpected_tensor_is_refused(path: Path) -> None:
    weights = {**nn.Linear(4, 3).state_dict(), "gate": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"gate is \(2,\) in the file and missing in the model"):
        load_weights(nn.Linear(4, 3), weights, path)


def test_the_format_version_is_part_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="has checkpoint format 3, this version reads 4"):
        load(path, WEIGHTS)
