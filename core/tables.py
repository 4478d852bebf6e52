"""Tables of cells of text, for terminals and Markdown, and means with their spread as cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as lines of text, its columns aligned at the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown, its last line ended."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean and standard deviation, as "0.51 ± 0.02"; of one value there is no spread."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
