"""One pass counts what looking at every voxel on its own counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vesuvius import survey as module
from vesuvius.fragment import Fragment
from vesuvius.prepared import LayersInnermost
from vesuvius.survey import Survey, draw_offsets, shifted, survey

SIZE = (150, 70)
OFFSETS = draw_offsets(SIZE, 20, seed=3)  # with the label itself more than two bytes of labels


def fragment_of(voxels_ZYX: np.ndarray, mask: np.ndarray, label: np.ndarray | None) -> Fragment:
    volume = LayersInnermost(np.ascontiguousarray(voxels_ZYX.transpose(1, 2, 0)))
    return Fragment("f", Path("f"), "tiff", "tiff", volume, mask, label, ())


@pytest.fixture(scope="module")
def fragment() -> Fragment:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 256, (5, *SIZE), dtype=np.uint8)
    mask = rng.random(SIZE) > 0.3
    mask[96:] = mask[:, 64:] = False  # blocks without papyrus
    return fragment_of(voxels, mask, rng.random(SIZE) > 0.8)


def counted(voxels: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(layer[where], minlength=256) for layer in voxels])


def voxels_of(fragment: Fragment) -> np.ndarray:
    return fragment.volume.read(0, 5, 0, SIZE[0])


@pytest.mark.parametrize("band_bytes", [1, 5 * 70 * 64, 2**27])
def test_bands_of_any_size_count_what_each_voxel_alone_counts(fragment, band_bytes, monkeypatch):
    monkeypatch.setattr(module, "BAND_BYTES", band_bytes)
    told: list[int] = []
    found = survey(fragment, OFFSETS, told.append)
    voxels, mask = voxels_of(fragment), fragment.papyrus_mask
    ink = fragment.ink_label & mask
    np.testing.assert_array_equal(found.papyrus, counted(voxels, mask))
    np.testing.assert_array_equal(found.ink, counted(voxels, ink))
    for counts, offset in zip(found.shifted_ink, OFFSETS, strict=True):
        moved = np.roll(ink, tuple(offset), axis=(0, 1))
        np.testing.assert_array_equal(counts, counted(voxels, moved & mask))
    assert sum(told) == SIZE[0]
    assert len(told) == {1: 5, 5 * 70 * 64: 3, 2**27: 1}[band_bytes]


def test_every_row_is_read_once_in_bands_within_their_bound(fragment, monkeypatch):
    class Recorder:
        shape = fragment.volume.shape

        def read(self, z_start, z_stop, y_start, y_stop):
            rows.extend(range(y_start, y_stop))
            voxels.append((z_stop - z_start) * (y_stop - y_start) * self.shape[2])
            return fragment.volume.read(z_start, z_stop, y_start, y_stop)

    rows, voxels = [], []
    bound = 5 * 70 * 70
    monkeypatch.setattr(module, "BAND_BYTES", bound)
    survey(replace(fragment, volume=Recorder()), OFFSETS)
    assert rows == list(range(96 + 32))  # papyrus ends at row 96, and with it the second band
    assert max(voxels) <= bound


def test_blocks_hold_the_sums_of_their_pixels_cut_off_at_the_edge(fragment):
    found = survey(fragment, OFFSETS[:0])
    voxels, mask = voxels_of(fragment), fragment.papyrus_mask
    assert found.block_means.shape == (5, 5, 3)
    for row, column in np.ndindex(5, 3):
        block = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        inside = mask[block]
        assert found.block_pixels[row, column] == inside.sum()
        assert found.block_ink[row, column] == (fragment.ink_label[block] & inside).sum()
        expected = voxels[:, *block][:, inside].mean(axis=1) if inside.any() else 0
        np.testing.assert_allclose(found.block_means[:, row, column], expected, rtol=1e-12)


@pytest.mark.parametrize("has_label", [False, True])
def test_without_ink_on_papyrus_there_is_no_ink_histogram(fragment, has_label):
    label = ~fragment.papyrus_mask if has_label else None
    found = survey(fragment_of(voxels_of(fragment), fragment.papyrus_mask, label), OFFSETS)
    assert found.ink is None
    assert not found.block_ink.any()
    assert len(found.shifted_ink) == (len(OFFSETS) if has_label else 0)
    np.testing.assert_array_equal(found.papyrus, survey(fragment, OFFSETS).papyrus)


def test_the_depth_map_follows_a_sheet_and_ends_at_the_mask():
    voxels = np.full((30, 64, 96), 20, np.uint8)
    for column, depth in enumerate((5, 12, 24)):
        voxels[depth - 2 : depth + 3, :, 32 * column : 32 * column + 32] = 200
    mask = np.ones((64, 96), bool)
    mask[32:, 32:] = False
    found = survey(fragment_of(voxels, mask, None), OFFSETS[:0]).depth_map
    np.testing.assert_array_equal(found, [[5, 12, 24], [5, np.nan, np.nan]])


def test_shifts_are_far_seeded_and_keep_every_ink_pixel():
    offsets = draw_offsets((101, 60), 500, seed=1)
    np.testing.assert_array_equal(offsets, draw_offsets((101, 60), 500, seed=1))
    assert (offsets != draw_offsets((101, 60), 500, seed=2)).any()
    assert (offsets[:, 0].min(), offsets[:, 0].max()) == (26, 75)
    assert (offsets[:, 1].min(), offsets[:, 1].max()) == (0, 59)


def test_rows_of_a_shifted_label_are_those_of_the_whole_shifted_label(fragment):
    whole = np.roll(fragment.ink_label & fragment.papyrus_mask, (37, 11), axis=(0, 1))
    np.testing.assert_array_equal(shifted(fragment, 20, 90, np.array([37, 11])), whole[20:90])


def test_a_survey_without_label_has_no_shifted_histograms(fragment):
    found: Survey = survey(fragment_of(voxels_of(fragment), fragment.papyrus_mask, None), OFFSETS)
    assert found.shifted_ink.shape == (0, 5, 256)
