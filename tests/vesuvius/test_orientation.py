"""Which way the sheet lies is told where intensities show it, and left open where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vesuvius.fragment import open_fragment
from vesuvius.orientation import MIN_BANDS, Hint, combine, estimate_layer_order
from vesuvius.prepared import LayersInnermost
from vesuvius.simulate import simulate

MASK = np.ones((160, 96), bool)


def volume_of(voxels_ZYX: np.ndarray) -> LayersInnermost:
    voxels = voxels_ZYX.clip(0, 255).astype(np.uint8)
    return LayersInnermost(np.ascontiguousarray(voxels.transpose(1, 2, 0)))


def sheet_with_wraps(after: float) -> np.ndarray:
    """Return noise with a sheet at layers 12..19, air before it and `after` behind it."""
    voxels = np.random.default_rng(0).normal(40, 8, (32, *MASK.shape))
    voxels[12:20] += 80
    voxels[20:] += after
    return voxels


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("simulated") / "one"
    simulate(folder, size=(256, 256), layers=40, seed=4)
    return open_fragment(folder).volume.read(0, 40, 0, 256)


def test_wraps_behind_and_air_before_mean_that_the_open_side_is_first():
    voxels = sheet_with_wraps(after=50)
    found = estimate_layer_order(volume_of(voxels), MASK)
    assert (found.order, found.confidence) == ("forward", 1.0)
    assert 0.3 < found.air.strength <= 1
    mirrored = estimate_layer_order(volume_of(voxels[::-1]), MASK)
    assert (mirrored.order, mirrored.confidence) == ("reversed", 1.0)
    assert mirrored.air.strength == pytest.approx(-found.air.strength)


@pytest.mark.parametrize("after", [0, 8])
def test_a_sheet_in_air_without_fibres_stays_unknown(after):
    found = estimate_layer_order(volume_of(sheet_with_wraps(after)), MASK)
    assert (found.order, found.confidence) == ("unknown", 0.0)
    assert found.air.order == found.fibres.order == "unknown"


def test_crossed_fibres_tell_the_order_at_half_confidence(simulated):
    mask = np.ones(simulated.shape[1:], bool)
    found = estimate_layer_order(volume_of(simulated), mask)
    assert found.order == "forward"
    assert 0.35 < found.confidence <= 0.5
    assert found.air.order == "unknown"
    mirrored = estimate_layer_order(volume_of(simulated[::-1]), mask)
    assert mirrored.order == "reversed"


def test_a_quarter_turn_turns_the_hint_of_the_fibres_around(simulated):
    turned = volume_of(np.rot90(simulated, axes=(1, 2)))
    assert estimate_layer_order(turned, np.ones(turned.shape[1:], bool)).order == "reversed"


def test_hints_that_contradict_each_other_leave_the_order_unknown():
    forward, backward = Hint(0.5, 1.0, 32), Hint(-0.5, -0.9, 32)
    silent = Hint(0.0, 0.1, 32)
    assert combine(forward, backward).order == "unknown"
    assert combine(forward, silent).order == "forward"
    assert combine(forward, forward).confidence == 1.0
    assert combine(silent, backward).order == "reversed"
    assert combine(silent, backward).confidence == pytest.approx(0.45)
    assert combine(silent, silent).order == "unknown"


def test_few_bands_say_nothing_however_well_they_agree():
    assert Hint(0.5, 1.0, MIN_BANDS).order == "forward"
    assert Hint(0.5, 1.0, MIN_BANDS - 1).order == "unknown"
    small = estimate_layer_order(volume_of(sheet_with_wraps(50)[:, :30]), MASK[:30])
    assert small.order == "unknown"
    assert small.air.num_bands == 3


def test_only_papyrus_is_looked_at():
    voxels, mask = sheet_with_wraps(after=0), MASK.copy()
    voxels[20:, :, 48:] += 90
    mask[:, 48:] = False
    assert estimate_layer_order(volume_of(voxels), mask).order == "unknown"
    assert estimate_layer_order(volume_of(voxels), ~mask).order == "forward"


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 40, 40)])
def test_volumes_too_small_to_tell_are_unknown(shape):
    volume = volume_of(np.random.default_rng(0).integers(0, 255, shape))
    assert estimate_layer_order(volume, np.ones(shape[1:], bool)).order == "unknown"


def test_the_estimate_reads_as_a_sentence_with_both_hints():
    text = str(combine(Hint(0.5, 1.0, 32), Hint(0.01, 0.1, 32)))
    assert text == (
        "layer order forward, confidence 1.00: air and wraps say forward (+0.500, agreement "
        "+1.00), fibres say nothing (+0.010, agreement +0.10)"
    )


def test_the_real_crop_whose_layers_were_stretched_one_by_one_stays_unknown(sample_data: Path):
    fragment = open_fragment(sample_data / "scroll1_crop")
    assert estimate_layer_order(fragment.volume, fragment.papyrus_mask).order == "unknown"
