"""Predictions as files: back on the grid of the image, as OME-TIFF or OME-Zarr, plane by plane.

Shape legend: Z Y X voxels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from core.files import atomic_dir, atomic_path
from ssp.resample import BAND_BYTES, ReadPlanes, Shape, axis_matrix, resample_plane
from ssp.stack import VoxelSize

Format = Literal["ome-tiff", "ome-zarr"]
SUFFIXES: dict[Format, str] = {"ome-tiff": ".ome.tif", "ome-zarr": ".ome.zarr"}
BIG_TIFF_BYTES = 2**32 - 2**25  # offsets of the classic format end at 4 GiB


def restored(
    read: ReadPlanes, shape: Shape, new_shape: Shape, scratch: Path
) -> Iterator[np.ndarray]:
    """Yield the planes (Y, X) of a volume resampled to another shape, float32, in order.

    Args:
        read: Returns planes z_start..z_stop, float32.
        shape: (Z, Y, X) of the volume.
        new_shape: (Z, Y, X) to resample to, cubic, first and last voxel kept in place.
        scratch: Folder for a temporary file, float32, (Z of `shape`, Y and X of `new_shape`).
    """
    planes = (
        resample_plane(plane, new_shape[1:]) for z in range(shape[0]) for plane in read(z, z + 1)
    )
    if shape[0] == new_shape[0]:
        yield from planes
        return
    with tempfile.TemporaryFile(dir=scratch) as file:
        flat = np.memmap(file, np.float32, "w+", shape=(shape[0], *new_shape[1:]))
        for z, plane in enumerate(planes):
            flat[z] = plane
        along_z = axis_matrix(shape[0], new_shape[0])
        size = max(1, BAND_BYTES // flat[0].nbytes)
        for start in range(0, new_shape[0], size):
            band = along_z[start : start + size] @ flat.reshape(shape[0], -1)
            yield from band.reshape(-1, *new_shape[1:])


def write_image(
    path: Path, planes: Iterator[np.ndarray], shape: Shape, size_um: VoxelSize | None, name: str
) -> None:
    """Write planes as OME-TIFF or OME-Zarr, as the path ends, whole or not at all.

    Args:
        path: What to write.
        planes: Planes (Y, X), float32, in order.
        shape: (Z, Y, X) of all of them.
        size_um: Voxel size (Z, Y, X), None if unknown.
        name: Of the channel.
    """
    write = _write_zarr if path.name.endswith(SUFFIXES["ome-zarr"]) else _write_tiff
    write(path, planes, shape, size_um, name)


def _write_tiff(
    path: Path, planes: Iterator[np.ndarray], shape: Shape, size_um: VoxelSize | None, name: str
) -> None:
    """Write an OME-TIFF, with the axes ZYX."""
    import tifffile

    metadata = {"axes": "ZYX", "Channel": {"Name": [name]}}
    for axis, size in zip("ZYX", size_um or (), strict=False):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            (np.ascontiguousarray(plane, np.float32) for plane in planes),
            shape=shape,
            dtype=np.float32,
            photometric="minisblack",
            ome=True,
            bigtiff=4 * np.prod(shape, dtype=np.int64) > BIG_TIFF_BYTES,
            metadata=metadata,
        )


def _write_zarr(
    path: Path, planes: Iterator[np.ndarray], shape: Shape, size_um: VoxelSize | None, name: str
) -> None:
    """Write an OME-Zarr 0.4 of one level, with the axes zyx and a chunk for each plane."""
    import zarr

    unit = {} if size_um is None else {"unit": "micrometer"}
    scale = {"type": "scale", "scale": list(size_um or (1.0, 1.0, 1.0))}
    image = {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    with atomic_dir(path) as partial:
        group = zarr.create_group(partial, zarr_format=2)
        array = group.create_array(
            "0", shape=shape, dtype=np.float32, chunks=(1, *shape[1:]),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )  # fmt: skip
        for z, plane in enumerate(planes):
            array[z] = plane
        group.attrs["multiscales"] = [image]
