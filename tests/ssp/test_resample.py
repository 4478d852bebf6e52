"""Resampling and z-scores in bands equal those of the whole volume."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import zoom

from ssp import resample
from ssp.resample import axis_matrix, measure, resampled_shape, standardize

NUMBERS = np.random.default_rng(0)
VOLUME = (NUMBERS.normal(30000, 40, (13, 40, 52)) + 200 * NUMBERS.random((13, 1, 1))).astype(
    np.uint16
)


def whole(volume, shape, is_resampled_first=False):
    """Return the slow twin: z-score and scipy's zoom of all of it in double precision."""
    volume = volume.astype(np.float64)
    if not is_resampled_first:
        volume = (volume - volume.mean()) / volume.std()
    factors = np.divide(shape, volume.shape)
    volume = zoom(volume, factors, order=3, mode="nearest")
    return (volume - volume.mean()) / volume.std() if is_resampled_first else volume


@pytest.mark.parametrize("is_resampled_first", [False, True])
@pytest.mark.parametrize("shape", [(13, 40, 52), (13, 15, 19), (20, 60, 40), (7, 52, 40)])
@pytest.mark.parametrize("band_bytes", [1, 3 * 4 * 40 * 52, 2**26])
def test_bands_equal_the_whole(tmp_path, monkeypatch, shape, is_resampled_first, band_bytes):
    monkeypatch.setattr(resample, "BAND_BYTES", band_bytes)
    out = np.empty(shape, np.float32)
    reads = []

    def read(start, stop):
        reads.append(stop - start)
        return VOLUME[start:stop]

    moments = standardize(read, VOLUME.shape, out, tmp_path, "a", is_resampled_first)
    np.testing.assert_allclose(out, whole(VOLUME, shape, is_resampled_first), atol=1e-4)
    assert max(reads) == {1: 1, 3 * 4 * 40 * 52: 3, 2**26: 13}[band_bytes]
    expected = zoom(VOLUME.astype(float), np.divide(shape, VOLUME.shape), order=3, mode="nearest")
    source = expected if is_resampled_first else VOLUME
    np.testing.assert_allclose(moments, (source.mean(), source.std()), rtol=1e-5)
    np.testing.assert_allclose(out * moments.std + moments.mean, expected, atol=0.02)
    assert not list(tmp_path.iterdir())


def test_memory_depends_on_the_band_and_not_on_the_volume(tmp_path, monkeypatch):
    monkeypatch.setattr(resample, "BAND_BYTES", 4 * 2 * 64 * 64)
    shape = (200, 64, 64)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(100, 32, 32))
    axis_matrix.cache_clear()
    tracemalloc.start()
    standardize(lambda a, b: NUMBERS.random((b - a, 64, 64)), shape, out, tmp_path, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 4 * np.prod(shape)


def test_a_volume_that_keeps_its_shape_is_only_z_scored(tmp_path):
    out = np.empty(VOLUME.shape, np.float32)
    standardize(lambda a, b: VOLUME[a:b], VOLUME.shape, out, tmp_path, "a")
    mean, std = np.float32(VOLUME.mean(dtype=float)), np.float32(VOLUME.std(dtype=float))
    np.testing.assert_allclose(out, (VOLUME.astype(np.float32) - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "new"), [(624, 232), (65, 65), (10, 31), (1, 1), (2, 5)])
def test_resampling_an_axis_keeps_constants_and_ends(length, new):
    matrix = axis_matrix(length, new)
    assert matrix.shape == (new, length)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    ends = matrix @ np.arange(length, dtype=np.float32)
    np.testing.assert_allclose(ends[[0, -1]], [0, length - 1], atol=1e-3)


def test_the_official_factor_gives_the_official_shape():
    assert resampled_shape((65, 624, 924), (1, 0.37241, 0.37241)) == (65, 232, 344)
    assert resampled_shape((1, 10, 10), (3, 2, 0.01)) == (1, 20, 1)


@pytest.mark.parametrize("value", [7.0, np.nan, np.inf])
def test_what_cannot_be_z_scored_is_refused_by_name(tmp_path, value):
    volume = np.full((3, 8, 8), 7, np.float32)
    volume[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"a\.tif has mean .* and cannot be z-scored; it needs"):
        measure(lambda a, b: volume[a:b], volume.shape, "a.tif")
