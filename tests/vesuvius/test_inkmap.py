"""What a trained model sees in prediction is what it saw in training."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from core.config import from_dict, to_dict
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.inkmap import InkProbability, Window, window_reader
from vesuvius.prepared import LayersInnermost, open_prepared
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


def test_normalisations_differ(prepared):
    statistics = open_prepared(prepared / "1.vol").statistics
    assert len({Window.of(statistics, config) for config in CONFIGS}) == len(CONFIGS)
