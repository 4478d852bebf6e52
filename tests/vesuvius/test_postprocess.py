"""Components in bands against whole masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vesuvius.postprocess import keep_components


def slow_keep(mask: np.ndarray, min_pixels: int, seeds: np.ndarray | None) -> np.ndarray:
    """The whole mask at once, component by component."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    kept = np.zeros_like(mask)
    for component in range(1, count):
        here = labels == component
        if stats[component, cv2.CC_STAT_AREA] >= min_pixels and (
            seeds is None or seeds[here].any()
        ):
            kept |= here
    return kept


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("density", [0.1, 0.35, 0.6])
def test_components_across_bands_are_those_of_the_whole_mask(rows, density, monkeypatch):
    monkeypatch.setattr("vesuvius.postprocess.BAND_ROWS", rows)
    rng = np.random.default_rng(rows)
    mask, seeds = rng.random((64, 50)) < density, rng.random((64, 50)) < 0.05
    for min_pixels in (1, 3, 20):
        for chosen in (None, seeds):
            found = keep_components(mask, min_pixels, chosen)
            assert np.array_equal(found, slow_keep(mask, min_pixels, chosen))


def test_a_ring_that_closes_in_a_later_band_is_one_component(monkeypatch):
    monkeypatch.setattr("vesuvius.postprocess.BAND_ROWS", 2)
    mask = np.zeros((9, 9), bool)
    mask[0, 0] = mask[1:, 1] = mask[1:, 7] = mask[8, 1:8] = True  # a U, one corner touches it
    pixels = int(mask.sum())
    assert keep_components(mask, pixels).sum() == pixels
    assert not keep_components(mask, pixels + 1).any()
    seeds = np.zeros_like(mask)
    seeds[1, 7] = True  # the other end
    assert np.array_equal(keep_components(mask, 1, seeds), mask)


def test_a_seed_outside_the_mask_keeps_nothing():
    mask, seeds = np.eye(5, dtype=bool), np.zeros((5, 5), bool)
    seeds[0, 4] = True
    assert not keep_components(mask, 1, seeds).any()


def test_an_empty_mask_stays_empty():
    assert not keep_components(np.zeros((5, 4), bool), 3).any()


def test_the_mask_given_is_not_changed():
    mask = np.eye(5, dtype=bool)
    keep_components(mask, 100)
    assert mask.sum() == 5


def test_fewer_than_one_pixel_is_refused():
    with pytest.raises(ValueError, match="min_pixels 0 is below 1"):
        keep_components(np.eye(5, dtype=bool), 0)
