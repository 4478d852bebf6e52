"""From which probability a pixel is ink: chosen on other pieces than the one that is scored.

Two rules. *value*: one probability for all maps, that with the best F0.5 over the other pieces
together. *percentile*: the same share of every map is ink; the percentile is that with the best
mean F0.5 over the other pieces. The second does not mind maps that are brighter or darker as a
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from core.metrics import THRESHOLDS, ProbabilityHistogram, fbeta

Rule = Literal["value", "percentile"]
PERCENTILES = np.arange(50, 100, 0.25)
FLAT = (
    "the map is flat: all papyrus has about the same probability, so no threshold finds ink in it; "
    "check that the model has learned (its previews) and sees the layers it was trained on"
)


def choose(rule: Rule, others: Sequence[ProbabilityHistogram]) -> float:
    """Return the rule's number, a probability or a percentile, that suits the other pieces best.

    Args:
        rule: Which rule.
        others: Histograms of pieces other than the one to be scored, at least one.
    """
    if rule == "value":
        return sum(others[1:], others[0]).best_threshold()[0]
    scores = np.mean([_scores_at_percentiles(histogram) for histogram in others], axis=0)
    best = np.flatnonzero(scores == scores.max())
    return float(PERCENTILES[best[len(best) // 2]])


def threshold_of(rule: Rule, number: float, histogram: ProbabilityHistogram) -> float:
    """Return the probability from which a pixel of one map is ink.

    Args:
        rule: Which rule.
        number: What it was told: a probability in 0..1, or a percentile in 0..100.
        histogram: The map's; its labels are not looked at.
    """
    if rule == "value":
        return number
    return float(THRESHOLDS[_bin_at(np.array([number]), histogram)[0]])


def check_number(rule: Rule, number: float) -> None:
    """Raise ValueError if a rule cannot be told this number by a user."""
    top = 1 if rule == "value" else 100
    if not 0 < number < top:
        raise ValueError(
            f"threshold {number} is outside the range of rule {rule!r}: above 0 and below {top}"
        )


def _scores_at_percentiles(histogram: ProbabilityHistogram) -> np.ndarray:
    """Return F0.5 at each of `PERCENTILES`."""
    return fbeta(*histogram.confusion())[_bin_at(PERCENTILES, histogram)]


def _bin_at(percentiles: np.ndarray, histogram: ProbabilityHistogram) -> np.ndarray:
    """Return the lowest bin thresholds that leave no more than 100 - percentile % as ink.

    A map whose brightest bin alone is more than that is cut at 1.
    """
    share = histogram.share_at_least()
    is_too_large = share > (1 - percentiles[:, None] / 100) + 1e-12
    return np.minimum(is_too_large.sum(axis=1), len(share) - 1)
