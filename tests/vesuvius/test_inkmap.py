"""What a trained model sees in prediction is what it saw in training."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from core.config import from_dict, to_dict
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.inkmap import (
    InkProbability,
    Window,
    load_model,
    note_other_window,
    window_reader,
)
from vesuvius.prepared import LayersInnermost, PreparedVolume, open_prepared
from vesuvius.recipes import WindowConfig
from vesuvius.statistics import Intensity

CONFIGS = [WindowConfig(8, intensity=intensity) for intensity in get_args(Intensity)]


class Spy(nn.Module):
    """Keeps what it is given."""

    def forward(self, x_NCZYX: torch.Tensor) -> torch.Tensor:
        self.seen = x_NCZYX
        return x_NCZYX[:, :, 0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.intensity)
def test_training_and_prediction_see_the_same(config, prepared):
    config = from_dict(WindowConfig, to_dict(config))  # as a checkpoint keeps it
    volume = open_prepared(prepared / "1.vol")
    window = Window.of(volume.statistics, config)
    points = np.array([[10, 20]], np.int32)
    patch = InkPatches([PatchSource(volume, points, **asdict(window))], 32, seed=0)[(0, 0)]
    tile = window_reader(LayersInnermost(volume.volume), window)(10, 42)[:, :, 20:52]
    spy = Spy()
    InkProbability(spy, window)(torch.from_numpy(tile.copy()).float()[None])
    torch.testing.assert_close(spy.seen, patch["x"][None], rtol=1e-5, atol=1e-6)
    assert patch["x"].std() > 0.1


@pytest.fixture(scope="module")
def flipped(prepared, tmp_path_factory) -> PreparedVolume:
    """Volume 1 with its layers stored the other way round."""
    path = tmp_path_factory.mktemp("flipped") / "1.vol"
    shutil.copytree(prepared / "1.vol", path)
    np.save(path / "volume.npy", np.load(path / "volume.npy")[..., ::-1].copy())
    np.save(path / "layer_histograms.npy", np.load(path / "layer_histograms.npy")[::-1].copy())
    return open_prepared(path)


@pytest.mark.parametrize("z_start", [None, 2])
@pytest.mark.parametrize("num_layers", [7, 8])
def test_reading_in_reverse_is_reading_what_was_stored_in_reverse(
    z_start, num_layers, prepared, flipped
):
    config = WindowConfig(num_layers, z_start)
    points, seen = np.array([[10, 20]], np.int32), []
    for volume, is_reversed in ((open_prepared(prepared / "1.vol"), False), (flipped, True)):
        window = Window.of(volume.statistics, config, is_reversed)
        patches = InkPatches([PatchSource(volume, points, **asdict(window))], 32, seed=0)
        rows = window_reader(LayersInnermost(volume.volume), window)(10, 42)
        place = window.place_of(volume.statistics.sheet_depth)
        seen.append((patches[(0, 0)]["x"].numpy(), rows, place))
    for stored, read in zip(*seen, strict=True):
        np.testing.assert_array_equal(stored, read)
    assert not np.array_equal(seen[0][0], seen[0][0][:, ::-1])


def test_a_window_unlike_those_of_training_is_pointed_out(prepared, run, flipped, capsys):
    model, volume = load_model(run), open_prepared(prepared / "1.vol")
    config = model.recipe.window
    own = Window.of(volume.statistics, config)
    note_other_window("1", own, volume.statistics, model)
    note_other_window("x", Window.of(flipped.statistics, config), flipped.statistics, model)
    assert not capsys.readouterr().err
    far = Window.of(volume.statistics, replace(config, z_start=6))
    note_other_window("x", far, volume.statistics, model)
    said = capsys.readouterr().err
    place = far.place_of(volume.statistics.sheet_depth)
    assert f"x: its sheet lies at layer {place} of the window, in training it lay at" in said
    note_other_window("1", replace(own, is_reversed=True), volume.statistics, model)
    said = capsys.readouterr().err
    assert "1: its layers are read from the last layer to the first, in training" in said
    assert "was read as stored; check --reverse-layers" in said


def test_normalisations_differ(prepared):
    statistics = open_prepared(prepared / "1.vol").statistics
    assert len({Window.of(statistics, config) for config in CONFIGS}) == len(CONFIGS)
