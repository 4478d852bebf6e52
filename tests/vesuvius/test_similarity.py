"""SSIM in bands against windows written out, and why it misleads."""

from __future__ import annotations

import numpy as np
import pytest

from vesuvius.similarity import StructuralSimilarity


def maps(seed: int = 0, shape: tuple[int, int] = (41, 23)) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    label = rng.random(shape) < 0.4
    prob = np.clip(label * 0.6 + rng.normal(0.2, 0.2, shape), 0, 1).astype(np.float32)
    return prob, label, rng.random(shape) < 0.8


def streamed(prob, label, valid, rows: list[int]) -> float:
    counter, start = StructuralSimilarity(len(prob)), 0
    for number in rows:
        band = slice(start, start + number)
        counter.add(prob[band], label[band], valid[band])
        start += number
    assert start == len(prob)
    return counter.mean()


def slow_ssim(first: np.ndarray, second: np.ndarray, valid: np.ndarray) -> float:
    """Every 11 x 11 window on its own, as the paper writes it."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(taps, taps) / taps.sum() ** 2
    x, y = (np.pad(one.astype(np.float64), 5, mode="reflect") for one in (first, second))
    found = []
    for row, column in np.argwhere(valid):
        a, b = (one[row : row + 11, column : column + 11] for one in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        found.append(
            (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )  # fmt: skip
    return float(np.mean(found))


@pytest.mark.parametrize("rows", [[41], [20, 21], [1] * 41, [6, 3, 30, 1, 1], [40, 1]])
def test_bands_of_any_height_equal_windows_written_out(rows):
    prob, label, valid = maps()
    assert streamed(prob, label, valid, rows) == pytest.approx(
        slow_ssim(prob, label, valid), abs=1e-10
    )


def test_equal_maps_are_wholly_similar_and_no_pixel_is():
    _, label, valid = maps()
    assert streamed(label, label, valid, [41]) == pytest.approx(1)
    assert streamed(label, ~label, valid & False, [41]) == 1
    assert streamed(label, ~label, valid, [41]) < 0


def test_an_empty_map_is_more_similar_than_one_that_finds_the_ink():
    label = np.zeros((100, 100), bool)
    label[40:50, 20:80] = True
    noise = np.random.default_rng(0).uniform(0, 0.3, label.shape)
    good = np.where(label, 0.6 + noise, noise)  # separates ink perfectly
    everywhere = np.ones_like(label)
    empty = streamed(np.zeros(label.shape), label, everywhere, [100])
    assert empty > streamed(good, label, everywhere, [100]) + 0.2
