"""The claim is judged by what labels that mean nothing differ by, not by counting voxels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vesuvius.claim import InkContrast, ink_contrast
from vesuvius.fragment import Fragment
from vesuvius.histogram_distance import jensen_shannon
from vesuvius.prepared import LayersInnermost
from vesuvius.survey import Survey, draw_offsets, survey

SIZE = (320, 320)
NUM_LAYERS = 6


def surveyed(ink: float, place: float, seed: int = 0, layer: int = 2) -> Survey:
    """Return a survey of papyrus whose brightness drifts by `place` and rises by `ink` at ink."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(100, 10, (NUM_LAYERS, *SIZE))
    voxels += place * cv2.GaussianBlur(rng.normal(0, 1, SIZE), (0, 0), 20) * 40
    blots = cv2.GaussianBlur(rng.normal(0, 1, SIZE), (0, 0), 8)
    label = blots > 1.2 * blots.std()
    voxels[layer][label] += ink
    volume = LayersInnermost(
        np.ascontiguousarray(voxels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    )
    fragment = Fragment("f", Path("f"), "tiff", "tiff", volume, np.ones(SIZE, bool), label, ())
    return survey(fragment, draw_offsets(SIZE, 23, seed))


def judged(**options: float) -> InkContrast:
    found = ink_contrast(surveyed(**options))
    assert found is not None
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ink_that_changes_nothing_is_confirmed_to_look_the_same(seed):
    found = judged(ink=0, place=5, seed=seed)
    assert found.together.verdict == found.best_layer.verdict == "confirmed"
    assert "confirmed for this data" in str(found.together)
    assert "in some layer" in str(found.best_layer)


def test_bright_ink_is_found_in_its_layer_and_denies_the_claim_there():
    found = judged(ink=15, place=0)
    assert (found.best_layer.layer, found.best_layer.verdict) == (2, "denied")
    assert found.best_layer.distances.auc > 0.8
    assert found.best_layer.spreads > 10
    assert found.layers.contrast.argmax() == 2
    assert found.layers.contrast[2] > 1.3
    assert np.abs(np.delete(found.layers.contrast, 2)).max() < 0.1
    text = str(found.best_layer)
    assert text.startswith("Layer 2, where ink stands out most: the histograms")
    assert text.endswith("in any layer. The claim that they look the same is denied for this data.")


def test_a_sure_but_invisible_difference_is_nearly_confirmed():
    found = judged(ink=1, place=0)
    assert (found.best_layer.layer, found.best_layer.verdict) == (2, "nearly")
    assert found.best_layer.distances.total_variation < 0.05
    assert "denied in the letter and confirmed to the eye" in str(found.best_layer)


def test_the_same_difference_counts_less_where_place_alone_makes_more():
    assert judged(ink=1, place=0).best_layer.verdict == "nearly"
    assert judged(ink=1, place=10).best_layer.verdict == "confirmed"


def test_voxels_all_alike_differ_by_nothing():
    volume = LayersInnermost(np.full((*SIZE, 2), 77, np.uint8))
    label = np.zeros(SIZE, bool)
    label[50:90, 60:200] = True
    fragment = Fragment("f", Path("f"), "tiff", "tiff", volume, np.ones(SIZE, bool), label, ())
    found = ink_contrast(survey(fragment, draw_offsets(SIZE, 23, 0)))
    assert found.together.verdict == found.best_layer.verdict == "confirmed"
    assert found.together.spreads == 0
    assert "0.0 times the spread" in str(found.together)


def test_distances_are_those_of_the_counts_with_and_without_ink():
    counted = surveyed(ink=5, place=1)
    found = ink_contrast(counted)
    rest = counted.papyrus - counted.ink
    np.testing.assert_array_equal(found.no_ink, rest)
    for z in range(NUM_LAYERS):
        expected = jensen_shannon(counted.ink[z], rest[z])
        assert found.layers.jensen_shannon[z] == pytest.approx(expected, rel=1e-12)
        for shifted, moved in zip(
            found.shifted_layers.jensen_shannon, counted.shifted_ink, strict=True
        ):
            expected = jensen_shannon(moved[z], counted.papyrus[z] - moved[z])
            assert shifted[z] == pytest.approx(expected, rel=1e-12)
    together = jensen_shannon(counted.ink.sum(axis=0), rest.sum(axis=0))
    assert found.together.distances.jensen_shannon == pytest.approx(together, rel=1e-12)
    shifted = found.together.shifted
    spreads = (together - shifted.mean()) / shifted.std(ddof=1)
    assert found.together.spreads == pytest.approx(spreads)


def test_a_label_that_means_nothing_is_called_a_difference_as_rarely_as_promised():
    """Each shifted label in turn plays the ink label; at most one of all can stand out furthest."""
    counted = surveyed(ink=0, place=3)
    labels = np.concatenate([counted.ink[None], counted.shifted_ink])
    verdicts = []
    for index in range(len(labels)):
        others = np.delete(labels, index, axis=0)
        played = Survey(
            counted.papyrus, labels[index], others, counted.block_pixels, counted.block_ink,
            counted.block_means,
        )  # fmt: skip
        found = ink_contrast(played)
        verdicts.append((found.together.verdict, found.best_layer.verdict))
    for column in zip(*verdicts, strict=True):
        assert sum(verdict != "confirmed" for verdict in column) == 1


def test_without_ink_or_without_other_papyrus_there_is_nothing_to_compare():
    counted = surveyed(ink=5, place=0)
    blocks = counted.block_pixels, counted.block_ink, counted.block_means
    shifted = counted.shifted_ink
    assert ink_contrast(Survey(counted.papyrus, None, shifted, *blocks)) is None
    assert ink_contrast(Survey(counted.papyrus, counted.papyrus, shifted, *blocks)) is None


def test_shifted_labels_off_the_papyrus_are_left_out_until_too_few_remain():
    counted = surveyed(ink=5, place=0)
    blocks = counted.block_pixels, counted.block_ink, counted.block_means
    shifted = counted.shifted_ink.copy()
    shifted[0], shifted[1] = 0, counted.papyrus
    found = ink_contrast(Survey(counted.papyrus, counted.ink, shifted, *blocks))
    assert len(found.together.shifted) == len(shifted) - 2
    shifted[18:] = 0
    assert ink_contrast(Survey(counted.papyrus, counted.ink, shifted, *blocks)) is None
