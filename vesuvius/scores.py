"""The scores of one map, counted in two passes over its bands.

The first counts what needs no threshold. The second is given threshold and temperature, which come
from other maps, and counts what follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.calibration import LogitHistogram, Reliability, RiskCoverage, tempered
from core.metrics import THRESHOLDS, ProbabilityHistogram, fbeta
from vesuvius.postprocess import keep_components
from vesuvius.prediction_folder import UNCERTAINTIES
from vesuvius.scored import Advance, Band, ScoredMap
from vesuvius.similarity import StructuralSimilarity

CONFIDENCE = "distance from the threshold"
CURVE_STEP = 16  # bins between the points of the curve that are written down


@dataclass(frozen=True)
class Cleaning:
    """What is done to a mask after the threshold.

    Args:
        hysteresis: Share of the threshold, between 0 and 1, down to which ink is kept where it
            touches ink above the threshold; None for no hysteresis.
        min_component: Fewest pixels of a component that is kept; None keeps all.
    """

    hysteresis: float | None = None
    min_component: int | None = None

    def __post_init__(self) -> None:
        if self.hysteresis is not None and not 0 < self.hysteresis < 1:
            raise ValueError(f"hysteresis {self.hysteresis} is not allowed; above 0 and below 1")
        if self.min_component is not None and self.min_component < 1:
            raise ValueError(f"min_component {self.min_component} is below 1; give pixels")


class Counts:
    """What the first pass counts of a map.

    Args:
        scored: The map.
        advance: Told the number of rows done since its last call.

    Attributes:
        histogram: Probabilities of ink and of the rest.
        reliability: Probabilities against truth.
        logits: For the temperature of other maps.
        ssim: Mean structural similarity of map and label.
        ssim_of_empty: That of a map without any ink and the label.

    Raises:
        ValueError: If a probability is NaN or outside 0..1; the file is named.
    """

    def __init__(self, scored: ScoredMap, advance: Advance | None = None) -> None:
        self.histogram, self.reliability = ProbabilityHistogram(), Reliability()
        self.logits = LogitHistogram()
        height = len(scored.label)
        similarity, to_empty = StructuralSimilarity(height), StructuralSimilarity(height)
        for band in scored.bands(advance):
            try:
                self.histogram.add(band.prob, band.label, band.valid)
            except ValueError as error:
                raise ValueError(f"{scored.prob.path}: {error}") from error
            prob, label = band.prob[band.valid], band.label[band.valid]
            self.reliability.add(prob, label)
            self.logits.add(prob, label)
            seen = np.where(band.valid, band.prob, 0)
            truth = band.label & band.valid
            similarity.add(seen, truth, band.valid)
            to_empty.add(np.zeros_like(seen), truth, band.valid)
        self.ssim, self.ssim_of_empty = similarity.mean(), to_empty.mean()

    @property
    def num_pixels(self) -> int:
        """How many pixels count."""
        return int(self.histogram.counts.sum())

    @property
    def is_flat(self) -> bool:
        """Whether no threshold can tell its pixels apart, as their probabilities are all alike."""
        used = np.flatnonzero(self.histogram.counts.any(axis=0))
        return len(used) > 0 and int(used[-1] - used[0]) <= 1

    @property
    def ink_share(self) -> float:
        """Share of ink among them."""
        return float(self.histogram.counts[1].sum() / max(self.num_pixels, 1))

    def describe(self) -> dict[str, Any]:
        """Return the scores that need no threshold, by name."""
        best_threshold, best_f05 = self.histogram.best_threshold()
        bce, dice = self.reliability.cross_entropy(), self.reliability.dice_loss()
        curve = np.stack([THRESHOLDS, *self.histogram.precision_recall()], axis=1)
        return {
            "pixels": self.num_pixels,
            "ink_share": self.ink_share,
            "is_flat": self.is_flat,
            "loss": (bce + dice) / 2,
            "bce": bce,
            "dice_loss": dice,
            "best_f05": best_f05,
            "best_threshold": best_threshold,
            "average_precision": self.histogram.average_precision(),
            "roc_auc": self.histogram.roc_auc(),
            "ssim": self.ssim,
            "ssim_of_empty": self.ssim_of_empty,
            "calibration_error": self.reliability.expected_error(),
            "threshold_precision_recall": curve[::CURVE_STEP].tolist(),
        }


class Decisions:
    """What the second pass counts of a map: what follows from threshold and temperature.

    Args:
        scored: The map.
        threshold: Probability from which a pixel is ink.
        temperature: Its logits are divided by; None if there is none.
        cleaning: What is tried on the mask.
        advance: Told the number of rows done since its last call.

    Attributes:
        ink: The mask, bool (Y, X), inside the papyrus.
        cleaned: F0.5 by name of what was done to the mask.
        reliability: Probabilities after the temperature against truth; None without one.
        risks: By name of the uncertainty, how often the surest pixels are wrong.
    """

    def __init__(
        self,
        scored: ScoredMap,
        threshold: float,
        temperature: float | None,
        cleaning: Cleaning = Cleaning(),
        advance: Advance | None = None,
    ) -> None:
        self.threshold, self.temperature = threshold, temperature
        self.ink = np.zeros(scored.label.shape, bool)
        faint = None if cleaning.hysteresis is None else np.zeros_like(self.ink)
        self.reliability = None if temperature is None else Reliability()
        self.risks: dict[str, RiskCoverage] = {}
        for band in scored.bands(advance):
            self.ink[band.rows] = (band.prob >= threshold) & band.valid
            if faint is not None:
                low = threshold * cleaning.hysteresis
                faint[band.rows] = (band.prob >= low) & band.valid
            if self.reliability is not None and temperature is not None:
                prob = tempered(band.prob[band.valid], temperature)
                self.reliability.add(prob, band.label[band.valid])
            self._add_risks(band)
        self.precision, self.recall, self.f05 = _agreement(self.ink, scored)
        self.cleaned = {
            name: _agreement(mask, scored)[2]
            for name, mask in _cleaned(self.ink, faint, cleaning.min_component)
        }

    def _add_risks(self, band: Band) -> None:
        """Count how uncertain right and wrong pixels are."""
        prob, label = band.prob[band.valid], band.label[band.valid]
        is_wrong = (prob >= self.threshold) != label
        uncertainties = {CONFIDENCE: _closeness(prob, self.threshold)}
        if band.uncertainty is not None:
            pages = (page[band.valid] for page in band.uncertainty)
            uncertainties |= dict(zip(UNCERTAINTIES, pages, strict=True))
        for name, values in uncertainties.items():
            # float32 may round an entropy of one bit up
            self.risks.setdefault(name, RiskCoverage()).add(np.minimum(values, 1), is_wrong)

    def describe(self) -> dict[str, Any]:
        """Return the scores by name."""
        after = self.reliability
        confidence = self.risks[CONFIDENCE]
        return {
            "threshold": self.threshold,
            "f05": self.f05,
            "precision": self.precision,
            "recall": self.recall,
            "temperature": self.temperature,
            "calibration_error_tempered": None if after is None else after.expected_error(),
            "bce_tempered": None if after is None else after.cross_entropy(),
            "cleaned_f05": self.cleaned,
            "wrong_share": confidence.error_rate(),
            "uncertainty": {
                name: {"finds_errors": risk.finds_errors(), "risk_area": risk.area()}
                for name, risk in self.risks.items()
            },
            "least_risk_area": confidence.least_area(),
        }


def _closeness(prob: NDArray[np.floating], threshold: float) -> NDArray[np.floating]:
    """Return how close probabilities are to the threshold: 1 there, 0 at 0 and 1."""
    if threshold >= 1:
        return prob
    return np.where(prob < threshold, prob / threshold, (1 - prob) / (1 - threshold))


def _cleaned(
    ink: NDArray[np.bool_], faint: NDArray[np.bool_] | None, min_component: int | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the mask after each cleaning that was asked for, and after both."""
    if faint is not None:
        yield "hysteresis", keep_components(faint, 1, ink)
    if min_component is not None:
        yield "min_component", keep_components(ink, min_component)
    if faint is not None and min_component is not None:
        yield "both", keep_components(faint, min_component, ink)


def _agreement(ink: NDArray[np.bool_], scored: ScoredMap) -> tuple[float, float, float]:
    """Return precision, recall and F0.5 of a mask that is False outside the papyrus."""
    tp = fp = fn = 0
    for start in range(0, len(ink), 256):
        rows = slice(start, start + 256)
        label = scored.label[rows] & scored.valid[rows]
        tp += int(np.count_nonzero(ink[rows] & label))
        fp += int(np.count_nonzero(ink[rows] & ~label))
        fn += int(np.count_nonzero(label & ~ink[rows]))
    return tp / max(tp + fp, 1), tp / max(tp + fn, 1), float(fbeta(tp, fp, fn))
