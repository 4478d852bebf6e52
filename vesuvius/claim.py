"""Do voxels with and without ink look the same? The seed project's claim, put to data.

Voxels close to each other are alike, so the histograms of any two regions of papyrus differ, and a
test that counts voxels finds every difference significant. The distance of ink from no ink is
therefore held against that of the same label shifted far away, where it means nothing: what the
place alone does. Only what exceeds all shifted labels counts as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vesuvius.histogram_distance import auc, contrast, jensen_shannon, total_variation, wasserstein
from vesuvius.survey import Survey

Verdict = Literal["confirmed", "nearly", "denied"]

FEWEST_SHIFTS = 19  # a label that means nothing exceeds all of them in at most 1 of 20 cases
VISIBLE = 0.05  # total variation below which two histograms look the same to the eye


@dataclass(frozen=True)
class Distances:
    """How far intensities with and without ink lie apart, for several layers or labels.

    Attributes:
        total_variation: Share of voxels that would have to change, 0..1.
        jensen_shannon: In bits, 0..1.
        wasserstein: In grey levels of 0..255.
        auc: Of intensity as a classifier; above .5 ink is brighter.
        contrast: Difference of the means in pooled standard deviations.
    """

    total_variation: np.ndarray
    jensen_shannon: np.ndarray
    wasserstein: np.ndarray
    auc: np.ndarray
    contrast: np.ndarray


@dataclass(frozen=True, eq=False)
class Comparison:
    """The claim tried on one set of layers.

    Attributes:
        layer: The layer, None for all of them together.
        distances: Of the ink label, every field one number.
        shifted: float64 (S,), Jensen-Shannon divergence of each shifted label there, in bits.
        excess: How far the ink label stands out of all labels, in their standard deviations.
        shifted_excess: float64 (S,), the same of each shifted label, in whichever layer it stands
            out most if a layer was chosen for the ink label too.
    """

    layer: int | None
    distances: Distances
    shifted: np.ndarray
    excess: float
    shifted_excess: np.ndarray

    @property
    def spreads(self) -> float:
        """How many standard deviations of the shifted labels the label exceeds their mean."""
        above = float(self.distances.jensen_shannon - self.shifted.mean())
        spread = float(self.shifted.std(ddof=1))
        if spread > 0:
            return above / spread
        return float("inf") if above > 0 else 0.0

    @property
    def verdict(self) -> Verdict:
        """Whether the claim holds: "nearly" means there is a difference but it is hardly seen."""
        if self.excess <= self.shifted_excess.max():
            return "confirmed"
        return "denied" if self.distances.total_variation >= VISIBLE else "nearly"

    def __str__(self) -> str:
        found, is_chosen = self.distances, self.layer is not None
        where = f"Layer {self.layer}, where ink stands out most" if is_chosen else "All layers"
        least = f"only {found.total_variation:.1%} of the voxels would have to change"
        end = {
            "confirmed": f"and a shifted label stands out as far{' in some layer' * is_chosen}. "
            "The claim that they look the same is confirmed for this data.",
            "nearly": f"further than any of these, but {least} to make them alike. The claim that "
            "they look the same is denied in the letter and confirmed to the eye.",
            "denied": f"further than any of these{', in any layer' * is_chosen}. The claim that "
            "they look the same is denied for this data.",
        }[self.verdict]
        return (
            f"{where}: the histograms with and without ink differ by {found.jensen_shannon:.2g} "
            f"bits (Jensen-Shannon divergence), {abs(self.spreads):.1f} times the spread of "
            f"{len(self.shifted)} shifted labels {'below' if self.spreads < 0 else 'above'} their "
            f"mean of {self.shifted.mean():.2g}, {end}"
        )


@dataclass(frozen=True, eq=False)
class InkContrast:
    """Everything that intensity says about ink in one fragment.

    Attributes:
        ink: int64 (Z, 256), voxels of each value and layer with ink.
        no_ink: int64 (Z, 256), those of the other papyrus.
        shifted: int64 (S, Z, 256), those under each shifted label.
        layers: Distances of each layer, fields (Z,).
        shifted_layers: The same of the shifted labels, fields (S, Z).
        together: The claim for all layers together, as the seed project put it.
        best_layer: The claim for the layer in which the ink label stands out most. Each shifted
            label too is judged by the layer that suits it best, so the choice gives no advantage.
    """

    ink: np.ndarray
    no_ink: np.ndarray
    shifted: np.ndarray
    layers: Distances
    shifted_layers: Distances
    together: Comparison
    best_layer: Comparison


def ink_contrast(survey: Survey) -> InkContrast | None:
    """Compare the voxels with and without ink; None if either kind is missing.

    Shifted labels that leave the papyrus altogether, or cover it, are left out. If fewer than
    `FEWEST_SHIFTS` remain there is nothing to judge by, and the answer is None too.
    """
    if survey.ink is None or (survey.ink == survey.papyrus).all():
        return None
    under = survey.shifted_ink.sum(axis=(1, 2))
    shifted = survey.shifted_ink[(under > 0) & (under < survey.papyrus.sum())]
    if len(shifted) < FEWEST_SHIFTS:
        return None
    no_ink, shifted_rest = survey.papyrus - survey.ink, survey.papyrus - shifted
    layers, shifted_layers = distances(survey.ink, no_ink), distances(shifted, shifted_rest)
    together = distances(survey.ink.sum(axis=0), no_ink.sum(axis=0))
    shifted_together = jensen_shannon(shifted.sum(axis=1), shifted_rest.sum(axis=1))
    return InkContrast(
        ink=survey.ink,
        no_ink=no_ink,
        shifted=shifted,
        layers=layers,
        shifted_layers=shifted_layers,
        together=_compare_together(together, shifted_together),
        best_layer=_compare_layers(layers, shifted_layers.jensen_shannon),
    )


def _compare_together(found: Distances, shifted: np.ndarray) -> Comparison:
    """Hold the distance over all layers against those of the shifted labels, bits (S,)."""
    excess = _excess(found.jensen_shannon, shifted)
    return Comparison(None, found, shifted, float(excess[0]), excess[1:])


def _compare_layers(found: Distances, shifted: np.ndarray) -> Comparison:
    """Choose the layer in which a label stands out most, for each of them: bits (S, Z)."""
    excess = _excess(found.jensen_shannon, shifted)
    best = int(excess[0].argmax())
    return Comparison(
        layer=best,
        distances=Distances(**{name: values[best] for name, values in vars(found).items()}),
        shifted=shifted[:, best],
        excess=float(excess[0, best]),
        shifted_excess=excess[1:].max(axis=1),
    )


def _excess(found: np.ndarray, shifted: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations each of all labels exceeds their mean, (1 + S, ...).

    Label and shifted labels are scaled by the same numbers, so that only their ranks decide.
    """
    labels = np.concatenate([found[None], shifted])
    spread = labels.std(axis=0)
    return (labels - labels.mean(axis=0)) / np.where(spread > 0, spread, 1)


def distances(ink: np.ndarray, no_ink: np.ndarray) -> Distances:
    """Return the distances of counts (..., 256) along the last axis."""
    return Distances(
        total_variation=total_variation(ink, no_ink),
        jensen_shannon=jensen_shannon(ink, no_ink),
        wasserstein=wasserstein(ink, no_ink),
        auc=auc(ink, no_ink),
        contrast=contrast(ink, no_ink),
    )
