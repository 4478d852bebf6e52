"""Pictures of an evaluation, as the bytes of PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.metrics import NUM_BINS
from core.page import plot_bytes
from core.pictures import captioned, overlay, png_bytes, shrink, side_by_side, stacked

if TYPE_CHECKING:
    from vesuvius.evaluate import Evaluated
    from vesuvius.scored import Band, ScoredMap

MAX_SIDE = 1200
MAX_PANEL_SIDE = 500  # two or three beside each other are no wider than a screen


def strip_picture(one: Evaluated) -> bytes:
    """Return the label above the prediction, or to its left if they are higher than wide.

    So it is at most one screen wide.
    """
    height, width = one.scored.label.shape
    is_high = height > width
    max_side = MAX_PANEL_SIDE * height // width if is_high else MAX_SIDE
    label = captioned(_small_label(one.scored, min(max_side, MAX_SIDE)), "label")
    prob = _small_prob(one.scored, min(max_side, MAX_SIDE))
    prob = captioned(prob, "predicted probability of ink: black 0, white 1")
    return png_bytes(side_by_side(label, prob) if is_high else stacked(label, prob))


def found_picture(one: Evaluated) -> bytes:
    """Return the mask laid over the label."""
    ink = shrink(one.decisions.ink, MAX_SIDE) >= 128
    return png_bytes(overlay(ink, _small_label(one.scored) >= 128))


def curves_picture(one: Evaluated) -> bytes:
    """Return precision against recall, reliability and risk against coverage in a row."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = plot.subplots(1, 3)
    _draw_precision_recall(left, one)
    _draw_reliability(middle, one)
    _draw_risk(right, one)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return plot_bytes(plot)


def compare_picture(several: Sequence[Evaluated]) -> bytes:
    """Return the label beside the maps of one piece made in several ways, with their scores."""
    from matplotlib.figure import Figure

    label = _small_label(several[0].scored, MAX_PANEL_SIDE)
    panels = [("label", label)]
    for one in several:
        before = f"ECE {one.counts.reliability.expected_error():.3f}"
        after = one.decisions.reliability
        error = before if after is None else f"{before}, tempered {after.expected_error():.3f}"
        title = f"{_number(one)}\nF0.5 {one.decisions.f05:.3f}, {error}"
        panels.append((title, _small_prob(one.scored, MAX_PANEL_SIDE)))
    height = 4.2 * label.shape[0] / label.shape[1] + 0.8
    plot = Figure(figsize=(4.2 * len(panels), height), layout="compressed")
    for axes, (title, picture) in zip(plot.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return plot_bytes(plot)


def _number(one: Evaluated) -> str:
    number = one.scored.way.num_predictions
    return "one prediction" if number == 1 else f"mean of {number} predictions"


def small_map(
    scored: ScoredMap,
    pick: Callable[[Band], np.ndarray],
    max_side: int = MAX_SIDE,
    white: float = 1.0,
) -> np.ndarray:
    """Return a map as a small gray picture, uint8, black outside the papyrus.

    Args:
        scored: The map.
        pick: What is shown of each band of it, (rows, X).
        max_side: Most pixels of a side.
        white: Value that is white.
    """
    return shrink(_Rows(scored, pick), max_side, white)


def _small_label(scored: ScoredMap, max_side: int = MAX_SIDE) -> np.ndarray:
    return small_map(scored, lambda band: band.label, max_side)


def _small_prob(scored: ScoredMap, max_side: int = MAX_SIDE) -> np.ndarray:
    return small_map(scored, lambda band: band.prob, max_side)


class _Rows:
    """A map as an array of which rows are read when they are asked for, 0 outside the papyrus."""

    def __init__(self, scored: ScoredMap, pick: Callable[[Band], np.ndarray]) -> None:
        self.shape = scored.label.shape
        self._scored, self._pick = scored, pick

    def __getitem__(self, rows: slice) -> np.ndarray:
        band = self._scored.band(rows.start, min(rows.stop, self.shape[0]))
        return np.where(band.valid, self._pick(band), 0)


def _draw_precision_recall(axes: Any, one: Evaluated) -> None:
    precision, recall = one.counts.histogram.precision_recall()
    # As steps, and without the thresholds that call nothing ink: a line to precision 1 there would
    # make a flat map, which cannot rank pixels at all, look better than chance.
    some = one.counts.histogram.share_at_least() > 0
    text = f"AP {one.counts.histogram.average_precision():.3f}"
    text += " (flat map)" if one.counts.is_flat else ""
    axes.plot([*recall[some], 0], [*precision[some], precision[some][-1]],
              drawstyle="steps-post", label=text)  # fmt: skip
    axes.axhline(one.counts.ink_share, color="gray", ls=":", label="chance")
    chosen = one.decisions
    best = round(one.counts.histogram.best_threshold()[0] * NUM_BINS)
    axes.plot(chosen.recall, chosen.precision, "o", label=f"threshold, F0.5 {chosen.f05:.3f}")
    axes.plot(recall[best], precision[best], "k+", ms=10, label="best threshold")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))


def _draw_reliability(axes: Any, one: Evaluated) -> None:
    axes.plot([0, 1], [0, 1], color="gray", ls=":")
    error = one.counts.reliability.expected_error()
    axes.plot(*one.counts.reliability.curve(), "o-", label=f"as predicted, ECE {error:.3f}")
    after, temperature = one.decisions.reliability, one.decisions.temperature
    if after is not None:
        text = f"temperature {temperature:.2f}, ECE {after.expected_error():.3f}"
        axes.plot(*after.curve(), "s--", label=text)
    axes.set(xlabel="mean probability", ylabel="share of ink", xlim=(0, 1), ylim=(0, 1.02))


def _draw_risk(axes: Any, one: Evaluated) -> None:
    for name, risk in one.decisions.risks.items():
        axes.plot(*risk.curve(), label=f"{name}, area {risk.area():.4f}")
    axes.set(xlabel="coverage (surest pixels kept)", ylabel="share of wrong pixels", xlim=(0, 1))
