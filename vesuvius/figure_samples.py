"""What averaging Monte Carlo samples changes, and whether their spread finds the wrong pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.calibration import Reliability, RiskCoverage
from core.pictures import overlay
from vesuvius.evaluate import Evaluated, averages, score
from vesuvius.evaluation_plots import small_map
from vesuvius.figure import check_target, write_figure
from vesuvius.folds import Piece, hold_out_stripe
from vesuvius.prediction_folder import UNCERTAINTIES
from vesuvius.scored import ScoredMap, Truths, scored_predictions
from vesuvius.scores import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

KIND = "samples"
GAP = 32  # px between the halves of a fragment that tell each other temperature and threshold
SPREAD = UNCERTAINTIES[0]
MAX_SIDE = 600
BRIGHT_QUANTILE = 0.995
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito


@dataclass(frozen=True, eq=False)
class Averaged:
    """The map of one way to predict the fragment.

    Attributes:
        title: How many predictions it is the mean of, in words.
        whole: All of it.
        pieces: What was scored of it.
    """

    title: str
    whole: ScoredMap
    pieces: list[Evaluated]

    def before(self) -> Reliability:
        """Return probabilities against truth, all pieces together."""
        return sum((one.counts.reliability for one in self.pieces), Reliability())

    def after(self) -> Reliability | None:
        """Return the same after each piece's temperature; None if one has none."""
        found = [one.decisions.reliability for one in self.pieces]
        return None if None in found else sum(found, Reliability())

    def risks(self) -> dict[str, RiskCoverage]:
        """Return how often the surest pixels are wrong, by name of the uncertainty."""
        names = self.pieces[0].decisions.risks
        return {
            name: sum((one.decisions.risks[name] for one in self.pieces), RiskCoverage())
            for name in names
        }

    def f05(self) -> float:
        """Return the mean F0.5 of the pieces."""
        return float(np.mean([one.decisions.f05 for one in self.pieces]))

    def describe(self) -> dict[str, Any]:
        """Return its numbers, all pieces together, for the .json."""
        after, risks = self.after(), self.risks()
        return {
            "num_predictions": self.whole.way.num_predictions,
            "source": str(self.whole.source),
            "f05": self.f05(),
            "thresholds": [one.decisions.threshold for one in self.pieces],
            "temperatures": [one.decisions.temperature for one in self.pieces],
            "calibration_error": self.before().expected_error(),
            "calibration_error_tempered": None if after is None else after.expected_error(),
            "wrong_share": risks[CONFIDENCE].error_rate(),
            "least_risk_area": risks[CONFIDENCE].least_area(),
            "uncertainty": {
                name: {"finds_errors": risk.finds_errors(), "risk_area": risk.area()}
                for name, risk in risks.items()
            },
        }


def samples(
    predictions: tuple[Path, ...],
    /,
    out: Path,
    truth: tuple[Path, ...] = (),
    held_out: Path | None = None,
) -> None:
    """Draw the averages of few and many Monte Carlo samples beside the label, and what they know.

    Give predictions of one labelled fragment made with, say, 1, 60 and 360 samples. Shown are the
    maps, how far the samples disagree, calibration before and after a temperature, and how the
    share of wrong pixels falls as the least sure are left out. Temperature and threshold come from
    pixels other than those scored: from the predictions of further fragments made in the same way,
    or else each half of the fragment tells the other. If one half has all the ink there is no
    temperature, and the threshold is the model's. The numbers are written beside the picture,
    as .json.

    Args:
        predictions: Folders written by `vesuvius predict`; the first names the fragment shown.
        out: The .png to write.
        truth: Labelled fragments to score predictions of the same name against; by default the
            fragment that was predicted.
        held_out: Run that predicted the fragments: of those it was trained on, only the pieces it
            held out count.

    Raises:
        FileNotFoundError: If a prediction or a labelled fragment does not exist.
        ValueError: If predictions, labels and run do not fit each other, or `out` is another file.
    """
    check_target(out, KIND)
    if not predictions:
        raise ValueError("no prediction given; name folders written by `vesuvius predict`")
    truths = Truths(truth)
    maps = [one for folder in predictions for one in scored_predictions(folder, truths, held_out)]
    truths.check_all_used()
    shown = [scored for scored in maps if scored.title == maps[0].title]
    is_alone = len(shown) == len(maps)
    evaluated = score([half for scored in maps for half in halves(scored)] if is_alone else maps)
    first = {scored.way.key: scored for scored in shown}.values()
    ways = [
        Averaged(
            _title(scored, shown), scored, [e for e in evaluated if _is_part(e.scored, scored)]
        )
        for scored in sorted(first, key=lambda scored: scored.way.num_predictions)
    ]
    from_where = "the other half of the fragment" if is_alone else "predictions of other fragments"
    if len(evaluated) == len(shown):
        from_where = "the model alone, without temperature: half of the fragment lacks ink"
    write_figure(out, KIND, _draw(ways, from_where), {
        "fragment": shown[0].title,
        "temperature_and_threshold_from": from_where,
        "ways": [way.describe() for way in ways],
        "averages": averages(evaluated),
        "pieces": [one.describe() for way in ways for one in way.pieces],
    })  # fmt: skip


def halves(scored: ScoredMap) -> list[ScoredMap]:
    """Return both halves of a map, some pixels apart; the map itself if one would lack ink."""
    cut = hold_out_stripe({scored.name: scored.valid}, None, 2, 0, GAP)
    found = [_part(scored, piece) for piece in cut]
    has_both = all(
        (one.label & one.valid).any() and (~one.label & one.valid).any() for one in found
    )
    return found if has_both and len(found) == 2 else [scored]


def _part(scored: ScoredMap, piece: Piece) -> ScoredMap:
    """Return a piece of a map; its rows and columns are counted within the map."""
    down, right = (scored.piece.y_start, scored.piece.x_start) if scored.piece else (0, 0)
    placed = replace(
        piece,
        y_start=piece.y_start + down,
        y_stop=piece.y_stop + down,
        x_start=piece.x_start + right,
        x_stop=piece.x_stop + right,
    )
    label, valid = scored.label[piece.slices], scored.valid[piece.slices]
    return replace(scored, piece=placed, label=label, valid=valid)


def _title(scored: ScoredMap, shown: Sequence[ScoredMap]) -> str:
    """Return how many predictions a map is of, and its folder if another is of as many."""
    number = scored.way.num_predictions
    title = "one prediction" if number == 1 else f"mean of {number}"
    is_alone = sum(other.way.num_predictions == number for other in shown) == 1
    return title if is_alone else f"{title} ({scored.source.name})"


def _is_part(scored: ScoredMap, whole: ScoredMap) -> bool:
    return (scored.source, scored.name) == (whole.source, whole.name)


def _draw(ways: Sequence[Averaged], from_where: str) -> Figure:
    """Return maps, disagreement and curves, a row each."""
    from matplotlib.figure import Figure

    height, width = ways[0].whole.label.shape
    panel = min(3.3, 3.3 * height / width + 0.3)
    plot = Figure(figsize=(3.5 * (len(ways) + 1), 2 * panel + 5.9), layout="constrained")
    maps, spreads, curves = plot.subfigures(3, 1, height_ratios=[panel, panel, 4.7])
    _draw_maps(maps, ways)
    _draw_spreads(spreads, ways)
    left, right = curves.subplots(1, 2)
    _draw_reliability(left, ways)
    _draw_risk(right, ways)
    plot.suptitle(f"{ways[0].whole.title}: averages of samples, and how sure they are", fontsize=13)
    plot.supxlabel(f"Temperature and threshold come from {from_where}.", fontsize=9)
    return plot


def _draw_maps(row: SubFigure, ways: Sequence[Averaged]) -> None:
    """Draw the label and the averages."""
    label, *columns = row.subplots(1, len(ways) + 1)
    first = ways[0].whole
    shown = _show(
        label, small_map(first, lambda band: band.label, MAX_SIDE) / 255, "label: ink white"
    )
    for axes, way in zip(columns, ways, strict=True):
        picture = small_map(way.whole, lambda band: band.prob, MAX_SIDE) / 255
        shown = _show(axes, picture, f"{way.title}, F0.5 {way.f05():.3f}")
    row.colorbar(shown, ax=columns, label="probability of ink", shrink=0.85, pad=0.01)


def _draw_spreads(row: SubFigure, ways: Sequence[Averaged]) -> None:
    """Draw what is wrong in the last average, and the standard deviation of each."""
    wrong, *columns = row.subplots(1, len(ways) + 1)
    last = ways[-1]
    picture = overlay(_ink(last), small_map(last.whole, lambda band: band.label, MAX_SIDE) >= 128)
    _show(wrong, picture, f"{last.title}: found white,\nmissed blue, invented red")
    spreads = [
        small_map(way.whole, lambda band: band.uncertainty[0], MAX_SIDE, white=0.5) * (0.5 / 255)
        if way.whole.uncertainty
        else None
        for way in ways
    ]
    drawn = [spread for spread in spreads if spread is not None]
    bright = max((np.quantile(spread, BRIGHT_QUANTILE) for spread in drawn), default=0) or 0.5
    shown = None
    for axes, way, spread in zip(columns, ways, spreads, strict=True):
        if spread is None:
            axes.text(0.5, 0.5, "one prediction\nhas no spread", ha="center", va="center")
            axes.set_axis_off()
        else:
            shown = _show(axes, spread, f"spread, {way.title}", "viridis", float(bright))
    if shown is not None:
        row.colorbar(shown, ax=columns, label=SPREAD, shrink=0.85, pad=0.01)


def _ink(way: Averaged) -> np.ndarray:
    """Return the mask of a whole map at the mean of its pieces' thresholds, as small as drawn."""
    threshold = float(np.mean([one.decisions.threshold for one in way.pieces]))
    return small_map(way.whole, lambda band: band.prob >= threshold, MAX_SIDE) >= 128


def _show(axes: Axes, picture: np.ndarray, title: str, cmap: str = "gray", white: float = 1) -> Any:
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(picture, cmap=cmap, vmin=0, vmax=white)


def _draw_reliability(axes: Axes, ways: Sequence[Averaged]) -> None:
    """Draw how often ink is found at each probability, before and after the temperature."""
    axes.plot([0, 1], [0, 1], color="gray", ls=":", label="perfectly calibrated")
    for color, way in zip(COLORS, ways, strict=False):
        before, after = way.before(), way.after()
        text = f"{way.title}, ECE {before.expected_error():.3f}"
        axes.plot(*before.curve(), "o-", color=color, ms=4, label=text)
        if after is not None:
            temperature = np.mean([one.decisions.temperature for one in way.pieces])
            text = f"  after temperature {temperature:.2f}, ECE {after.expected_error():.3f}"
            axes.plot(*after.curve(), "s--", color=color, ms=4, mfc="none", label=text)
    axes.set_title("Do the probabilities keep what they promise?", fontsize=11)
    axes.set(xlabel="predicted probability", ylabel="share of ink among such pixels")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="ECE: expected calibration error", title_fontsize=8)


def _draw_risk(axes: Axes, ways: Sequence[Averaged]) -> None:
    """Draw how the share of wrong pixels falls as the least sure ones are left out."""
    for color, way in zip(COLORS, ways, strict=False):
        for name, risk in way.risks().items():
            if name in (CONFIDENCE, SPREAD):
                text = f"{way.title}, by {name} (finds errors {risk.finds_errors():.2f})"
                style = "-" if name == SPREAD else "--"
                axes.plot(*risk.curve(), style, color=color, label=text)
    worst = ways[0].risks()[CONFIDENCE].error_rate()
    axes.axhline(worst, color="gray", ls=":", label="leaving pixels out at random")
    axes.set_title("Does uncertainty find the wrong pixels?", fontsize=11)
    axes.set(xlabel="share of pixels kept, the surest first", ylabel="share of wrong pixels")
    axes.set(xlim=(0, 1), ylim=(0, 2.2 * worst or 1))  # the first few pixels may lie above
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="finds errors: 1 always, 0.5 chance", title_fontsize=8)
