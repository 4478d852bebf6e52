"""OME-Zarr 0.4 and 0.5 as a stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.ome_zarr import note_missing_chunks, open_full_resolution
from ssp.stack import Stack, choose_one

AXES = ("t", "c", "z", "y", "x")


def open_ome_zarr(path: Path, scene: int | None = None, time: int | None = None) -> Stack:
    """Open the full resolution level of an OME-Zarr.

    Raises:
        ValueError: If it is no OME-Zarr, is damaged, has other axes than (t, c, z,) y, x, or a
            time must be chosen.
    """
    choose_one(path, "scene", 1, scene)
    level = open_full_resolution(path)
    array, axes = level.array, level.axes
    if axes != tuple(axis for axis in AXES if axis in axes) or axes[-2:] != ("y", "x"):
        raise ValueError(
            f"{path} has axes {', '.join(axes)}; expected t, c, z, y, x in this order, of which "
            "t, c and z may be missing: convert it"
        )
    note_missing_chunks(level)
    sizes = dict(zip(axes, array.shape, strict=True))
    time = choose_one(path, "time", sizes.get("t", 1), time)
    num_channels, num_planes = sizes.get("c", 1), sizes.get("z", 1)

    def read_planes(channel: int, z_start: int, z_stop: int) -> np.ndarray:
        places = {"t": time, "c": channel, "z": slice(z_start, z_stop)}
        try:
            planes = array[tuple(places.get(axis, slice(None)) for axis in axes)]
        except (RuntimeError, ValueError) as error:  # what the codecs raise
            raise ValueError(f"{path} holds damaged chunks ({error}); copy it again") from error
        return planes.reshape(-1, *planes.shape[-2:])

    size_um = dict(level.size_um)
    if num_planes == 1 and "y" in size_um:
        size_um.setdefault("z", size_um["y"])
    names = (*level.channel_names, *[""] * num_channels)
    return Stack(
        path=path,
        shape=(num_channels, num_planes, sizes["y"], sizes["x"]),
        dtype=np.dtype(array.dtype),
        voxel_size_um=(size_um["z"], size_um["y"], size_um["x"]) if len(size_um) == 3 else None,
        channel_names=names[:num_channels],
        read_planes=read_planes,
    )
