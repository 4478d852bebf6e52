"""Distances of histograms are those of the voxels they count."""

from __future__ import annotations

import numpy as np
import pytest

from vesuvius.histogram_distance import (
    auc,
    contrast,
    jensen_shannon,
    moments,
    total_variation,
    wasserstein,
)

FIRST = np.random.default_rng(0).normal(100, 12, 300).astype(int)
SECOND = np.random.default_rng(1).normal(110, 20, 500).astype(int)
DISTANCES = (total_variation, jensen_shannon, wasserstein, auc, contrast)


def counts(values: np.ndarray) -> np.ndarray:
    return np.bincount(values, minlength=256)


def test_wasserstein_is_the_mean_way_between_sorted_voxels():
    way = np.abs(np.sort(np.repeat(FIRST, 5)) - np.sort(np.repeat(SECOND, 3))).mean()
    assert wasserstein(counts(FIRST), counts(SECOND)) == pytest.approx(way, rel=1e-12)


def test_auc_is_the_share_of_pairs_in_which_the_positive_voxel_is_brighter():
    pairs = np.sign(FIRST[:, None] - SECOND[None, :])
    assert auc(counts(FIRST), counts(SECOND)) == pytest.approx((pairs / 2 + 0.5).mean(), rel=1e-12)
    assert auc(counts(SECOND), counts(FIRST)) == pytest.approx((-pairs / 2 + 0.5).mean(), rel=1e-12)


def test_contrast_and_moments_are_those_of_the_voxels():
    pooled = (len(FIRST) * FIRST.var() + len(SECOND) * SECOND.var()) / (len(FIRST) + len(SECOND))
    expected = (FIRST.mean() - SECOND.mean()) / np.sqrt(pooled)
    assert contrast(counts(FIRST), counts(SECOND)) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(moments(counts(FIRST)), (FIRST.mean(), FIRST.var()), rtol=1e-12)


def test_jensen_shannon_is_the_information_of_a_voxel_about_its_class():
    joint = np.stack([counts(FIRST) / len(FIRST), counts(SECOND) / len(SECOND)]) / 2
    independent = joint.sum(axis=0) * joint.sum(axis=1)[:, None]
    seen = joint > 0
    information = (joint[seen] * np.log2(joint[seen] / independent[seen])).sum()
    found = jensen_shannon(counts(FIRST), counts(SECOND))
    assert found == pytest.approx(information, rel=1e-12)


def test_total_variation_is_what_the_best_rule_gains():
    p, q = counts(FIRST) / len(FIRST), counts(SECOND) / len(SECOND)
    is_first = p > q
    gain = p[is_first].sum() - q[is_first].sum()
    assert total_variation(counts(FIRST), counts(SECOND)) == pytest.approx(gain, rel=1e-12)


def test_equal_shares_have_no_distance_and_disjoint_ones_the_largest():
    equal = [distance(counts(FIRST), 3 * counts(FIRST)) for distance in DISTANCES]
    np.testing.assert_allclose(equal, [0, 0, 0, 0.5, 0], atol=1e-12)
    low, high = np.eye(256, dtype=int)[[0, 255]]
    found = [distance(high, low) for distance in DISTANCES]
    np.testing.assert_array_equal(found, [1, 1, 255, 1, np.inf])


@pytest.mark.parametrize("distance", DISTANCES)
def test_many_histograms_at_once_give_what_each_gives_alone_and_empty_ones_nan(distance):
    first = np.stack([counts(FIRST), counts(SECOND), np.zeros(256, int)])
    second = np.stack([counts(SECOND)] * 3)
    found = distance(first[None], second[None])
    assert found.shape == (1, 3)
    assert found[0, 0] == pytest.approx(distance(first[0], second[0]), rel=1e-12)
    assert np.isnan(found[0, 2])
    assert np.isnan(distance(second[0], first[2]))
