"""What an evaluation found, to be read and looked at: a table, plots, pictures and a page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import atomic_path
from core.page import figure, table, write_page
from vesuvius.evaluation_plots import compare_picture, curves_picture, found_picture, strip_picture

if TYPE_CHECKING:
    from vesuvius.evaluate import Evaluated

OUTPUTS = {"evaluation.json", "report.html", "pictures", "maps"}
COLUMNS = {
    "ink_share": "ink",
    "loss": "loss",
    "threshold": "threshold",
    "f05": "F0.5",
    "best_f05": "best",
    "regret": "regret",
    "average_precision": "AP",
    "roc_auc": "ROC AUC",
    "ssim": "SSIM",
    "ssim_of_empty": "of empty",
    "calibration_error": "ECE",
    "calibration_error_tempered": "tempered",
}
LEGEND = (
    "loss is the average of binary cross-entropy and Dice, without label smoothing. F0.5 is taken "
    "at the threshold, best is the highest that any threshold would reach, regret what lies "
    "between. SSIM compares map and label; of empty is that of a map without any ink. ECE is the "
    "expected calibration error, tempered the same after the temperature."
)


def text_table(record: Mapping[str, Any]) -> str:
    """Return the scores as lines of text, a block for each way."""
    blocks = []
    for way, rows in _score_rows(record):
        lines = [["", *COLUMNS.values()], *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        blocks.append(way)
        for first, *others in lines:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            blocks.append("  ".join([first.ljust(widths[0]), *cells]))
        blocks.append("")
    sources = {one["threshold_from"] for one in record["maps"]}
    return "\n".join([*blocks, f"threshold: {'; '.join(sorted(sources))}"])


def write_evaluation(out: Path, evaluated: Sequence[Evaluated], record: Mapping[str, Any]) -> None:
    """Write report.html and, in the folder `pictures`, every picture of it.

    Args:
        out: The folder.
        evaluated: The maps.
        record: What evaluation.json will hold.
    """
    body = ["<h1>How well ink is found</h1>", f"<p>{html.escape(LEGEND)}</p>"]
    for way, rows in _score_rows(record):
        body += [f"<h2>{html.escape(way)}</h2>", table(["", *COLUMNS.values()], rows)]
    body += [_paragraph(line) for line in _findings(record)]
    body += [*_choices(record), *_uncertainties(record)]
    body += [_saved(out, *picture) for picture in _comparisons(evaluated)]
    for number, one in enumerate(evaluated):
        title = f"{one.scored.title}, {one.scored.way.title}"
        body.append(f"<h2>{html.escape(title)}</h2>")
        body += [_saved(out, *picture) for picture in _pictures(number, one)]
    write_page(out / "report.html", "Evaluation of ink maps", body)


def _score_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each way with the rows of its maps and their average."""
    for way, average in record["averages"].items():
        of_way = [one for one in record["maps"] if one["way"] == way]
        named = [(one["title"], one) for one in of_way]
        if len(of_way) > 1:
            named.append(("average", average))
        yield way, [[name, *(_cell(found.get(key)) for key in COLUMNS)] for name, found in named]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _findings(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on what the tables alone do not say."""
    maps = record["maps"]
    sources = {one["threshold_from"] for one in maps}
    yield f"Where the thresholds come from: {'; '.join(sorted(sources))}."
    yield from record.get("control", ())
    misled = sum(one["ssim_of_empty"] >= one["ssim"] for one in maps)
    yield (
        f"By SSIM a map without any ink, whose F0.5 is 0, is at least as good as the prediction on "
        f"{misled} of {len(maps)} pieces."
    )
    if any(one["temperature"] is None for one in maps):
        yield "Without other labelled pieces of the same way no temperature could be fitted."


def _choices(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield tables of F0.5 by rule, and by what was done to the mask."""
    maps = record["maps"]
    if any(one["rules"] for one in maps):
        yield "<h2>F0.5 by how the threshold is chosen on the other pieces</h2>"
        rules = ("value", "percentile")
        yield table(
            ["", *rules, "best"],
            [[f"{one['title']}, {one['way']}",
              *(_cell(one["rules"].get(rule, {}).get("f05")) for rule in rules),
              _cell(one["best_f05"])] for one in maps],
        )  # fmt: skip
    if any(one["cleaned_f05"] for one in maps):
        names = list(maps[0]["cleaned_f05"])
        yield "<h2>F0.5 after cleaning the mask</h2>"
        yield table(
            ["", "plain", *(name.replace("_", " ") for name in names)],
            [[f"{one['title']}, {one['way']}", _cell(one["f05"]),
              *(_cell(one["cleaned_f05"][name]) for name in names)] for one in maps],
        )  # fmt: skip


def _uncertainties(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of how well each uncertainty finds the wrong pixels."""
    yield "<h2>Does uncertainty find the wrong pixels?</h2>"
    yield _paragraph(
        "finds errors: how often a wrong pixel is less sure than a right one, 0.5 is chance. risk "
        "area: mean share of wrong pixels as the least sure are left out, between the least "
        "possible and, for an uncertainty that knows nothing, the share of wrong pixels."
    )
    yield table(
        ["", "uncertainty", "finds errors", "risk area", "least possible", "wrong pixels"],
        [[f"{one['title']}, {one['way']}", name, _cell(found["finds_errors"]),
          f"{found['risk_area']:.4f}", f"{one['least_risk_area']:.4f}",
          f"{one['wrong_share']:.4f}"]
         for one in record["maps"] for name, found in one["uncertainty"].items()],
    )  # fmt: skip


def _comparisons(evaluated: Sequence[Evaluated]) -> Iterator[tuple[str, bytes, str]]:
    """Yield a picture of every piece that was mapped in several ways: name, PNG, caption."""
    by_piece: dict[str, list[Evaluated]] = {}
    for one in evaluated:
        by_piece.setdefault(one.scored.title, []).append(one)
    for number, (title, several) in enumerate(by_piece.items()):
        if len(several) > 1:
            in_order = sorted(several, key=lambda one: one.scored.way.num_predictions)
            caption = f"{title}: label, and what each way made of it"
            yield f"compare-{number}.png", compare_picture(in_order), caption


def _pictures(number: int, one: Evaluated) -> Iterable[tuple[str, bytes, str]]:
    """Return the pictures of one map: name, PNG, caption."""
    return [
        (f"{number}-strip.png", strip_picture(one), "label above or left, then prediction"),
        (f"{number}-found.png", found_picture(one), "found white, missed blue, invented red"),
        (f"{number}-curves.png", curves_picture(one), "precision and recall, calibration, risk"),
    ]


def _saved(out: Path, name: str, png: bytes, caption: str) -> str:
    """Write a picture and return it as part of the page."""
    with atomic_path(out / "pictures" / name) as partial:
        partial.write_bytes(png)
    return figure(png, caption)
