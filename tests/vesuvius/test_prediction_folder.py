"""What a prediction folder shows of its maps."""

from __future__ import annotations

import numpy as np
import pytest

from vesuvius import maps
from vesuvius.prediction_folder import quantile


@pytest.mark.parametrize("share", [0.5, 0.9, 0.995])
def test_the_quantile_taken_in_bands_is_that_inside_the_mask(monkeypatch, share):
    monkeypatch.setattr(maps, "BAND_ROWS", 16)
    rng = np.random.default_rng(0)
    spread = rng.gamma(0.5, 0.05, (70, 90)).astype(np.float32)
    mask = np.zeros(spread.shape, bool)
    mask[10:65, 20:80] = True
    spread[~mask] = 9  # so that what lies outside would be noticed
    expected = np.quantile(spread[mask], share)
    assert quantile(spread, mask, share) == pytest.approx(expected, abs=9 / 5000)


def test_one_bright_pixel_is_not_what_the_others_are_compared_with():
    spread = np.full((40, 50), 0.01, np.float32)
    spread[3, 4] = 0.4
    assert quantile(spread, np.ones_like(spread, bool), 0.995) == pytest.approx(0.01, rel=0.01)


def test_the_quantile_of_no_disagreement_at_all_is_0():
    nothing = np.zeros((4, 5), np.float32)
    assert quantile(nothing, np.ones((4, 5), bool), 0.995) == 0
