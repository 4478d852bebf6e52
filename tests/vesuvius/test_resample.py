"""Streamed resampling equals resampling the whole volume at once, by the book."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from vesuvius import resample
from vesuvius.prepared import LayersInnermost
from vesuvius.resample import Axis, ResampledVolume, mix_plane, resampled_map

SHAPE = (11, 37, 29)
FACTORS = [(0.5, 0.5, 0.5), (2.0, 2.0, 2.0), (0.37, 1.7, 0.9), (1.0, 0.25, 3.3), (4.4, 0.99, 1.01)]


class Spy:
    """Keeps which ranges were read."""

    def __init__(self, voxels_ZYX: np.ndarray) -> None:
        self.voxels = voxels_ZYX
        self.shape = voxels_ZYX.shape
        self.ranges: list[tuple[int, int, int, int]] = []

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        assert 0 <= z_start < z_stop <= self.shape[0]
        assert 0 <= y_start < y_stop <= self.shape[1]
        self.ranges.append((z_start, z_stop, y_start, y_stop))
        return self.voxels[z_start:z_stop, y_start:y_stop]


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def slow_matrix(length: int, factor: float) -> np.ndarray:
    """Return float64 (N, length): each new position as a sum over all old ones."""
    num = math.ceil(round(length * factor, 6))
    rows = np.zeros((num, length))
    for i in range(num):
        if factor < 1:
            start, stop = i / factor, min((i + 1) / factor, length)
            for j in range(length):
                rows[i, j] = max(0.0, min(stop, j + 1) - max(start, j)) / (stop - start)
        else:
            centre = (i + 0.5) / factor - 0.5
            for j, unit in enumerate(np.eye(length)):
                rows[i, j] = np.interp(centre, np.arange(length), unit)
    return rows


def slow_resample(voxels: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """Return all voxels at once, float64."""
    z, y, x = map(slow_matrix, voxels.shape, factors)
    return np.einsum("az,by,cx,zyx->abc", z, y, x, voxels.astype(np.float64), optimize=True)


@pytest.mark.parametrize("factors", FACTORS)
def test_a_resampled_volume_equals_the_whole_resampled_at_once(factors, voxels):
    expected = slow_resample(voxels, factors)
    volume = ResampledVolume(Spy(voxels), factors)
    assert volume.shape == expected.shape
    found = volume.read(0, volume.shape[0], 0, volume.shape[1])
    assert found.dtype == np.uint8
    assert abs(found - expected).max() <= 0.501  # rounded once, at the end


@pytest.mark.parametrize("factors", FACTORS)
def test_bands_change_no_bit(factors, voxels, monkeypatch):
    volume = ResampledVolume(Spy(voxels), factors)
    layers, height, _ = volume.shape
    whole = volume.read(0, layers, 0, height)
    monkeypatch.setattr(resample, "READ_BYTES", 2000)
    monkeypatch.setattr(resample, "MIXED_VOXELS", 700)
    for rows in (1, 5, height):
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            first, last = start % layers, layers - start % max(1, layers // 2)
            first, last = min(first, last - 1), last
            found = volume.read(first, last, start, stop)
            np.testing.assert_array_equal(found, whole[first:last, start:stop])


def test_no_more_is_read_at_once_than_allowed_and_no_layer_in_vain(voxels, monkeypatch):
    monkeypatch.setattr(resample, "READ_BYTES", 6 * 29 * 4)
    spy = Spy(voxels)
    ResampledVolume(spy, (0.5, 0.5, 0.5)).read(1, 4, 0, 18)
    assert len(spy.ranges) > 5
    assert {(z_start, z_stop) for z_start, z_stop, _, _ in spy.ranges} == {(2, 8)}
    assert max(stop - start for _, _, start, stop in spy.ranges) <= 4
    spy.ranges.clear()
    ResampledVolume(spy, (2.0, 2.0, 2.0)).read(9, 11, 0, 8)  # centres 4.25 and 4.75
    assert {(z_start, z_stop) for z_start, z_stop, _, _ in spy.ranges} == {(4, 6)}


@pytest.mark.parametrize("factor", [0.5, 0.37, 1.7, 3.0])
def test_a_plane_equals_that_of_opencv(factor, voxels):
    rows, columns = (Axis.of(length, factor) for length in SHAPE[1:])
    found = mix_plane(voxels, rows, columns, 0, len(rows))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    for plane, layer in zip(found, voxels.astype(np.float32), strict=True):
        expected = cv2.resize(layer, None, fx=factor, fy=factor, interpolation=way)
        height, width = expected.shape  # it may leave out the last, which is not covered whole
        np.testing.assert_allclose(plane[:height, :width], expected, atol=2e-3)


@pytest.mark.parametrize("factors", FACTORS)
def test_nothing_changes_where_all_voxels_are_equal(factors):
    for value in (0, 113, 255):
        volume = ResampledVolume(Spy(np.full(SHAPE, value, np.uint8)), factors)
        assert (volume.read(0, volume.shape[0], 0, volume.shape[1]) == value).all()


def test_factors_of_one_read_the_voxels_themselves(voxels):
    volume = ResampledVolume(LayersInnermost(voxels.transpose(1, 2, 0)), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(volume.read(2, 9, 5, 30), voxels[2:9, 5:30])


@pytest.mark.parametrize(("length", "factor"), [(1, 0.1), (1, 7.0), (3, 0.4), (5, 0.0625), (2, 16)])
def test_short_axes_keep_a_position_and_weights_of_one(length, factor):
    axis = Axis.of(length, factor)
    assert len(axis) - 1 < length * factor <= len(axis)
    np.testing.assert_allclose(axis.weights.sum(axis=0), 1, rtol=1e-6)
    assert axis.source(0, len(axis)) == (0, length)


def test_a_map_resampled_in_bands_is_that_resampled_at_once(monkeypatch):
    mask = np.random.default_rng(0).random(SHAPE[1:]) > 0.4
    rows, columns = Axis.of(37, 0.6), Axis.of(29, 0.6)
    whole = resampled_map(mask, rows, columns, lambda mixed: mixed >= 0.5)
    monkeypatch.setattr(resample, "MIXED_VOXELS", 60)
    found = resampled_map(mask, rows, columns, lambda mixed: mixed >= 0.5)
    np.testing.assert_array_equal(found, whole)
    covered = slow_matrix(37, 0.6) @ mask @ slow_matrix(29, 0.6).T
    assert found.dtype == bool
    np.testing.assert_array_equal(found, covered >= 0.5)
