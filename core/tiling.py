"""Tiles as data: where they start, how they are weighted, which of them a mask needs.

A field of n axes is covered by the full grid of per-axis starts, so every question is solved on one
axis with integers, and weights are separable. They are normalised per axis beforehand: over the
tiles that cover a position they sum to 1 on each axis, hence their products sum to 1 over the grid,
and stitching needs neither a second accumulator nor a division. The first axis is the streaming
axis: the tiles that share a start there form a tile row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

WeightKind = Literal["gaussian", "crop"]


def axis_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles start along one axis, strictly increasing, covering it without a gap.

    The last tile is shifted back to end at the border. An axis shorter than a tile has one tile,
    which overhangs.

    Raises:
        ValueError: A size below 1, or a stride outside 1..tile.
    """
    if length < 1 or tile < 1:
        raise ValueError(f"length {length} and tile {tile} must both be at least 1")
    if not 1 <= stride <= tile:
        raise ValueError(
            f"stride {stride} is outside 1..{tile} (the tile); tiles must touch or overlap"
        )
    # length 14, tile 8, stride 4: 0 and 4 end before the border (8, 12 < 14), then 14 - 8 = 6
    return [*range(0, length - tile, stride), max(length - tile, 0)]


def axis_weights(length: int, tile: int, stride: int, kind: WeightKind) -> np.ndarray:
    """Return the weight of every tile position along one axis, float32 (num_tiles, tile).

    Over the tiles that cover a position of the axis the weights sum to 1; beyond its end they are
    0. "gaussian" is a bell of sigma tile / 8, 3e-4 of its peak at the ends of a tile. "crop" is 1
    in the tile whose centre is nearest (the earlier one of two) and 0 elsewhere.

    Raises:
        ValueError: An unknown kind, or sizes that `axis_starts` refuses.
    """
    if kind not in ("gaussian", "crop"):
        raise ValueError(f"weights {kind!r} are unknown; choose 'gaussian' or 'crop'")
    starts = axis_starts(length, tile, stride)
    weigh = _gaussian if kind == "gaussian" else _crop
    return weigh(length, tile, starts).astype(np.float32)


def _gaussian(length: int, tile: int, starts: list[int]) -> np.ndarray:
    """Return bells divided by their sum, float64 (num_tiles, tile)."""
    bell = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile / 8)) ** 2)
    total = np.zeros(max(length, tile))
    for start in starts:
        total[start : start + tile] += bell
    weights = np.stack([bell / total[start : start + tile] for start in starts])
    weights[:, length:] = 0  # only the one tile of an axis shorter than it reaches so far
    return weights


def _crop(length: int, tile: int, starts: list[int]) -> np.ndarray:
    """Return 1 where a tile has the nearest centre, else 0, float64 (num_tiles, tile)."""
    # starts 0, 4, 6, tile 8: centres 3.5, 7.5, 9.5, so the tiles own 0-5, 6-8 and 9-13
    borders = [(left + right + tile + 1) // 2 for left, right in pairwise(starts)]
    weights = np.zeros((len(starts), tile))
    for row, start, first, stop in zip(
        weights, starts, [0, *borders], [*borders, length], strict=True
    ):
        row[first - start : stop - start] = 1
    return weights


@dataclass(frozen=True, eq=False)
class Span:
    """What a tile gives along one axis.

    Attributes:
        start: Where the tile begins in the field.
        inside: The positions of the tile that have weight; those around them are halo.
        field: The same positions counted in the field.
        weights: Their weights, float32 (positions,).
    """

    start: int
    inside: slice
    field: slice
    weights: np.ndarray


@dataclass(frozen=True)
class TilePlan:
    """A field, the grid of tiles that covers it, and their weights.

    Attributes:
        shape: Field size along the tiled axes, the streaming axis first, e.g. (Y, X) or (Z, Y, X).
        tile: Tile size along the same axes.
        stride: Distance between neighbouring tiles along the same axes.
        weights: How overlapping tiles share a position, see `axis_weights`.

    Raises:
        ValueError: Tuples of different lengths, or values that `axis_weights` refuses.
    """

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    stride: tuple[int, ...]
    weights: WeightKind = "gaussian"

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) == len(self.tile) == len(self.stride):
            raise ValueError(
                f"shape {self.shape}, tile {self.tile} and stride {self.stride} must name "
                "the same axes, at least one"
            )
        _ = self.spans  # refuses bad values now rather than hours into a prediction

    @cached_property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """For each axis the spans of its tiles, in the order of their starts."""
        return tuple(
            tuple(_spans(*sizes, self.weights))
            for sizes in zip(self.shape, self.tile, self.stride, strict=True)
        )

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles along each axis; the first is the number of tile rows."""
        return tuple(len(spans) for spans in self.spans)

    @property
    def overhang(self) -> tuple[int, ...]:
        """By how much a tile exceeds the field along each axis; 0 where it fits."""
        return tuple(max(t - n, 0) for n, t in zip(self.shape, self.tile, strict=True))

    def finished(self, row: int) -> tuple[int, int]:
        """Return the range [start, stop) of the streaming axis that tile row `row` completes.

        Starts 0, 4, 6 and tile 8 on length 14: the rows complete 0-3, 4-5 and 6-13.
        """
        starts = [span.start for span in self.spans[0]]
        return starts[row], [*starts, self.shape[0]][row + 1]

    def with_reach(self, rows: range) -> range:
        """Return some tile rows, and those before them that reach into what they complete.

        Starts 0, 4, 6 and tile 8: tile row 2 completes 6-13, and 0 and 1 have a say in 6-7.
        """
        start = self.finished(rows.start)[0]
        reaching = (i for i, span in enumerate(self.spans[0]) if span.field.stop > start)
        return range(next(reaching), rows.stop)

    def row_tiles(self, row: int, wanted: np.ndarray) -> list[tuple[Span, ...]]:
        """Return the wanted tiles of one tile row, each as its span per axis, in grid order.

        Args:
            row: Index along the streaming axis of the grid.
            wanted: Which tiles to take, bool of shape `grid`, see `wanted`.
        """
        streaming, *others = self.spans
        return [
            (streaming[row], *(spans[i] for spans, i in zip(others, index, strict=True)))
            for index in np.argwhere(wanted[row])
        ]

    def wanted(self, mask: np.ndarray | None) -> np.ndarray:
        """Return which tiles hold at least one true position of the mask, bool of shape `grid`.

        Leaving the others out is exact inside the mask, as every tile over such a position stays.

        Args:
            mask: Bool of shape `shape`, or None for every tile.

        Raises:
            ValueError: The mask has another shape than the field.
        """
        if mask is None:
            return np.ones(self.grid, bool)
        if mask.shape != self.shape:
            raise ValueError(
                f"mask shape {mask.shape} differs from the field {self.shape}; "
                "give the mask that belongs to this input"
            )
        held = mask
        for axis, (spans, size) in enumerate(zip(self.spans, self.tile, strict=True)):
            lines = np.moveaxis(held, axis, 0)
            held = np.stack([lines[s.start : s.start + size].any(0) for s in spans], axis)
        return held


def _spans(length: int, tile: int, stride: int, kind: WeightKind) -> list[Span]:
    """Return the span of each tile along one axis, trimmed to where its weights are not 0."""
    spans = []
    starts = axis_starts(length, tile, stride)
    for start, weights in zip(starts, axis_weights(length, tile, stride, kind), strict=True):
        first, last = np.flatnonzero(weights)[[0, -1]].tolist()
        inside = slice(first, last + 1)
        spans.append(Span(start, inside, slice(start + first, start + last + 1), weights[inside]))
    return spans
