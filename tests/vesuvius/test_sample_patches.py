"""Sample patches lie where they should and show the voxels that are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vesuvius.fragment import Fragment
from vesuvius.prepared import LayersInnermost
from vesuvius.sample_patches import check_patch_size, sample_patches
from vesuvius.survey import survey

SIZE = (200, 230)
NO_SHIFTS = np.zeros((0, 2), int)


def fragment_of(label: np.ndarray | None, mask: np.ndarray) -> Fragment:
    voxels = np.random.default_rng(0).integers(0, 90, (*SIZE, 9), dtype=np.uint8)
    voxels[..., 6] += 100
    return Fragment("f", Path("f"), "tiff", "tiff", LayersInnermost(voxels), mask, label, ())


@pytest.fixture(scope="module")
def fragment() -> Fragment:
    label, mask = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    label[70:120, 100:140] = True
    mask[:, :30] = False
    return fragment_of(label, mask)


def drawn(fragment, num=50, size=64, seed=0):
    return sample_patches(fragment, survey(fragment, NO_SHIFTS), num, size, seed)


def test_patches_with_ink_hold_some_and_those_without_hold_none(fragment):
    found = drawn(fragment)
    assert list(found) == ["with ink", "without ink"]
    for kind, patches in found.items():
        assert patches
        for patch in patches:
            assert patch.label.any() == (kind == "with ink")
            assert patch.y + 64 <= 192
            assert patch.x + 64 <= 224
            assert (
                fragment.papyrus_mask[patch.y : patch.y + 64, patch.x : patch.x + 64].mean() > 0.9
            )
    places = [(patch.y, patch.x) for patches in found.values() for patch in patches]
    assert len(set(places)) == len(places) == 5 * 5  # all windows but those over the mask's edge


def test_a_patch_shows_the_voxels_label_and_depth_of_its_place(fragment):
    voxels = fragment.volume.read(0, 9, 0, SIZE[0])
    for patch in drawn(fragment)["with ink"]:
        rows, columns = slice(patch.y, patch.y + 64), slice(patch.x, patch.x + 64)
        np.testing.assert_array_equal(patch.voxels, voxels[:, rows, columns])
        np.testing.assert_array_equal(patch.label, fragment.ink_label[rows, columns])
        assert abs(patch.depth - 6) <= 1
        y, x = patch.cut
        assert patch.label[y].sum() == patch.label.sum(axis=1).max()
        assert patch.label[:, x].sum() == patch.label.sum(axis=0).max()


def test_the_seed_decides_and_num_and_size_are_kept(fragment):
    def places(**options):
        return [(patch.y, patch.x) for patch in drawn(fragment, **options)["without ink"]]

    assert places(num=3, seed=1) == places(num=3, seed=1)
    assert len({tuple(places(num=3, seed=seed)) for seed in range(5)}) > 1
    assert len(places(num=3)) == 3
    assert places(num=0) == []
    assert drawn(fragment, num=1, size=96)["with ink"][0].voxels.shape == (9, 96, 96)


def test_more_ink_makes_a_patch_likelier(fragment):
    counted = survey(fragment, NO_SHIFTS)
    ink = [
        sample_patches(fragment, counted, 1, 64, seed)["with ink"][0].label.mean()
        for seed in range(60)
    ]
    every = [patch.label.mean() for patch in drawn(fragment)["with ink"]]
    assert np.mean(ink) > 1.2 * np.mean(every)


def test_without_a_label_patches_are_drawn_from_all_papyrus(fragment):
    found = drawn(fragment_of(None, fragment.papyrus_mask))
    assert list(found) == ["without a label"]
    assert len(found["without a label"]) == 25
    assert found["without a label"][0].cut == (32, 32)


def test_a_kind_that_is_nowhere_gives_an_empty_list():
    everywhere, mask = np.ones(SIZE, bool), np.ones(SIZE, bool)
    found = drawn(fragment_of(everywhere, mask))
    assert found["without ink"] == []
    assert drawn(fragment_of(~everywhere, mask))["with ink"] == []


def test_narrow_papyrus_still_gives_the_patches_that_hold_most_of_it():
    mask = np.zeros(SIZE, bool)
    mask[100:110, 100:120] = True
    (patch, *_) = drawn(fragment_of(None, mask))["without a label"]
    assert mask[patch.y : patch.y + 64, patch.x : patch.x + 64].sum() == mask.sum()


@pytest.mark.parametrize("patch_size", [0, 16, 48, 96, -32])
def test_a_patch_size_that_does_not_fit_is_refused(patch_size):
    with pytest.raises(ValueError, match=r"50 x 70 .* multiple of 32 from 32 to 32"):
        check_patch_size(patch_size, (50, 70))
    check_patch_size(32, (50, 70))
