"""Thresholds chosen on other pieces."""

from __future__ import annotations

import numpy as np
import pytest

from core.metrics import ProbabilityHistogram, fbeta
from vesuvius.threshold import PERCENTILES, check_number, choose, threshold_of


def piece(seed: int, shift: float = 0.0, ink: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.random(6000) < ink
    return np.clip(rng.normal(0.25 + shift + 0.3 * label, 0.1), 0, 1).astype(np.float32), label


def histogram_of(prob: np.ndarray, label: np.ndarray) -> ProbabilityHistogram:
    histogram = ProbabilityHistogram()
    histogram.add(prob, label)
    return histogram


def f05(prob: np.ndarray, label: np.ndarray, threshold: float) -> float:
    ink = prob >= threshold
    return float(fbeta((ink & label).sum(), (ink & ~label).sum(), (~ink & label).sum()))


def test_value_is_the_best_over_the_other_pieces_together():
    pieces = [piece(0), piece(1, 0.05)]
    prob, label = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    found = choose("value", [histogram_of(*one) for one in pieces])
    best = max(f05(prob, label, k / 1024) for k in range(1025))
    assert f05(prob, label, found) == pytest.approx(best, abs=1e-12)


def test_percentile_is_the_best_of_all_tried_by_counting_pixels():
    """The slow twin: each percentile of each map, the threshold found by counting pixels."""
    pieces = [piece(0), piece(1, 0.2, 0.2)]
    histograms = [histogram_of(*one) for one in pieces]
    candidates = np.arange(1025) / 1024
    shares = [np.array([(prob >= c).mean() for c in candidates]) for prob, _ in pieces]

    def score(percentile: float) -> float:
        scores = []
        for (prob, label), share in zip(pieces, shares, strict=True):
            threshold = candidates[np.argmax(share <= 1 - percentile / 100 + 1e-12)]
            scores.append(f05(prob, label, threshold))
        return float(np.mean(scores))

    found = choose("percentile", histograms)
    assert score(found) == pytest.approx(max(score(p) for p in PERCENTILES[100:180]), abs=1e-12)
    assert 100 * (1 - 0.2) < found < 100 * (1 - 0.08)


def test_percentile_follows_a_map_that_is_brighter_and_value_does_not():
    dark, bright = histogram_of(*piece(0)), histogram_of(*piece(1, 0.2))
    numbers = {rule: choose(rule, [dark]) for rule in ("value", "percentile")}
    thresholds = {rule: threshold_of(rule, number, bright) for rule, number in numbers.items()}
    assert thresholds["value"] == numbers["value"]
    assert thresholds["percentile"] == pytest.approx(thresholds["value"] + 0.2, abs=0.05)
    scores = {rule: bright.fbeta_at(found) for rule, found in thresholds.items()}
    assert scores["percentile"] > scores["value"] + 0.1


def test_percentile_leaves_no_more_than_its_share():
    prob, label = piece(3)
    threshold = threshold_of("percentile", 90, histogram_of(prob, label))
    assert (prob >= threshold).mean() <= 0.1 < (prob >= threshold - 1 / 1024).mean()
    nothing = histogram_of(np.ones(10, np.float32), np.ones(10, bool))
    assert threshold_of("percentile", 90, nothing) == 1


@pytest.mark.parametrize(
    ("rule", "number"), [("value", 0), ("value", 1.0), ("percentile", 100), ("percentile", -1)]
)
def test_numbers_outside_the_range_are_refused(rule, number):
    with pytest.raises(ValueError, match=f"outside the range of rule '{rule}'"):
        check_number(rule, number)


def test_numbers_in_the_range_are_taken():
    check_number("value", 0.5)
    check_number("percentile", 99.5)
