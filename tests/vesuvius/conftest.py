"""Small fragments and a small trained run that the vesuvius tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from tests.vesuvius.kaggle_program import Launcher, Program, launcher, write_build
from tests.vesuvius.kaggle_service import KEY, USER, Kaggle, serving
from vesuvius.prepare import prepare
from vesuvius.recipes import InkRecipe, small
from vesuvius.train import train

NUM_LAYERS = 14


def write_fragment(path: Path, seed: int, size: tuple[int, int] = (128, 144)) -> Path:
    """Write a fragment in Kaggle layout: a bright sheet at layers 5..9 with brighter ink on it."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(60, 8, (NUM_LAYERS, *size))
    voxels[5:10] += 60
    label = np.zeros(size, np.uint8)
    for x in range(16, size[1] - 8, 24):
        cv2.line(label, (x, 10), (x + int(rng.integers(-6, 7)), size[0] - 8), 255, 8)
    mask = np.full(size, 255, np.uint8)
    mask[:6] = mask[:, :5] = 0
    voxels[4:7][:, label > 0] += 30
    (path / "surface_volume").mkdir(parents=True)
    layers = (voxels.clip(0, 255) * 256).astype(np.uint16)
    for z, layer in enumerate(layers):
        tifffile.imwrite(path / "surface_volume" / f"{z:02}.tif", layer)
    cv2.imwrite(str(path / "mask.png"), mask)
    cv2.imwrite(str(path / "inklabels.png"), label & mask)
    return path


def tiny_recipe() -> InkRecipe:
    """Return the small recipe cut down to a few steps of a few seconds."""
    recipe = small()
    return replace(
        recipe,
        network=replace(recipe.network, base_channels=2, num_stages=2),
        window=replace(recipe.window, num_layers=8),
        sampling=replace(
            recipe.sampling, patch_size=32, num_buckets=4, bucket_cap=6, num_void=4,
            translation=(-8, 8),
        ),
        validation=replace(recipe.validation, gap=16, tile_size=48, stride=32),
        training=replace(recipe.training, epochs=2, batch_size=4),
    )  # fmt: skip


@pytest.fixture(scope="session")
def fragments(tmp_path_factory) -> dict[str, Path]:
    """Folders of two labelled fragments, "1" and "2", and of "a"."""
    root = tmp_path_factory.mktemp("fragments")
    return {name: write_fragment(root / name, seed) for seed, name in enumerate(("1", "2", "a"))}


@pytest.fixture(scope="session")
def prepared(fragments, tmp_path_factory) -> Path:
    """Folder of the prepared volumes of "1" and "2"."""
    out = tmp_path_factory.mktemp("prepared")
    prepare((fragments["1"], fragments["2"]), out=out)
    return out


@pytest.fixture(scope="session")
def run(prepared, tmp_path_factory) -> Path:
    """Run folder of the tiny recipe."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(prepared, out, tiny_recipe())
    return out


@pytest.fixture(scope="session")
def kaggle_launcher() -> Iterator[Launcher]:
    """The process that commands of `vesuvius kaggle` are forked from."""
    with launcher() as process:
        yield process


@pytest.fixture
def program(tmp_path, kaggle_launcher) -> Iterator[Program]:
    """The program beside a stand-in for Kaggle, with an account; its key must stay where it is."""
    credentials = tmp_path / ".kaggle" / "kaggle.json"
    credentials.parent.mkdir()
    credentials.write_text(json.dumps({"username": USER, "key": KEY}))
    credentials.chmod(0o600)
    kaggle = Kaggle()
    with serving(kaggle) as address:
        yield Program(kaggle, address, tmp_path, kaggle_launcher)
    assert "CONNECT" not in [method for method, _ in kaggle.calls]
    leaks = [
        path for path in tmp_path.rglob("*")
        if path.is_file() and path != credentials and KEY.encode() in path.read_bytes()
    ]  # fmt: skip
    assert leaks == []


@pytest.fixture
def kaggle_build(program) -> Path:
    """A folder as `vesuvius package` writes it, of the model that `test_ledger` keeps."""
    return write_build(program.home / "build", "ab" * 32)
