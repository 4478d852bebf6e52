"""Do probabilities keep what they promise, and does uncertainty find the errors, in numpy.

All of it is counted piece by piece in bounded memory: `Reliability` compares probabilities with
what came true, `LogitHistogram` fits a temperature, `RiskCoverage` follows the error rate as the
least certain pixels are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.metrics import FloatArray, ProbabilityHistogram

NUM_RELIABILITY_BINS = 16
LEAST_PROB = 1e-7  # float32 cannot tell 1 - prob from 0 below it
LARGEST_LOGIT = float(-np.log(LEAST_PROB))
LOGIT_BINS = 1024
TEMPERATURES = (0.01, 100.0)


def logit(prob: NDArray[np.floating]) -> FloatArray:
    """Return log(p / (1 - p)), float64, of probabilities kept `LEAST_PROB` away from 0 and 1."""
    p = np.clip(prob.astype(np.float64), LEAST_PROB, 1 - LEAST_PROB)
    found: FloatArray = np.log(p) - np.log1p(-p)
    return found


def tempered(prob: NDArray[np.floating], temperature: float) -> FloatArray:
    """Return the probabilities whose logits are divided by `temperature`, float64, above 0.

    The order of pixels stays, so the scores of ranking do.
    """
    found: FloatArray = 1 / (1 + np.exp(-logit(prob) / temperature))
    return found


class Reliability:
    """Sums of probability, truth and loss, from which calibration and loss follow.

    Attributes:
        counts: Pixels in each of `NUM_RELIABILITY_BINS` equal ranges of probability, int64.
        probs: Sum of their probabilities, float64.
        positives: How many of them are positive, int64.
        overlap: Sum of the probabilities of all positive pixels.
        log_loss: Sum of the cross-entropy in nats, probabilities kept `LEAST_PROB` from 0 and 1.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_RELIABILITY_BINS, np.int64)
        self.probs = np.zeros(NUM_RELIABILITY_BINS)
        self.positives = np.zeros(NUM_RELIABILITY_BINS, np.int64)
        self.overlap = 0.0
        self.log_loss = 0.0

    def add(self, prob: NDArray[np.floating], label: NDArray[np.bool_]) -> None:
        """Count more pixels.

        Args:
            prob: Float in 0..1, any shape.
            label: Truth, bool of the same shape.
        """
        p = prob.astype(np.float64).ravel()
        is_positive = label.ravel()
        bins = np.minimum((p * NUM_RELIABILITY_BINS).astype(np.int64), NUM_RELIABILITY_BINS - 1)
        self.counts += np.bincount(bins, minlength=NUM_RELIABILITY_BINS)
        self.probs += np.bincount(bins, weights=p, minlength=NUM_RELIABILITY_BINS)
        self.positives += np.bincount(bins[is_positive], minlength=NUM_RELIABILITY_BINS)
        self.overlap += float(p[is_positive].sum())
        of_truth = np.where(is_positive, p, 1 - p)
        self.log_loss -= float(np.log(np.clip(of_truth, LEAST_PROB, 1 - LEAST_PROB)).sum())

    def __add__(self, other: Reliability) -> Reliability:
        """Return the sums of both sets of pixels together."""
        total = Reliability()
        total.counts = self.counts + other.counts
        total.probs = self.probs + other.probs
        total.positives = self.positives + other.positives
        total.overlap = self.overlap + other.overlap
        total.log_loss = self.log_loss + other.log_loss
        return total

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Return mean probability and share of positives of the bins that hold pixels."""
        used = self.counts > 0
        counts = self.counts[used]
        return self.probs[used] / counts, self.positives[used] / counts

    def expected_error(self) -> float:
        """Return the expected calibration error: |mean probability - share of positives|.

        It is averaged over pixels, by bins of the probability of the positive class.

        Reference: Naeini et al., AAAI 2015, equation 2; Guo et al., ICML 2017, equation 3.
        """
        return float(np.abs(self.probs - self.positives).sum() / max(self.counts.sum(), 1))

    def cross_entropy(self) -> float:
        """Return the mean cross-entropy in nats, without label smoothing."""
        return float(self.log_loss / max(self.counts.sum(), 1))

    def dice_loss(self) -> float:
        """Return 1 - 2 sum(p y) / (sum p + sum y); 0 where both sums are 0."""
        total = float(self.probs.sum() + self.positives.sum())
        return 1 - 2 * self.overlap / total if total else 0.0


class LogitHistogram:
    """Counts of negative and positive pixels by logit, from which a temperature is fitted.

    `counts` and `sums` are (2, 1024): row 0 negatives, row 1 positives; columns are equal ranges of
    the logit, 0.03 wide. Each is taken to lie at its mean, which `sums` keeps.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, LOGIT_BINS), np.int64)
        self.sums = np.zeros((2, LOGIT_BINS))

    def add(self, prob: NDArray[np.floating], label: NDArray[np.bool_]) -> None:
        """Count more pixels: probabilities in 0..1 and their truth, of one shape."""
        z = logit(prob).ravel()
        columns = ((z + LARGEST_LOGIT) * (LOGIT_BINS / (2 * LARGEST_LOGIT))).astype(np.int64)
        columns = np.clip(columns, 0, LOGIT_BINS - 1) + LOGIT_BINS * label.ravel()
        self.counts += np.bincount(columns, minlength=2 * LOGIT_BINS).reshape(2, -1)
        self.sums += np.bincount(columns, weights=z, minlength=2 * LOGIT_BINS).reshape(2, -1)

    def __add__(self, other: LogitHistogram) -> LogitHistogram:
        """Return the histogram of both sets of pixels together."""
        total = LogitHistogram()
        total.counts = self.counts + other.counts
        total.sums = self.sums + other.sums
        return total

    def has_both(self) -> bool:
        """Tell whether there are positive and negative pixels, as a temperature needs."""
        return bool(self.counts.any(axis=1).all())

    def temperature(self) -> float:
        """Return the temperature with the least cross-entropy, within `TEMPERATURES`.

        The cross-entropy of logits z / T is convex in b = 1 / T, with the slope
        sum z (sigmoid(b z) - y), so its root is found by halving the range of log b.

        Raises:
            ValueError: If there is no positive or no negative pixel.

        Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
        """
        if not self.has_both():
            raise ValueError(
                "a temperature needs positive and negative pixels and one kind is missing; give "
                "maps whose label has both"
            )
        used = self.counts > 0
        counts, z = self.counts[used], self.sums[used] / self.counts[used]
        truth = np.broadcast_to([[0.0], [1.0]], self.counts.shape)[used]
        low, high = (float(-np.log(temperature)) for temperature in reversed(TEMPERATURES))
        for _ in range(60):
            middle = (low + high) / 2
            prob = 1 / (1 + np.exp(np.clip(-np.exp(middle) * z, -700, 700)))
            is_falling = np.sum(counts * z * (prob - truth)) < 0
            low, high = (middle, high) if is_falling else (low, middle)
        return float(np.exp(-(low + high) / 2))


class RiskCoverage:
    """How often the pixels are wrong that an uncertainty calls the surest.

    Uncertainties are counted by their fourth root, as only their order matters and most of them
    are close to 0.
    """

    def __init__(self) -> None:
        self._histogram = ProbabilityHistogram()

    def add(self, uncertainty: NDArray[np.floating], is_wrong: NDArray[np.bool_]) -> None:
        """Count more pixels: uncertainties in 0..1 and whether the prediction is wrong there.

        Raises:
            ValueError: If an uncertainty is NaN or outside 0..1.
        """
        self._histogram.add(np.sqrt(np.sqrt(uncertainty)), is_wrong)

    def __add__(self, other: RiskCoverage) -> RiskCoverage:
        """Return the counts of both sets of pixels together."""
        total = RiskCoverage()
        total._histogram = self._histogram + other._histogram
        return total

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Return coverage (share of pixels kept, the surest first) and their error rate.

        One point for each distinct uncertainty that was counted, the last at a coverage of 1.
        """
        per_bin = self._histogram.counts.sum(axis=0)
        used = per_bin > 0
        kept = np.cumsum(per_bin[used])
        wrong = np.cumsum(self._histogram.counts[1, used])
        return kept / max(per_bin.sum(), 1), wrong / kept

    def area(self) -> float:
        """Return the area under the curve, a step function: the mean error rate over coverages.

        Reference: Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation, ICLR 2019.
        """
        coverage, risk = self.curve()
        return float(np.sum(risk * np.diff(coverage, prepend=0.0)))

    def error_rate(self) -> float:
        """Return the share of wrong pixels among all; 0 if there are none."""
        counts = self._histogram.counts.sum(axis=1)
        return float(counts[1] / max(counts.sum(), 1))

    def least_area(self) -> float:
        """Return the area of an uncertainty that puts every wrong pixel last.

        With r the share of wrong pixels it is r + (1 - r) log(1 - r).
        """
        right = 1 - self.error_rate()
        return 1 - right + right * float(np.log(right)) if right else 1.0

    def finds_errors(self) -> float:
        """Return how often a wrong pixel is less sure than a right one: the ROC AUC, 0.5 blind."""
        return self._histogram.roc_auc()
