"""The commands of `vesuvius figure`, and what all of them do: a PNG with its numbers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import atomic_path, read_json, write_json
from core.provenance import collect
from core.terminal import Command, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "experts": Command(
        "which experts of the mixtures trained models use", "vesuvius.figure_experts:experts"
    ),
    "network": Command(
        "one patch on its way through a 3D and a 2D decoder", "vesuvius.figure_network:network"
    ),
    "samples": Command(
        "averages of few and many samples, and whether their spread finds errors",
        "vesuvius.figure_samples:samples",
    ),
}


def check_target(out: Path, kind: str) -> None:
    """Refuse a file that cannot or must not be written, before any work.

    Args:
        out: The picture; its numbers are written beside it, as .json.
        kind: Name of the figure; one of this name may be replaced.

    Raises:
        ValueError: If it is no .png, or there is such a file that is not this figure.
    """
    if out.suffix != ".png":
        raise ValueError(f"--out {out} is no .png; give one, its numbers go beside it as .json")
    record = out.with_suffix(".json")
    for path in (out, record):
        if path.exists() and not _is_figure(record, kind):
            raise ValueError(f"{path} exists and is no figure of {kind}; choose another --out")


def write_figure(out: Path, kind: str, plot: Figure, record: dict[str, Any]) -> None:
    """Write a picture and its numbers, each whole or not at all, and say where."""
    from core.page import plot_bytes

    numbers = out.with_suffix(".json")
    write_json(numbers, {"figure": kind, "provenance": collect(), **record})
    with atomic_path(out) as partial:
        partial.write_bytes(plot_bytes(plot))
    note(f"picture in {out}, numbers in {numbers}")


def _is_figure(record: Path, kind: str) -> bool:
    """Tell whether a file holds the numbers of such a figure."""
    try:
        found = read_json(record)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("figure") == kind
