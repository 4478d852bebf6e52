"""OME-Zarr 0.4 and 0.5: the full resolution level as a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.ome_zarr import note_missing_chunks, open_full_resolution
from vesuvius.layers import to_uint8

VoxelSize = tuple[float, float, float]  # in um (Z, Y, X)


class ZarrVolume:
    """Reads a Zarr array (..., Z, Y, X) whose leading axes have length 1.

    Attributes:
        shape: (Z, Y, X).
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._leading = (0,) * (array.ndim - 3)
        self.shape = tuple(array.shape[-3:])

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""
        bands = slice(z_start, z_stop), slice(y_start, y_stop), slice(None)
        return to_uint8(self._array[(*self._leading, *bands)])


def open_zarr(path: Path) -> tuple[ZarrVolume, VoxelSize | None]:
    """Open the full resolution level of an OME-Zarr.

    Returns:
        The volume, and its voxel size in um (Z, Y, X) if the file says so.

    Raises:
        ValueError: If it is no OME-Zarr, is damaged, or is not one channel of uint8 or uint16 with
            axes Z, Y, X.
    """
    level = open_full_resolution(path)
    names, array = list(level.axes), level.array
    is_one_channel = names[-3:] == ["z", "y", "x"] and set(array.shape[:-3]) <= {1}
    if not is_one_channel or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path} has axes {names} of shape {array.shape} and type {array.dtype}; "
            "expected z, y, x of one channel and time point, uint8 or uint16: convert it"
        )
    note_missing_chunks(level)
    size_um = tuple(level.size_um[axis] for axis in "zyx" if axis in level.size_um)
    return ZarrVolume(array), size_um if len(size_um) == 3 else None
