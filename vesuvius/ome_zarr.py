"""OME-Zarr 0.4 and 0.5: the full resolution level as a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.terminal import note
from vesuvius.layers import to_uint8

VoxelSize = tuple[float, float, float]  # in um (Z, Y, X)

METADATA_FILES = (".zgroup", ".zattrs", ".zarray", "zarr.json")


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
    names, voxel_size_um, array = _read_metadata(path)
    is_one_channel = names[-3:] == ["z", "y", "x"] and set(array.shape[:-3]) <= {1}
    if not is_one_channel or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path} has axes {names} of shape {array.shape} and type {array.dtype}; "
            "expected z, y, x of one channel and time point, uint8 or uint16: convert it"
        )
    _note_missing(path / array.path, array)
    return ZarrVolume(array), voxel_size_um


def _read_metadata(path: Path) -> tuple[list[str], VoxelSize | None, Any]:
    """Return the names of the axes, voxel size in um and array of the full resolution level."""
    import zarr

    try:
        group = zarr.open(path, mode="r")
        attributes = group.attrs.asdict()
        multiscales = attributes.get("ome", attributes).get("multiscales")
        if multiscales:
            axes, level = multiscales[0]["axes"], multiscales[0]["datasets"][0]
            names = [axis["name"] for axis in axes]
            voxel_size_um = _voxel_size_um(axes, level)
            array = group.get(level["path"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has damaged metadata ({type(error).__name__}: {error}); copy it again"
        ) from error
    if not multiscales:
        raise ValueError(
            f"{path} has no multiscales metadata, so it is not OME-Zarr 0.4 or 0.5; convert it"
        )
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{path} lacks its level {level['path']!r}; copy it again")
    return names, voxel_size_um, array


def _note_missing(folder: Path, array: Any) -> None:
    """Say so if chunks have no file and are read as the fill value.

    Writers leave out chunks of one value, as outside a mask, so this need not be damage; a copy
    that was cut short looks the same. One look at the disk per file; the library's own count takes
    the square of that.
    """
    sides = array.shards or array.chunks
    grid = [-(-length // side) for length, side in zip(array.shape, sides, strict=True)]
    keys = [array.metadata.encode_chunk_key(place) for place in np.ndindex(*grid)]
    missing = [key for key in keys if not (folder / key).is_file()]
    if missing:
        note(
            f"{folder} lacks {len(missing)} of {len(keys)} chunks, the first being {missing[0]}, "
            f"which are read as {array.fill_value}; if they were not left out on purpose, copy it "
            "again"
        )


def _voxel_size_um(axes: list[dict[str, str]], level: dict[str, Any]) -> VoxelSize | None:
    """Return the scale of the level if all three axes are in micrometres."""
    if any(axis.get("unit") != "micrometer" for axis in axes[-3:]):
        return None
    transforms = level.get("coordinateTransformations", ())
    scales = [transform["scale"] for transform in transforms if transform["type"] == "scale"]
    return tuple(scales[0][-3:]) if scales else None
