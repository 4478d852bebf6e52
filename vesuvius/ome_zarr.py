"""OME-Zarr 0.4 and 0.5: the full resolution level as a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vesuvius.layers import to_uint8

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


def open_zarr(path: Path) -> tuple[ZarrVolume, tuple[float, float, float] | None]:
    """Open the full resolution level of an OME-Zarr.

    Returns:
        The volume, and its voxel size in um (Z, Y, X) if the file says so.

    Raises:
        ValueError: If it is no OME-Zarr, or not one channel of uint8 or uint16 with axes Z, Y, X.
    """
    import zarr

    group = zarr.open(path, mode="r")
    attributes = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path} has no multiscales metadata, so it is not OME-Zarr 0.4 or 0.5; convert it"
        )
    axes, level = multiscales[0]["axes"], multiscales[0]["datasets"][0]
    names = [axis["name"] for axis in axes]
    if level["path"] not in group:
        raise ValueError(f"{path} lacks its level {level['path']!r}; copy it again")
    array = group[level["path"]]
    is_one_channel = names[-3:] == ["z", "y", "x"] and set(array.shape[:-3]) <= {1}
    if not is_one_channel or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path} has axes {names} of shape {array.shape} and type {array.dtype}; "
            "expected z, y, x of one channel and time point, uint8 or uint16: convert it"
        )
    return ZarrVolume(array), _voxel_size_um(axes, level)


def _voxel_size_um(
    axes: list[dict[str, str]], level: dict[str, Any]
) -> tuple[float, float, float] | None:
    """Return the scale of the level if all three axes are in micrometres."""
    if any(axis.get("unit") != "micrometer" for axis in axes[-3:]):
        return None
    transforms = level.get("coordinateTransformations", ())
    scales = [transform["scale"] for transform in transforms if transform["type"] == "scale"]
    return tuple(scales[0][-3:]) if scales else None
