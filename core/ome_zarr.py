"""OME-Zarr 0.4 and 0.5: the full resolution level of an image, and what its metadata say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.terminal import note

METADATA_FILES = (".zgroup", ".zattrs", ".zarray", "zarr.json")
MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3}


@dataclass(frozen=True)
class ZarrLevel:
    """The full resolution level of an OME-Zarr image.

    Attributes:
        path: Folder of its array.
        axes: Name of each axis of the array, such as c, z, y, x.
        array: The `zarr.Array`; indexing it reads.
        size_um: Voxel size in um along the axes of space whose unit the file gives.
        channel_names: Labels of the channels, as far as the file gives them.
    """

    path: Path
    axes: tuple[str, ...]
    array: Any
    size_um: dict[str, float]
    channel_names: tuple[str, ...]


def open_full_resolution(path: Path) -> ZarrLevel:
    """Open the full resolution level of an OME-Zarr.

    Raises:
        ValueError: If it is no OME-Zarr, is damaged or lacks that level.
    """
    import zarr

    try:
        group: Any = zarr.open(path, mode="r")
        attributes = group.attrs.asdict()
        attributes = attributes.get("ome", attributes)
        multiscales = attributes.get("multiscales")
        if multiscales:
            level = multiscales[0]["datasets"][0]
            array = group.get(level["path"])
            described: dict[str, Any] = {
                "axes": tuple(axis["name"] for axis in multiscales[0]["axes"]),
                "size_um": _size_um(multiscales[0], level),
                "channel_names": _channel_names(attributes),
            }
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
    return ZarrLevel(path=path / array.path, array=array, **described)


def note_missing_chunks(level: ZarrLevel) -> None:
    """Say so if chunks have no file and are read as the fill value.

    Writers leave out chunks of one value, as outside a mask, so this need not be damage; a copy
    that was cut short looks the same. One look at the disk per file; the library's own count takes
    the square of that.
    """
    array = level.array
    sides = array.shards or array.chunks
    grid = [-(-length // side) for length, side in zip(array.shape, sides, strict=True)]
    keys = [array.metadata.encode_chunk_key(place) for place in np.ndindex(*grid)]
    missing = [key for key in keys if not (level.path / key).is_file()]
    if missing:
        note(
            f"{level.path} lacks {len(missing)} of {len(keys)} chunks, the first being "
            f"{missing[0]}, which are read as {array.fill_value}; if they were not left out on "
            "purpose, copy it again"
        )


def _size_um(multiscale: dict[str, Any], level: dict[str, Any]) -> dict[str, float]:
    """Return the voxel size of a level in um, by axis; axes without a known unit are left out.

    The scale of the whole image, if there is one, comes on top of that of the level.
    """
    steps = [
        transform["scale"]
        for holder in (level, multiscale)
        for transform in holder.get("coordinateTransformations", ())
        if transform["type"] == "scale"
    ]
    if not steps:
        return {}
    scale = np.prod(steps, axis=0).tolist()
    return {
        axis["name"]: float(length * MICROMETRES[axis["unit"]])
        for axis, length in zip(multiscale["axes"], scale, strict=True)
        if axis.get("unit") in MICROMETRES
    }


def _channel_names(attributes: dict[str, Any]) -> tuple[str, ...]:
    """Return the labels that the display settings give to the channels."""
    channels = attributes.get("omero", {}).get("channels", [])
    return tuple(str(channel.get("label", "")) for channel in channels)
