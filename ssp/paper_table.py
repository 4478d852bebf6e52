"""A table in the paper's layout: what was found, over several seeds, above what the paper reports.

Differences no larger than the spread over seeds are marked, as they may be chance: those of which
the means lie no further apart than the standard deviation of their difference, the root of the sum
of both variances.
"""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import atomic_path
from core.page import table, write_page
from core.tables import markdown_table, spread, text_table
from ssp.paper_results import METRICS, Scores
from ssp.scores import ALL, LOWER_IS_BETTER, improvement
from ssp.tasks import STRUCTURES

HEADINGS = {"mse": "MSE", "mae": "MAE", "r2": "R2"}
TASKS_SIDE_BY_SIDE = 3
BEST, ALIKE = "*", "~"
LEGEND = (
    "Mean ± standard deviation over seeds, on test images; below each row what the paper reports, "
    "of other images, larger networks and longer training. * is the best of a column; ~ differs "
    "from it by no more than the spread over seeds."
)
LEGEND_OF_GAINS = (
    " A gain is by how many per cent a score is better than that of {reference}; with ~ it is no "
    "larger than the spread."
)


@dataclass(frozen=True)
class Row:
    """What was found of one method or variant.

    Attributes:
        title: What it is called.
        seeds: Its scores by task and metric, for each seed.
        published: What the paper reports, by task; {} for nothing.
    """

    title: str
    seeds: Sequence[Mapping[str, Scores]]
    published: Mapping[str, Scores]

    def values(self, task: str, metric: str) -> list[float]:
        """Return a score for each seed."""
        return [scores[task][metric] for scores in self.seeds]


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: What it shows.
        rows: Its rows.
        tasks: Tasks that have columns, in order; "All" is one of them.
        reference: Title of the row over which gains of the last task are told; None for no gains.
    """

    title: str
    rows: Sequence[Row]
    tasks: Sequence[str]
    reference: str | None = None

    @property
    def legend(self) -> str:
        """What the marks mean."""
        gains = LEGEND_OF_GAINS.format(reference=self.reference) if self.reference else ""
        return LEGEND + gains

    def blocks(self) -> list[tuple[list[str], list[list[str]]]]:
        """Return the table in parts that are not too wide: their heads and rows of cells."""
        groups = [
            self.tasks[start : start + TASKS_SIDE_BY_SIDE]
            for start in range(0, len(self.tasks), TASKS_SIDE_BY_SIDE)
        ]
        if self.reference and len(groups[-1]) > 1:  # gains stand beside the last task alone
            groups[-1:] = [groups[-1][:-1], groups[-1][-1:]]
        return [self._block(group, group is groups[-1]) for group in groups]

    def text(self) -> str:
        """Return the table for a terminal."""
        return "\n\n".join([text_table(*block) for block in self.blocks()] + [self.legend])

    def markdown(self) -> str:
        """Return the table as Markdown."""
        return "\n".join(markdown_table(*block) for block in self.blocks())

    def write(self, out: Path, name: str) -> None:
        """Write it as name.md, name.html, and seed by seed as name.csv."""
        with atomic_path(out / f"{name}.md") as partial:
            partial.write_text(f"{self.markdown()}\n{self.legend}\n", encoding="utf-8")
        body = [f"<h1>{html.escape(self.title)}</h1>", *(table(*block) for block in self.blocks())]
        write_page(out / f"{name}.html", self.title, [*body, f"<p>{html.escape(self.legend)}</p>"])
        with atomic_path(out / f"{name}.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "task", "metric", "seed", "value", "published"])
            writer.writerows(self._long())

    def _long(self) -> Iterable[list[Any]]:
        for row in self.rows:
            for task in self.tasks:
                for metric in METRICS:
                    published = row.published.get(task, {}).get(metric, "")
                    for seed, value in enumerate(row.values(task, metric)):
                        yield [row.title, task, metric, seed, value, published]

    def _block(self, tasks: Sequence[str], is_last: bool) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of the columns of some tasks; the last has gains as well."""
        columns = [(task, metric) for task in tasks for metric in METRICS]
        head = ["", *(f"{structure(task)} {HEADINGS[metric]}" for task, metric in columns)]
        rows = []
        for row in self.rows:
            cells = [self._cell(row, *column) for column in columns]
            below = [_published(row, *column) for column in columns]
            if is_last and self.reference:
                cells += [self._gain(row, metric) for metric in METRICS]
                below += self._published_gains(row)
            rows += [[row.title, *cells]] + ([["  paper", *below]] if row.published else [])
        if is_last and self.reference:
            head += [f"gain {HEADINGS[metric]} (%)" for metric in METRICS]
        return head, rows

    def _cell(self, row: Row, task: str, metric: str) -> str:
        values, best = row.values(task, metric), self._best(task, metric)
        mark = BEST if row is best else ALIKE if is_alike(values, best.values(task, metric)) else ""
        return spread(values, 4) + mark

    def _best(self, task: str, metric: str) -> Row:
        """Return the row that is best in a column."""
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return max(self.rows, key=lambda row: sign * float(np.mean(row.values(task, metric))))

    def _gain(self, row: Row, metric: str) -> str:
        """Return by how many per cent a row is better in the last task, of means over seeds."""
        if row.title == self.reference:
            return "0"
        task, reference = self.tasks[-1], self._reference
        means = ({metric: float(np.mean(r.values(task, metric)))} for r in (row, reference))
        alike = is_alike(row.values(task, metric), reference.values(task, metric))
        return f"{improvement(*means)[metric]:+.2f}{ALIKE if alike else ''}"

    def _published_gains(self, row: Row) -> list[str]:
        """Return the same of what the paper reports."""
        task, reference = self.tasks[-1], self._reference.published
        if task not in row.published or task not in reference:
            return [""] * len(METRICS)
        gains = improvement(row.published[task], reference[task])
        return [f"{gains[metric]:+.2f}" for metric in METRICS]

    @property
    def _reference(self) -> Row:
        return next(row for row in self.rows if row.title == self.reference)


def is_alike(values: Sequence[float], others: Sequence[float]) -> bool:
    """Tell whether two means differ by no more than the spread over seeds; one seed has none."""
    if min(len(values), len(others)) < 2:
        return False
    variance = float(np.var(values, ddof=1) + np.var(others, ddof=1))
    return abs(float(np.mean(values) - np.mean(others))) <= variance**0.5


def structure(task: str) -> str:
    """Return what a task is called in the paper: its own name if it is none of the twelve."""
    return STRUCTURES.get(task, task)


def _published(row: Row, task: str, metric: str) -> str:
    published = row.published.get(task)
    return f"{published[metric]:.4f}" if published else ""


def paper_tasks(tasks: Iterable[str], order: Sequence[str]) -> list[str]:
    """Return tasks in the paper's order, those it does not know behind, and then "All"."""
    tasks = list(tasks)
    known = [task for task in order if task in tasks]
    return [*known, *(task for task in tasks if task not in known), ALL]
