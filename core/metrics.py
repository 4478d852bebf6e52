"""Scores of binary segmentation from histograms, in numpy.

A `ProbabilityHistogram` takes predictions piece by piece in bounded memory and afterwards answers
for every threshold at once. Its bins are 1/1024 wide: a power of two, so that `prob >= k / 1024`
is decided without rounding and every score at a bin threshold is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 1024
THRESHOLDS: NDArray[np.float64] = np.arange(NUM_BINS + 1) / NUM_BINS

FloatArray = NDArray[np.float64]


def fbeta(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, beta: float = 0.5) -> FloatArray:
    """Return F-beta, (1 + b^2) tp / ((1 + b^2) tp + b^2 fn + fp), elementwise.

    It is 0 where nothing is positive and nothing was predicted.

    Args:
        tp: True positives, any shape, >= 0.
        fp: False positives, same shape.
        fn: False negatives, same shape.
        beta: Weight of recall against precision; below 1 precision counts more.
    """
    hits = (1 + beta**2) * np.asarray(tp, dtype=np.float64)
    return _ratio(hits, hits + beta**2 * np.asarray(fn) + np.asarray(fp), empty=0.0)


class ProbabilityHistogram:
    """Counts of positive and negative pixels by predicted probability.

    `counts` is int64 (2, 1025): row 0 negatives, row 1 positives; column k holds the pixels with
    k/1024 <= prob < (k+1)/1024, the last column those with prob = 1. Thresholds are the 1025
    values of `THRESHOLDS`; a pixel is predicted positive where `prob >= threshold`.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, NUM_BINS + 1), dtype=np.int64)

    def add(
        self,
        prob: NDArray[np.floating],
        label: NDArray[np.bool_],
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one more piece of a prediction.

        Args:
            prob: Float in 0..1, any shape.
            label: Truth, same shape; nonzero is positive.
            valid: Pixels that count, same shape; all of them if None. Others may hold anything.

        Raises:
            ValueError: If shapes differ or a valid probability is NaN or outside 0..1.
        """
        is_valid = np.ones(prob.shape, dtype=bool) if valid is None else valid.astype(bool)
        if not prob.shape == label.shape == is_valid.shape:
            raise ValueError(
                f"prob {prob.shape}, label {label.shape} and valid {is_valid.shape} differ in "
                "shape; give maps of the same pixels"
            )
        chosen = prob[is_valid]
        if chosen.size == 0:
            return
        if not (chosen.min() >= 0 and chosen.max() <= 1):  # also catches NaN
            raise ValueError(
                f"prob is between {chosen.min()} and {chosen.max()}, allowed is 0..1 without NaN; "
                "apply the sigmoid and check the checkpoint"
            )
        if chosen.dtype == np.float16:
            chosen = chosen.astype(np.float32)
        columns = (chosen * NUM_BINS).astype(np.int64)
        columns += (NUM_BINS + 1) * (label[is_valid] != 0)
        self.counts += np.bincount(columns, minlength=self.counts.size).reshape(self.counts.shape)

    def __add__(self, other: ProbabilityHistogram) -> ProbabilityHistogram:
        """Return the histogram of both sets of pixels together."""
        total = ProbabilityHistogram()
        total.counts = self.counts + other.counts
        return total

    def confusion(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return tp, fp and fn, int64 (1025,), at every threshold of `THRESHOLDS`."""
        fp, tp = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]
        return tp, fp, tp[0] - tp

    def fbeta_at(self, threshold: float, beta: float = 0.5) -> float:
        """Return F-beta at the bin threshold nearest to `threshold`.

        Raises:
            ValueError: If `threshold` is outside 0..1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, allowed is 0..1")
        return float(fbeta(*self.confusion(), beta)[round(threshold * NUM_BINS)])

    def best_threshold(self, beta: float = 0.5) -> tuple[float, float]:
        """Return the threshold with the highest F-beta and that F-beta.

        Of several equally good thresholds the middle one is taken, away from the edges at which
        the score would fall.
        """
        scores = fbeta(*self.confusion(), beta)
        best = np.flatnonzero(scores == scores.max())
        middle = best[len(best) // 2]
        return float(THRESHOLDS[middle]), float(scores[middle])

    def precision_recall(self) -> tuple[FloatArray, FloatArray]:
        """Return precision and recall, (1025,), at every threshold of `THRESHOLDS`.

        Precision is 1 where nothing is predicted; recall is 0 where nothing is positive.
        """
        tp, fp, fn = self.confusion()
        return _ratio(tp, tp + fp, empty=1.0), _ratio(tp, tp + fn, empty=0.0)

    def average_precision(self) -> float:
        """Return the area under the precision-recall curve as a step function.

        It is the sum over thresholds, from high to low, of the precision times the gain in recall.
        """
        precision, recall = self.precision_recall()
        return float(np.sum(precision * -np.diff(recall, append=0.0)))

    def roc_auc(self) -> float:
        """Return how often a positive pixel has the higher probability of the two classes.

        The area under the receiver operating characteristic; pairs in one bin count half, and it is
        one half where a class is missing.

        Reference: Hanley and McNeil, Radiology 1982.
        """
        negatives, positives = self.counts.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        below = np.cumsum(negatives) - negatives
        return float(np.sum(positives * (below + negatives / 2)) / pairs) if pairs else 0.5

    def share_at_least(self) -> FloatArray:
        """Return the share of all pixels that each threshold calls positive, (1025,), 1 to 0."""
        tp, fp, _ = self.confusion()
        return _ratio(tp + fp, np.full(tp.shape, self.counts.sum()), empty=0.0)


def _ratio(numerator: ArrayLike, denominator: ArrayLike, empty: float) -> FloatArray:
    """Return numerator / denominator as float64, `empty` where the denominator is 0."""
    denominator = np.asarray(denominator, dtype=np.float64)
    out = np.full(denominator.shape, empty)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out
