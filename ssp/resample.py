"""Cubic resampling and z-scores, band by band.

Resampling is a product of one matrix for each axis, so it needs neither the whole volume nor a halo
around a part of it. The matrices are those of `scipy.ndimage.zoom`: first and last voxel stay where
they are.

Shape legend: Z planes, Y rows, X columns.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

Shape = tuple[int, int, int]
ReadPlanes = Callable[[int, int], np.ndarray]
BAND_BYTES = 64 * 2**20  # float32 voxels of a band; a few such arrays exist at a time


class Moments(NamedTuple):
    """Mean and standard deviation of a volume; z-score * std + mean is the original intensity."""

    mean: float
    std: float


def resampled_shape(shape: Shape, factors: tuple[float, float, float]) -> Shape:
    """Return the shape after resampling; a single plane stays one."""
    sizes = [max(1, round(n * factor)) for n, factor in zip(shape, factors, strict=True)]
    return (1 if shape[0] == 1 else sizes[0], sizes[1], sizes[2])


@functools.lru_cache(maxsize=16)
def axis_matrix(length: int, new_length: int) -> np.ndarray:
    """Return the cubic resampling of one axis as a matrix, float32 (new_length, length).

    Reference: cubic B-spline interpolation with nearest padding, as `scipy.ndimage.zoom` has it.
    """
    from scipy.ndimage import zoom

    if length == new_length:
        return np.eye(length, dtype=np.float32)
    matrix = zoom(np.eye(length), (new_length / length, 1), order=3, mode="nearest")
    return matrix.astype(np.float32)


def measure(read: ReadPlanes, shape: Shape, name: str) -> Moments:
    """Return mean and standard deviation of a volume that is read band by band.

    Args:
        read: Returns start..stop along the first axis.
        shape: Of the volume.
        name: What it is, for the error.

    Raises:
        ValueError: If it is constant or holds values that are not finite.
    """
    means, spreads = [], []
    for start, stop in _bands(shape):
        for plane in read(start, stop):
            means.append(plane.mean(dtype=np.float64))
            if not np.isfinite(means[-1]):  # the mean of all will not be finite either
                break
            spreads.append(np.square(plane - means[-1]).mean())
    mean = float(np.mean(means))
    std = float("nan")
    if np.isfinite(mean):
        std = float(np.sqrt(np.mean(spreads) + np.mean(np.square(np.subtract(means, mean)))))
    if not 0 < std < np.inf:
        raise ValueError(
            f"{name} has mean {mean:g} and standard deviation {std:g} and cannot be z-scored; it "
            "needs finite values that are not all the same"
        )
    return Moments(mean, std)


def standardize(
    read: ReadPlanes,
    shape: Shape,
    out: np.ndarray,
    scratch: Path,
    name: str,
    is_resampled_first: bool = False,
) -> Moments:
    """Write the z-scored and resampled volume into `out` and return its moments.

    Args:
        read: Returns planes z_start..z_stop of the volume, of any type.
        shape: Of the volume.
        out: Float array of the resampled shape to write into, such as a mapped file.
        scratch: Folder for a temporary file, float32, (Z of `shape`, Y and X of `out`).
        name: What the volume is, for the error.
        is_resampled_first: Whether mean and deviation are those after resampling. It makes no
            other difference which comes first, as resampling keeps the sum of weights.

    Raises:
        ValueError: If the volume is constant or holds values that are not finite.
    """
    first = measure(read, shape, name)
    with tempfile.TemporaryFile(dir=scratch) as file:
        flat = np.memmap(file, np.float32, "w+", shape=(shape[0], *out.shape[1:]))
        for start, stop in _bands(shape):
            for z, plane in enumerate(read(start, stop), start):
                scored = (plane.astype(np.float32) - np.float32(first.mean)) / np.float32(first.std)
                flat[z] = resample_plane(scored, out.shape[1:])
        along_z = axis_matrix(shape[0], out.shape[0])

        def rows(start: int, stop: int) -> np.ndarray:
            """Return rows start..stop of the resampled volume, (Y, Z, X)."""
            return np.tensordot(along_z, flat[:, start:stop], 1).transpose(1, 0, 2)

        num_planes, height, width = out.shape
        shape_YZX = (height, max(shape[0], num_planes), width)
        second = measure(rows, shape_YZX, name) if is_resampled_first else Moments(0.0, 1.0)
        for start, stop in _bands(shape_YZX):
            scored = (rows(start, stop) - np.float32(second.mean)) / np.float32(second.std)
            out[:, start:stop] = scored.transpose(1, 0, 2)
    return Moments(first.mean + first.std * second.mean, first.std * second.std)


def resample_plane(plane_YX: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a float32 plane resampled to another shape; the plane itself if that is its shape."""
    if plane_YX.shape == shape:
        return plane_YX
    along_y, along_x = map(axis_matrix, plane_YX.shape, shape)
    return along_y @ plane_YX @ along_x.T


def _bands(shape: Shape) -> list[tuple[int, int]]:
    """Return start and stop of bands along the first axis that are small in memory."""
    size = max(1, BAND_BYTES // (4 * shape[1] * shape[2]))
    return [(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]
