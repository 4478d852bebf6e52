"""Statistics follow from the voxels alone, and the window follows the sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vesuvius.fragment import open_fragment
from vesuvius.prepare import prepare_fragment
from vesuvius.prepared import LayersInnermost
from vesuvius.statistics import (
    VolumeStatistics,
    intensity_scale,
    layer_histograms,
    note_low_contrast,
    smooth_profiles,
    z_window,
)


def volume_of(voxels_ZYX: np.ndarray) -> LayersInnermost:
    return LayersInnermost(np.ascontiguousarray(voxels_ZYX.transpose(1, 2, 0)))


def statistics_of(profile: np.ndarray) -> VolumeStatistics:
    """Return statistics of layers that have one value each."""
    return VolumeStatistics(np.eye(256, dtype=np.int64)[np.asarray(profile, int)])


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 300, 20), dtype=np.uint8)


def test_histograms_of_few_rows_count_every_masked_voxel(voxels: np.ndarray) -> None:
    mask = np.random.default_rng(1).random((300, 20)) > 0.4
    histograms = layer_histograms(volume_of(voxels), mask, max_rows=300)
    assert histograms.dtype == np.int64
    for layer, counts in zip(voxels, histograms, strict=True):
        expected = np.zeros(256, int)
        for value in layer[mask]:
            expected[value] += 1
        np.testing.assert_array_equal(counts, expected)


def test_histograms_read_at_most_max_rows_spread_over_the_masked_rows(voxels: np.ndarray) -> None:
    mask = np.zeros((300, 20), bool)
    mask[90:280, 4] = True

    class Recorder(LayersInnermost):
        def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
            rows.extend(range(y_start, y_stop))
            return super().read(z_start, z_stop, y_start, y_stop)

    rows: list[int] = []
    recorder = Recorder(voxels.transpose(1, 2, 0))
    histograms = layer_histograms(recorder, mask, max_rows=64)
    assert len(rows) == len(set(rows)) == 64
    assert (min(rows), max(rows)) == (90, 279)
    assert max(np.diff(sorted(rows))) < 30
    assert (histograms.sum(axis=1) == 64).all()
    expected = np.stack([np.bincount(layer[rows, 4], minlength=256) for layer in voxels])
    np.testing.assert_array_equal(histograms, expected)


def test_a_mask_of_two_far_specks_still_gives_counts(voxels: np.ndarray) -> None:
    mask = np.zeros((300, 20), bool)
    mask[[3, 296], 5] = True
    assert layer_histograms(volume_of(voxels), mask, max_rows=16).sum(axis=1).min() >= 1


def test_all_layouts_of_the_real_crop_give_the_same_histograms(
    sample_data: Path, tmp_path: Path
) -> None:
    crop = sample_data / "scroll1_crop"
    layers, stored = open_fragment(crop), open_fragment(crop / "segment.ome.zarr")
    prepared = open_fragment(prepare_fragment(crop, tmp_path))
    expected = layer_histograms(layers.volume, layers.papyrus_mask, max_rows=64)
    for volume in (stored.volume, prepared.volume):
        found = layer_histograms(volume, layers.papyrus_mask, max_rows=64)
        np.testing.assert_array_equal(found, expected)


def test_the_sheet_of_the_real_crop_is_where_its_fibres_are_seen(sample_data: Path) -> None:
    fragment = open_fragment(sample_data / "scroll1_crop")
    statistics = VolumeStatistics(layer_histograms(fragment.volume, fragment.papyrus_mask))
    assert abs(12 + statistics.sheet_depth - 33) <= 2  # its first layer is number 12


def test_profile_mean_and_std_are_those_of_the_masked_voxels(voxels: np.ndarray) -> None:
    mask = np.random.default_rng(1).random((300, 20)) > 0.4
    statistics = VolumeStatistics(layer_histograms(volume_of(voxels), mask, max_rows=300))
    masked = voxels[:, mask].astype(float)
    np.testing.assert_allclose(statistics.z_profile, masked.mean(axis=1), rtol=1e-12)
    expected = masked[2:5].mean(), masked[2:5].std()
    np.testing.assert_allclose(statistics.mean_std(2, 5), expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [0, 7, 31, 64])
def test_sheet_depth_finds_a_sheet_at_any_depth(depth: int) -> None:
    profile = 30 + 120 * np.exp(-0.5 * ((np.arange(65) - depth) / 6) ** 2)
    assert statistics_of(profile).sheet_depth == depth


def test_sheet_depth_is_not_drawn_to_one_bright_layer() -> None:
    profile = 30 + 120 * np.exp(-0.5 * ((np.arange(65) - 20) / 6) ** 2)
    profile[50] = 200
    assert abs(statistics_of(profile).sheet_depth - 20) <= 1


def test_profiles_are_smoothed_each_on_its_own_and_keep_their_ends() -> None:
    profiles = np.random.default_rng(0).random((30, 2, 3))
    smooth = smooth_profiles(profiles)
    np.testing.assert_allclose(smooth[:, 1, 2], smooth_profiles(profiles[:, 1, 2]), rtol=1e-12)
    weights = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
    middle = (weights / weights.sum()) @ profiles[9:22, 0, 0]
    np.testing.assert_allclose(smooth[15, 0, 0], middle, rtol=1e-12)
    np.testing.assert_allclose(smooth_profiles(np.full(3, 7.0)), 7.0, rtol=1e-12)


def test_histograms_of_another_shape_or_without_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 10\), expected \(Z, 256\)"):
        VolumeStatistics(np.ones((3, 10), np.int64))
    with pytest.raises(ValueError, match="without a voxel"):
        VolumeStatistics(np.zeros((3, 256), np.int64))


def test_only_low_contrast_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    note_low_contrast(Path("bright"), 4.0)
    note_low_contrast(Path("dark"), 3.9)
    said = capsys.readouterr().err
    assert "dark: intensities hardly differ (standard deviation 3.9 of 0..255)" in said
    assert "bright" not in said


@pytest.mark.parametrize(
    ("sheet", "num_layers", "expected"),
    [
        (32, 16, (24, 40)),
        (32, 17, (24, 41)),
        (2, 16, (0, 16)),
        (63, 16, (49, 65)),
        (5, 65, (0, 65)),
    ],
)
def test_the_window_is_centred_on_the_sheet_and_shifted_to_fit(
    sheet: int, num_layers: int, expected: tuple[int, int]
) -> None:
    profile = 200 - 2 * abs(np.arange(65) - sheet)
    assert z_window(statistics_of(profile), num_layers) == expected


def test_a_given_z_start_is_kept_or_refused() -> None:
    statistics = statistics_of(np.arange(65))
    assert z_window(statistics, 16, z_start=3) == (3, 19)
    with pytest.raises(ValueError, match=r"z_start 50 .* choose 0\.\.49"):
        z_window(statistics, 16, z_start=50)
    with pytest.raises(ValueError, match="z_start -1"):
        z_window(statistics, 16, z_start=-1)
    with pytest.raises(ValueError, match=r"66 layers are wanted but the volume has 65"):
        z_window(statistics, 66)


def test_intensity_scale_normalises(voxels: np.ndarray) -> None:
    mask = np.ones((300, 20), bool)
    statistics = VolumeStatistics(layer_histograms(volume_of(voxels), mask, max_rows=300))
    assert intensity_scale("raw", statistics, 0, 6) == (0.0, 1 / 255)
    offset, scale = intensity_scale("zscore", statistics, 1, 4)
    x = (voxels[1:4] - offset) * scale
    np.testing.assert_allclose((x.mean(), x.std()), (0, 1), atol=1e-12)


@pytest.mark.parametrize("percent", [0, 0.5, 1, 50, 99, 99.9, 100])
def test_percentiles_are_those_of_the_masked_voxels(voxels: np.ndarray, percent: float) -> None:
    mask = np.random.default_rng(1).random((300, 20)) > 0.4
    statistics = VolumeStatistics(layer_histograms(volume_of(voxels), mask, max_rows=300))
    expected = np.percentile(voxels[2:5][:, mask], percent, method="inverted_cdf")
    assert statistics.percentile(percent, 2, 5) == expected


def test_percentiles_become_0_and_1(voxels: np.ndarray) -> None:
    histograms = layer_histograms(volume_of(voxels), np.ones((300, 20), bool), max_rows=300)
    statistics = VolumeStatistics(histograms)
    offset, scale = intensity_scale("percentile", statistics, 1, 4, (10, 95))
    low, high = (statistics.percentile(p, 1, 4) for p in (10, 95))
    np.testing.assert_allclose([(low - offset) * scale, (high - offset) * scale], [0, 1])
    assert np.mean(voxels[1:4] > high) < 0.05 < np.mean(voxels[1:4] >= high)


def test_raw_is_also_a_65535th_of_16_bit_layers() -> None:
    values = np.arange(0, 65536, 7)
    offset, scale = intensity_scale("raw", statistics_of(np.full(5, 7)), 0, 5)
    assert np.abs(((values >> 8) - offset) * scale - values / 65535).max() < 1 / 255


def test_a_normalisation_that_is_unknown_or_undefined_is_refused() -> None:
    statistics = statistics_of(np.full(5, 7))
    with pytest.raises(ValueError, match=r"layers 1\.\.3 all have the value 7"):
        intensity_scale("zscore", statistics, 1, 4)
    with pytest.raises(ValueError, match=r"all have the value 7, so percentile is undefined"):
        intensity_scale("percentile", statistics, 1, 4, (1, 99))
    with pytest.raises(
        ValueError, match="'minmax' is unknown; choose one of raw, zscore, percentile"
    ):
        intensity_scale("minmax", statistics, 1, 4)
