"""What a comparison found: one table, one page, the spread over seeds beside every mean."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.files import atomic_path
from core.page import figure, plot_bytes, table, write_page
from core.pictures import shrink
from core.tables import markdown_table, spread, text_table
from vesuvius.fragment import open_fragment
from vesuvius.maps import MapFile

if TYPE_CHECKING:
    from vesuvius.contest import Contest

RESULTS = "results.json"
MAX_SIDE = 900  # px of a map on the page
SCORES = {
    "f05": "F0.5",
    "best_f05": "best F0.5",
    "average_precision": "AP",
    "roc_auc": "ROC AUC",
    "loss": "loss",
    "ssim": "SSIM",
    "calibration_error": "ECE",
}
COSTS = {"train_s": "training s", "predict_s": "prediction s", "peak_mib": "peak MiB"}
LEGEND = (
    "Mean ± standard deviation over seeds, on fragments never trained on. F0.5 is taken at the "
    "threshold chosen on held-out pieces of the training fragments, best F0.5 at the best one. "
    "loss is the average of binary cross-entropy and Dice; SSIM compares map and label. A control "
    "was trained on labels shifted to where no ink is, and must score at chance: ROC AUC 0.5."
)


def summarize(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each recipe, controls last: the values of its runs, best F0.5 first.

    Args:
        record: What results.json holds.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        title = f"control: {run['recipe']}" if run["is_control"] else run["recipe"]
        grouped.setdefault(title, []).append(run)
    rows = [
        {
            "recipe": title,
            "is_control": runs[0]["is_control"],
            "runs": len(runs),
            "parameters": runs[0]["parameters"],
            **{key: [run[key] for run in runs] for key in (*SCORES, *COSTS)},
        }
        for title, runs in grouped.items()
    ]
    return sorted(rows, key=lambda row: (row["is_control"], -float(np.mean(row["f05"]))))


def markdown_of(record: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    return markdown_table(*_cells(record))


def text_of(record: Mapping[str, Any]) -> str:
    """Return the table as lines of text, with the scores of what needs no network below."""
    return "\n".join([text_table(*_cells(record)), *_baselines(record)])


def _cells(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["recipe", "runs", "parameters", *SCORES.values(), *COSTS.values()]
    rows = [
        [
            row["recipe"],
            str(row["runs"]),
            f"{row['parameters'] / 1e6:.2f} M",
            *(spread(row[key], 3) for key in SCORES),
            *(spread(row[key], 0) for key in COSTS),
        ]
        for row in summarize(record)
    ]
    return head, rows


def _baselines(record: Mapping[str, Any]) -> Iterator[str]:
    for name, value in record["baselines"].items():
        yield f"F0.5 of {name}: {value:.3f}"


def write_comparison(out: Path, record: Mapping[str, Any], contest: Contest) -> None:
    """Write table.md, scores.png, maps.png for each test fragment, and report.html.

    Args:
        out: The folder.
        record: What results.json holds.
        contest: The predictions are among its runs.
    """
    _write(out / "table.md", markdown_of(record).encode())
    pictures = {"scores.png": (_scores_picture(record), "F0.5 of each run, by recipe")}
    for name, path in contest.test.items():
        caption = f"{name}: the label, and what the first run of each recipe made of it"
        pictures[f"maps-{name}.png"] = (_maps_picture(record, contest, name, path), caption)
    head, rows = _cells(record)
    body = ["<h1>Recipes at equal budget</h1>", f"<p>{html.escape(LEGEND)}</p>", table(head, rows)]
    body += [f"<p>{html.escape(line)}</p>" for line in _baselines(record)]
    for filename, (png, caption) in pictures.items():
        _write(out / filename, png)
        body.append(figure(png, caption))
    write_page(out / "report.html", "Comparison of ink recipes", body)


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def _scores_picture(record: Mapping[str, Any]) -> bytes:
    """Return every run's F0.5 as a dot, recipes from best to worst, as PNG."""
    from matplotlib.figure import Figure

    rows = summarize(record)[::-1]
    plot = Figure(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    axes = plot.subplots()
    for height, row in enumerate(rows):
        color = "tab:gray" if row["is_control"] else "tab:blue"
        axes.plot(row["f05"], [height] * row["runs"], "o", color=color, alpha=0.6)
        axes.plot(np.mean(row["f05"]), height, "|", color="black", ms=16)
    for style, (name, value) in zip(("--", ":"), record["baselines"].items(), strict=True):
        axes.axvline(value, color="tab:red", ls=style, lw=1, label=f"{name} ({value:.2f})")
    axes.set(xlabel="F0.5 on fragments never seen (dots: seeds, bars: means)", xlim=(0, 1))
    axes.set_yticks(range(len(rows)), [row["recipe"] for row in rows])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return plot_bytes(plot)


def _maps_picture(record: Mapping[str, Any], contest: Contest, name: str, path: Path) -> bytes:
    """Return the label and, below each other, the maps of the first run of each recipe, as PNG."""
    from matplotlib.figure import Figure

    fragment = open_fragment(path)
    assert fragment.ink_label is not None
    panels = [("label", shrink(fragment.ink_label & fragment.papyrus_mask, MAX_SIDE))]
    for row in summarize(record):
        recipe = row["recipe"].removeprefix("control: ")
        folder = f"{recipe}-0{'-control' if row['is_control'] else ''}"
        prob = MapFile(contest.folder(folder) / name / "prob.tif")
        title = f"{row['recipe']}, F0.5 {row['f05'][0]:.3f}"
        panels.append((title, shrink(prob.read(0, prob.shape[0])[0], MAX_SIDE)))
    height, width = panels[0][1].shape
    columns = 2 if width > height else 5
    lines = -(-len(panels) // columns)
    size = (4.5 * columns * min(1, width / height), (4.5 * min(1, height / width) + 0.35) * lines)
    plot = Figure(figsize=size, layout="constrained")
    for axes in (grid := plot.subplots(lines, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, (title, picture) in zip(grid.flat, panels, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
    return plot_bytes(plot)
