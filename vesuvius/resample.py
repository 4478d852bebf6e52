"""Volumes and maps at another voxel size, streamed in bands of rows.

Each axis is resampled on its own: linearly between voxel centres where it gets longer, as the
average over what a new voxel covers where it gets shorter. Both grids begin at the same corner and
a voxel has exactly the size asked for, so the last one may reach beyond the volume. Every voxel is
the same sum of the same products whichever band it is read in. Axes: Z layers, Y rows, X columns;
L layers or maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vesuvius.fragment import VolumeReader

READ_BYTES = 64 * 2**20  # source voxels held at once
ROUNDING = 1e-6  # of a position, by which a product may exceed a whole number
MIXED_VOXELS = 2**20  # of them, or made of them, that exist as float32 at once


@dataclass(frozen=True, eq=False)
class Axis:
    """How each position of a resampled axis follows from its source.

    Attributes:
        length: Positions of the source.
        first: int64 (N,), first position of the source that each of N new ones is made of.
        weights: float32 (T, N), of that position and those after it; they sum to 1, and are 0
            beyond the end.
    """

    length: int
    first: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, length: int, factor: float, num: int | None = None) -> Axis:
        """Plan an axis.

        Args:
            length: Positions of the source.
            factor: New positions for each old one.
            num: New positions; by default as many as cover all old ones.
        """
        num = num or math.ceil(length * factor - ROUNDING)
        if factor < 1:  # position i covers i / factor .. (i + 1) / factor
            edges = (np.arange(num + 1) / factor).clip(0, length)
            first = np.floor(edges[:-1]).astype(np.int64)
            places = first + np.arange(math.ceil(1 / factor) + 1)[:, None]
            weights = np.minimum(places + 1, edges[1:]) - np.maximum(places, edges[:-1])
        else:  # between the two nearest centres
            centres = ((np.arange(num) + 0.5) / factor - 0.5).clip(0, length - 1)
            first = np.floor(centres).astype(np.int64)
            weights = 1 - abs(centres - first - np.arange(2)[:, None])
        weights = weights.clip(0)
        weights = weights[weights.any(axis=1)]
        return cls(length, first, (weights / weights.sum(axis=0)).astype(np.float32))

    def __len__(self) -> int:
        return len(self.first)

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of the source that the new positions start..stop are made of."""
        last = int(self.first[stop - 1]) + len(self.weights)
        return int(self.first[start]), min(last, self.length)

    def mix(self, values: np.ndarray, start: int, stop: int, axis: int) -> np.ndarray:
        """Return the new positions start..stop of an array, float32.

        Args:
            values: The range of the source that `source` tells.
            start: First new position.
            stop: One past the last.
            axis: Which axis of `values` it is.
        """
        first = self.first[start:stop] - self.first[start]
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        parts = (
            np.take(values, first + tap, axis, mode="clip") * weights.reshape(shape)
            for tap, weights in enumerate(self.weights[:, start:stop])
        )
        mixed: np.ndarray = next(parts)
        for part in parts:
            mixed += part
        return mixed


class ResampledVolume:
    """Reads a volume at another voxel size; memory follows from the band, not from the volume.

    Args:
        volume: The voxels.
        factors: New voxels for each old one along (Z, Y, X).

    Attributes:
        shape: (Z, Y, X).
    """

    def __init__(self, volume: VolumeReader, factors: tuple[float, float, float]) -> None:
        self._volume = volume
        self._layers, self._rows, self._columns = map(Axis.of, volume.shape, factors)
        self.shape = (len(self._layers), len(self._rows), len(self._columns))

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""
        first, last = self._layers.source(z_start, z_stop)
        out = np.empty((z_stop - z_start, y_stop - y_start, self.shape[2]), np.uint8)
        for start, stop in _bands(y_start, y_stop, self._rows_of(READ_BYTES, last - first)):
            top, bottom = self._rows.source(start, stop)
            held = self._volume.read(first, last, top, bottom)
            most = max(last - first, z_stop - z_start)
            for y, y_end in _bands(start, stop, self._rows_of(MIXED_VOXELS, most)):
                some = slice(*(place - top for place in self._rows.source(y, y_end)))
                layers = self._layers.mix(held[:, some], z_start, z_stop, axis=0)
                mixed = mix_plane(layers, self._rows, self._columns, y, y_end)
                out[:, y - y_start : y_end - y_start] = np.rint(mixed, out=mixed)
        return out

    def _rows_of(self, voxels: int, num_layers: int) -> int:
        """Return how many new rows are made of that many voxels, and are no more themselves."""
        width = max(self._columns.length, len(self._columns))
        source_rows = max(1.0, self._rows.length / len(self._rows))  # for a new one
        return max(1, int(voxels / (num_layers * width * source_rows)))


def mix_plane(
    values: np.ndarray, rows: Axis, columns: Axis, y_start: int, y_stop: int
) -> np.ndarray:
    """Return the new rows y_start..y_stop of maps or layers, float32 (L, rows, X).

    Args:
        values: The rows of the source that `rows.source` tells, (L, rows, X).
        rows: How the rows are resampled.
        columns: How the columns are.
        y_start: First new row.
        y_stop: One past the last.
    """
    return columns.mix(rows.mix(values, y_start, y_stop, axis=1), 0, len(columns), axis=2)


def resampled_map(
    map_YX: np.ndarray, rows: Axis, columns: Axis, finish: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return a map (Y, X) resampled.

    Args:
        map_YX: Of any type.
        rows: How the rows are resampled.
        columns: How the columns are.
        finish: From float32 to what is wanted, band by band.
    """
    few = max(1, MIXED_VOXELS // max(columns.length, len(columns)))
    bands = []
    for start, stop in _bands(0, len(rows), few):
        source = slice(*rows.source(start, stop))
        bands.append(finish(mix_plane(map_YX[None, source], rows, columns, start, stop)[0]))
    return np.concatenate(bands)


def _bands(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most that many rows."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
