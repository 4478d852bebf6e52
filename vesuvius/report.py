"""One page of pictures about a run: what was asked, what was found, how it was learned."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.page import figure, plot_bytes, table, write_page
from core.pictures import overlay, png_bytes, shrink, side_by_side, write_png


@dataclass(frozen=True, eq=False)
class MapRow:
    """One fragment on the page; all maps (Y, X).

    Attributes:
        name: Name of the fragment.
        label: Truth, bool.
        papyrus_mask: Where there is papyrus, bool.
        prob: Predicted probability, float32 0..1.
        ink_mask: What was submitted, bool.
        baseline_mask: What the intensity baseline calls ink, bool.
    """

    name: str
    label: np.ndarray
    papyrus_mask: np.ndarray
    prob: np.ndarray
    ink_mask: np.ndarray
    baseline_mask: np.ndarray


def write_report(
    out: Path, rows: list[MapRow], scores: Mapping[str, Any], seconds: Mapping[str, float]
) -> None:
    """Write `report.html`, pictures inside, and `overview.png` of the first fragment.

    Args:
        out: Folder of the demo; its `model/metrics.jsonl` gives the learning curve.
        rows: The fragments.
        scores: As in scores.json.
        seconds: Time of each step.
    """
    lines = (out / "model" / "metrics.jsonl").read_text().splitlines()
    body = [
        "<h1>From simulated papyrus to a submission</h1>",
        "<p>Two simulated fragments were trained on; the two below were never seen. Threshold and "
        "baseline were fitted on the training fragments. Simulated ink is a simple model: these "
        "scores show that the path works, not how well real ink is found.</p>",
        _score_table(scores),
        *[_maps(row) for row in rows],
        "<h2>Learning curve</h2>",
        figure(_learning_curve([json.loads(line) for line in lines]), "per epoch"),
        "<h2>Time</h2>",
        table(["step", "seconds"], [[step, f"{time:.1f}"] for step, time in seconds.items()]),
    ]
    write_page(out / "report.html", "Ink detection demo", body)
    first = rows[0]
    write_png(
        out / "overview.png",
        side_by_side(shrink(first.label), shrink(first.prob), overlay(first.ink_mask, first.label)),
    )


def _score_table(scores: Mapping[str, Any]) -> str:
    columns = {
        "f05": "F0.5 of the model",
        "baseline_f05": "of intensity alone",
        "all_ink_f05": "of calling all papyrus ink",
    }
    rows = [
        [name, *(f"{found[key]:.3f}" for key in columns)]
        for name, found in [*scores["fragments"].items(), ("together", scores)]
    ]
    caption = f"<p>Threshold {scores['threshold']:.3f}, chosen on held-out training pieces.</p>"
    return table(["fragment", *columns.values()], rows) + caption


def _maps(row: MapRow) -> str:
    """Return the pictures of one fragment."""
    pictures = [
        (shrink(row.label), "label"),
        (shrink(row.prob), "predicted probability"),
        (overlay(row.ink_mask, row.label), "submitted: found white, missed blue, invented red"),
        (overlay(row.baseline_mask, row.label), "intensity alone, same colours"),
    ]
    figures = "".join(figure(png_bytes(picture), caption) for picture, caption in pictures)
    return f'<h2>Fragment {html.escape(row.name)}</h2><div class="row">{figures}</div>'


def _learning_curve(epochs: list[dict[str, Any]]) -> bytes:
    """Return training loss and validation F0.5 over epochs as PNG."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(9, 3), layout="constrained")
    curves = {
        "training loss": [row["train"]["loss"] for row in epochs],
        "validation F0.5": [row["validation"]["f05"] for row in epochs],
    }
    for axes, (title, values) in zip(plot.subplots(1, 2), curves.items(), strict=True):
        axes.plot([row["epoch"] for row in epochs], values, marker="o")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    return plot_bytes(plot)
