"""Views of a fragment: as if it had really been flipped, turned, reversed or moved along z."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from core.checkpoint import WEIGHTS, load, save
from core.uncertainty import ProbabilityMoments, predictor
from vesuvius.ensemble import EnsembleConfig, load_ensemble
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import load_model, window_reader
from vesuvius.predict import choose_window, predict

# tiles that neither overlap nor share a batch: then no sum depends on how a fragment is turned
OPTIONS = {"tile_size": 32, "stride": 32, "batch_size": 1, "device": "cpu"}
Z_START = 3  # of 8 layers in 14
PLANE = EnsembleConfig(tta=True)
LAYERS = EnsembleConfig(tta_reversed=True, tta_z_shift=1)
ALL = EnsembleConfig(tta=True, tta_reversed=True, tta_z_shift=1)


@pytest.fixture(scope="module")
def raw_run(run, tmp_path_factory):
    """A checkpoint whose normalisation does not depend on the layers of the window.

    Its kernels are random, for what was trained on other values says the same everywhere.
    """
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    meta["description"]["recipe"]["window"]["intensity"] = "raw"
    path = tmp_path_factory.mktemp("raw") / "raw.safetensors"
    torch.manual_seed(0)
    mixed = {name: torch.randn(tensor.shape) if tensor.ndim > 4 else tensor
             for name, tensor in tensors.items()}  # fmt: skip
    save(path, WEIGHTS, mixed, meta)
    return path


@pytest.fixture(scope="module")
def piece(fragments):
    """Voxels (Z, Y, X) of a piece of fragment "a", 64 x 32."""
    layers = sorted((fragments["a"] / "surface_volume").iterdir())
    return np.stack([tifffile.imread(layer)[20:84, 20:52] for layer in layers])


@pytest.fixture(scope="module")
def mask():
    mask = np.full((64, 32), 255, np.uint8)
    mask[:9, :20] = 0
    return mask


def write(path: Path, voxels: np.ndarray, mask: np.ndarray) -> Path:
    (path / "surface_volume").mkdir(parents=True)
    for z, layer in enumerate(voxels):
        tifffile.imwrite(path / "surface_volume" / f"{z:02}.tif", layer)
    cv2.imwrite(str(path / "mask.png"), mask)
    return path


def really(plane: np.ndarray, turns: int, is_mirrored: bool) -> np.ndarray:
    """Return an array (..., Y, X) mirrored and turned."""
    return np.rot90(plane[..., ::-1] if is_mirrored else plane, turns, (-2, -1))


def mapped_back(plane: np.ndarray, turns: int, is_mirrored: bool) -> np.ndarray:
    plane = np.rot90(plane, -turns, (-2, -1))
    return plane[..., ::-1] if is_mirrored else plane


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (PLANE, "8 views: flips and quarter turns of the plane"),
        (LAYERS, "6 views: layers as stored and reversed, window moved by up to 1 layer"),
        pytest.param(
            ALL,
            "48 views: flips and quarter turns of the plane, layers as stored and reversed, "
            "window moved by up to 1 layer",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plane", "layers", "all"],
)
def test_views_are_predictions_of_fragments_really_changed_mapped_back(
    raw_run, piece, mask, tmp_path, config, told
):
    fragment = write(tmp_path / "a", piece, mask)
    predict(raw_run, fragment, out=tmp_path / "out", z_start=Z_START, averaged=config, **OPTIONS)
    moments, maps = ProbabilityMoments.empty(mask.shape), set()
    for shift, is_reversed, is_mirrored, turns in itertools.product(
        (0, -1, 1)[: 1 + 2 * config.tta_z_shift],
        (False, True)[: 1 + config.tta_reversed],
        (False, True)[: 1 + config.tta],
        range(4 if config.tta else 1),
    ):
        folder = tmp_path / f"{shift} {is_reversed} {is_mirrored} {turns}"
        moved = np.roll(piece, -shift, 0)[:: -1 if is_reversed else 1]
        changed = write(
            folder / "a", really(moved, turns, is_mirrored), really(mask, turns, is_mirrored)
        )
        predict(raw_run, changed, out=folder / "out", z_start=14 - Z_START - 8, **OPTIONS)
        prob = tifffile.imread(folder / "out" / "prob.tif")
        prob = mapped_back(prob, turns, is_mirrored)
        maps.add(prob.tobytes())
        moments.add(prob)
    assert len(maps) == moments.moments.count == int(told.split()[0])
    expected = [
        moments.moments.std(), moments.predictive_entropy(), moments.mutual_information(),
    ]  # fmt: skip
    found = tifffile.imread(tmp_path / "out" / "prob.tif")
    np.testing.assert_array_equal(found, moments.moments.mean.astype(np.float32))
    found = tifffile.imread(tmp_path / "out" / "uncertainty.tif")
    np.testing.assert_array_equal(found, np.float32(expected))
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["tta"] == told
    assert record["settings"]["tta_views"] == len(maps)


def test_a_moved_window_is_that_of_another_z_start_also_in_reverse(raw_run, piece, mask, tmp_path):
    fragment = write(tmp_path / "a", piece, mask)
    options = OPTIONS | {"reverse_layers": True}
    moments = ProbabilityMoments.empty(mask.shape)
    for z_start in (3, 2, 4, 1, 5):  # counted from the last layer
        out = tmp_path / str(z_start)
        predict(raw_run, fragment, out=out, z_start=z_start, **options)
        moments.add(tifffile.imread(out / "prob.tif"))
    averaged = EnsembleConfig(tta_z_shift=2)
    predict(raw_run, fragment, out=tmp_path / "out", z_start=3, averaged=averaged, **options)
    found = tifffile.imread(tmp_path / "out" / "prob.tif")
    np.testing.assert_array_equal(found, moments.moments.mean.astype(np.float32))
    assert moments.moments.std().max() > 0.001


def test_a_moved_window_is_normalised_as_the_window_itself(run, fragments):
    """So was it in training, where windows move at random."""
    ensemble = load_ensemble(run, EnsembleConfig(tta_z_shift=2))
    fragment = open_fragment(fragments["a"])
    window = choose_window(fragment, ensemble.models[0], None)
    depth = fragment.volume.shape[0]
    wide = window_reader(fragment.volume, window.widened(2, depth))(0, 32)[None, ..., :32]
    members = ensemble.members(0, 5, "ink", window)
    found = predictor(members, "cpu")(wide, [(0, 0)])
    unmoved = replace(ensemble, config=EnsembleConfig())
    plain = predictor(unmoved.members(0, 1, "ink", window), "cpu")
    for number, shift in enumerate((0, -1, 1, -2, 2)):
        moved = replace(window, z_start=window.z_start + shift, z_stop=window.z_stop + shift)
        tile = window_reader(fragment.volume, moved)(0, 32)[None, ..., :32]
        np.testing.assert_array_equal(found[:, [number]], plain(tile, [(0, 0)]))


def test_a_window_that_would_leave_the_volume_is_refused(run, fragments, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"tta_z_shift 4 moves the window of layers 3\.\.10 out of the volume of 14; "
        "choose at most 3, or another --z-start",
    ):
        predict(run, fragments["a"], out=tmp_path / "out", averaged=EnsembleConfig(tta_z_shift=4))
    assert not (tmp_path / "out").exists()
    predict(
        run, fragments["a"], out=tmp_path / "out", device="cpu", tile_size=144, stride=144,
        averaged=EnsembleConfig(tta_z_shift=3),
    )  # fmt: skip


def test_views_and_checkpoints_are_one_pass_over_the_fragment(run, raw_run):
    many = EnsembleConfig(tta=True, tta_reversed=True)
    ensemble = load_ensemble(run, many)
    models = (ensemble.models[0], *(load_model(raw_run) for _ in range(3)))
    four = replace(ensemble, models=models)
    assert four.num_members == four.members_per_pass == 64
    samples = replace(ensemble, config=EnsembleConfig(mc_samples=100))
    assert samples.members_per_pass == 8  # networks in memory
