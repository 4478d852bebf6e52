"""Pages of HTML that need no other file: pictures and tables inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #222; }
h1, h2 { font-weight: 600; } figure { margin: 0; } figcaption { font-size: 14px; color: #555; }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1rem; }
img { width: 100%; border: 1px solid #ccc; } table { border-collapse: collapse; }
td, th { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page, whole or not at all.

    Args:
        path: The file.
        title: Its title, plain text.
        body: Pieces of HTML.
    """
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>{''.join(body)}</html>"
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def figure(png: bytes, caption: str) -> str:
    """Return a picture, the bytes of a PNG file, with its caption in plain text."""
    data, text = base64.b64encode(png).decode(), html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text, its first line the names of the columns."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def plot_bytes(plot: Figure) -> bytes:
    """Return a matplotlib figure as the bytes of a PNG file, its empty margins cut off."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()
