"""Which part of which fragment is trained on, and which is only looked at to validate.

A fragment is cut into rectangular pieces. Between training and validation stays a gap, because
neighbouring voxels share fibres, ink strokes and, through the patches, each other's values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from core.terminal import note

Role = Literal["train", "validation"]
LARGE_LOSS = 0.25  # share of the papyrus in the gap from which a remedy is named


@dataclass(frozen=True)
class Piece:
    """A rectangle of a fragment, all its layers, with what it is used for.

    Args:
        fragment: Name of the fragment.
        y_start: First row.
        y_stop: One past the last row.
        x_start: First column.
        x_stop: One past the last column.
        role: Whether it is trained on or validated on.
    """

    fragment: str
    y_start: int
    y_stop: int
    x_start: int
    x_stop: int
    role: Role

    def __post_init__(self) -> None:
        if not (0 <= self.y_start < self.y_stop and 0 <= self.x_start < self.x_stop):
            raise ValueError(
                f"{self} is empty or begins below 0; starts are at least 0, below stops"
            )
        if self.role not in get_args(Role):
            raise ValueError(
                f"{self}: role {self.role!r} is not one of {', '.join(get_args(Role))}"
            )

    def __str__(self) -> str:
        rows, columns = f"{self.y_start}:{self.y_stop}", f"{self.x_start}:{self.x_stop}"
        return f"{self.role} piece of {self.fragment} (rows {rows}, columns {columns})"

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the piece in a (Y, X) map."""
        return slice(self.y_start, self.y_stop), slice(self.x_start, self.x_stop)


def hold_out_stripes(
    name: str, mask_YX: NDArray[np.bool_], fraction: float, gap: int
) -> list[Piece]:
    """Cut a fragment across its longer side into a training and a validation piece.

    Args:
        name: Name of the fragment.
        mask_YX: Papyrus mask, (Y, X) bool; the pieces cover its bounding box.
        fraction: About how much of the papyrus the validation piece holds, between 0 and 1. It is
            the lower (or right) end.
        gap: Rows (or columns) between the two pieces, taken from the training piece; at least 0.

    Returns:
        The training piece and the validation piece.

    Raises:
        ValueError: The mask is black, `fraction` is not between 0 and 1, or no training is left.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} for {name} is not allowed; above 0 and below 1")
    box = _bounding_box(name, mask_YX)
    is_wider = _is_wider(box)
    start, stop = box[2:] if is_wider else box[:2]
    count = np.count_nonzero(mask_YX, axis=0 if is_wider else 1)[start:stop]
    # The first line with no more than `fraction` of the papyrus from it to the end.
    remaining = count[::-1].cumsum()[::-1]
    cut = min(start + int(np.argmax(remaining <= fraction * count.sum())), stop - 1)
    if cut - gap <= start:
        raise ValueError(
            f"{name}: papyrus {stop - start} px long leaves nothing to train on beside a "
            f"validation fraction of {fraction} and a gap of {gap} px; make one of them smaller"
        )
    return _hold_out(name, box, cut, stop, gap)


def hold_out_stripe(
    masks: Mapping[str, NDArray[np.bool_]],
    held_out: str | None,
    num_stripes: int,
    stripe: int,
    gap: int,
) -> list[Piece]:
    """Cut fragments across their longer side into stripes and validate on one of them.

    Args:
        masks: Papyrus mask (Y, X) bool of each fragment by name; pieces cover its bounding box.
        held_out: Name of the fragment to cut; None cuts every one, else the others are trained
            on whole.
        num_stripes: Number of stripes with about as much papyrus each; 2 are halves.
        stripe: Which one is held out, counted from 0 at the top (or left).
        gap: Rows (or columns) left out on both sides of it; at least 0.

    Returns:
        Of each fragment that is cut, the validation piece after one training piece before and one
        behind it; a side on which the gap leaves nothing has none.

    Raises:
        ValueError: A mask is black, the fragment or stripe does not exist, or a fragment that is
            cut has no training left.
    """
    if held_out is not None and held_out not in masks:
        raise ValueError(f"cannot cut {held_out!r} of the fragments {', '.join(masks)}; name one")
    if not 0 <= stripe < num_stripes:
        raise ValueError(f"there is no stripe {stripe} of {num_stripes}; they count from 0")
    pieces = []
    for name, mask_YX in masks.items():
        box = _bounding_box(name, mask_YX)
        if held_out in (None, name):
            pieces += _cut_stripe(name, mask_YX, box, num_stripes, stripe, gap)
        else:
            pieces.append(Piece(name, *box, "train"))
    return pieces


def _cut_stripe(
    name: str,
    mask_YX: NDArray[np.bool_],
    box: tuple[int, int, int, int],
    num_stripes: int,
    stripe: int,
    gap: int,
) -> list[Piece]:
    """Return the pieces of one fragment."""
    axis = int(_is_wider(box))
    first, last = box[2 * axis : 2 * axis + 2]
    papyrus = np.count_nonzero(mask_YX, axis=1 - axis)[first:last].cumsum()
    shares = papyrus[-1] * np.arange(1, num_stripes) / num_stripes
    cuts = first + 1 + np.searchsorted(papyrus, shares)  # a stripe ends with the line that fills it
    edges = [first, *cuts.tolist(), last]
    pieces = _hold_out(name, box, edges[stripe], edges[stripe + 1], gap)
    if {piece.role for piece in pieces} != set(get_args(Role)):
        raise ValueError(
            f"{name}: papyrus {last - first} px long leaves nothing to train or validate on with "
            f"{num_stripes} stripes and a gap of {gap} px; make one of them smaller"
        )
    return pieces


def _is_wider(box: tuple[int, int, int, int]) -> bool:
    y_start, y_stop, x_start, x_stop = box
    return x_stop - x_start > y_stop - y_start


def _hold_out(
    name: str, box: tuple[int, int, int, int], start: int, stop: int, gap: int
) -> list[Piece]:
    """Return what is left of a box for training, and its lines start..stop for validation.

    Lines run across the longer side. Of lines 0..100, with 40..60 held out and a gap of 10, 0..30
    and 70..100 are trained on.
    """
    y_start, y_stop, x_start, x_stop = box
    first, last = (x_start, x_stop) if _is_wider(box) else (y_start, y_stop)
    ranges: list[tuple[int, int, Role]] = [
        (first, start - gap, "train"), (stop + gap, last, "train"), (start, stop, "validation"),
    ]  # fmt: skip
    ranges = [(low, high, role) for low, high, role in ranges if low < high]
    if _is_wider(box):
        return [Piece(name, y_start, y_stop, low, high, role) for low, high, role in ranges]
    return [Piece(name, low, high, x_start, x_stop, role) for low, high, role in ranges]


def hold_out_fragment(masks: Mapping[str, NDArray[np.bool_]], held_out: str) -> list[Piece]:
    """Train on whole fragments and validate on another one.

    Args:
        masks: Papyrus mask (Y, X) bool of each fragment by name.
        held_out: Name of the fragment to validate on.

    Returns:
        One piece per fragment, the bounding box of its papyrus.

    Raises:
        ValueError: `held_out` is unknown, no other fragment is left, or a mask is black.
    """
    if held_out not in masks or len(masks) == 1:
        raise ValueError(
            f"cannot hold out {held_out!r} of the fragments {', '.join(masks)}; "
            "name one of them, and keep at least one other to train on"
        )
    return [
        Piece(name, *_bounding_box(name, mask_YX), "validation" if name == held_out else "train")
        for name, mask_YX in masks.items()
    ]


def train_whole(name: str, mask_YX: NDArray[np.bool_]) -> Piece:
    """Return the training piece that is a fragment whole, the bounding box of its papyrus.

    Raises:
        ValueError: The mask is black.
    """
    return Piece(name, *_bounding_box(name, mask_YX), "train")


def check_disjoint(pieces: Iterable[Piece], gap: int) -> None:
    """Refuse pieces that would let training see what validation is scored on.

    Args:
        pieces: Pieces of any fragments.
        gap: Least distance in pixels, along y or x, between training and validation.

    Raises:
        ValueError: A training and a validation piece overlap or are closer than `gap`.
    """
    pieces = list(pieces)
    for train, validation in product(pieces, pieces):
        if (train.role, validation.role) != ("train", "validation"):
            continue
        distance = gap_between(train, validation)
        if train.fragment == validation.fragment and distance < max(gap, 0):
            found = "overlap" if distance < 0 else f"are {distance} px apart"
            raise ValueError(
                f"{train} and {validation} {found}; at least {gap} px must lie between"
            )


def note_shares(masks: Mapping[str, NDArray[np.bool_]], pieces: Iterable[Piece]) -> None:
    """Say how much papyrus of each fragment is trained on, held out and lost to the gap.

    Args:
        masks: Papyrus mask (Y, X) bool of each fragment by name.
        pieces: The pieces of a run, apart from each other.
    """
    pieces = list(pieces)
    for name, mask_YX in masks.items():
        shares = dict.fromkeys(get_args(Role), 0.0)
        for piece in pieces:
            if piece.fragment == name:
                shares[piece.role] += float(np.count_nonzero(mask_YX[piece.slices]))
        train, held_out = (share / np.count_nonzero(mask_YX) for share in shares.values())
        lost = max(1 - train - held_out, 0.0)
        remedy = "; a smaller --validation.gap loses less" if lost > LARGE_LOSS else ""
        note(
            f"{name}: of its papyrus {train:.0%} is trained on, {held_out:.0%} held out, "
            f"{lost:.0%} lost to the gap between{remedy}"
        )


def folds_json(pieces: Iterable[Piece], gap: int) -> str:
    """Return the pieces of a run and the gap between them as JSON."""
    record = {"gap": gap, "pieces": [asdict(piece) for piece in pieces]}
    return json.dumps(record, indent=2) + "\n"


def gap_between(a: Piece, b: Piece) -> int:
    """Return how many pixels lie between two pieces, along the axis that separates them most.

    Rows 0:4 and 6:9 are 2 apart, 0:4 and 4:9 touch (0), 0:4 and 3:9 overlap (-1).
    """
    return max(
        a.y_start - b.y_stop, b.y_start - a.y_stop, a.x_start - b.x_stop, b.x_start - a.x_stop
    )


def _bounding_box(name: str, mask_YX: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return y_start, y_stop, x_start, x_stop of what is not zero."""
    rows, columns = np.flatnonzero(mask_YX.any(axis=1)), np.flatnonzero(mask_YX.any(axis=0))
    if not rows.size:
        raise ValueError(f"papyrus mask of {name} is all black; papyrus is where it is not zero")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
