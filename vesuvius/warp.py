"""Geometric changes of a patch of many layers at the price of one.

albumentations warps an image four channels at a time, once per change. Here it warps a picture of
coordinates instead, which has two channels whatever the number of layers: each pixel then says
where its value comes from, and all layers are fetched at once.

Axes: Y rows, X columns, Z layers, C maps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

OUTSIDE = -1e6  # no weight of interpolation leaves a coordinate mixed with this inside a patch
CHANNELS = 4  # as many as OpenCV fetches at once


@functools.cache
def own_coordinates(height: int, width: int) -> NDArray[np.float32]:
    """Return the picture of coordinates that changes nothing: (Y, X, 2), x before y."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x, y], axis=-1)


def warp(
    patch_YXZ: NDArray[np.uint8],
    maps_YXC: NDArray[np.uint8],
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    fill: int,
    is_grey: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return patch and maps moved alike.

    Args:
        patch_YXZ: Voxels, interpolated linearly.
        maps_YXC: Label and masks, of which the nearest pixel is taken; 0 from outside the patch.
        change: What is done to a picture of coordinates; `OUTSIDE` is what it fills with.
        fill: Intensity of voxels from outside the patch, 0..255.
        is_grey: Whether the first of the maps holds greys, which are interpolated linearly as the
            voxels are; outside the patch its rim goes on, which the masks keep from counting.
    """
    unchanged = own_coordinates(*patch_YXZ.shape[:2])
    source = change(unchanged)
    if np.array_equal(source, unchanged):
        return patch_YXZ, maps_YXC
    fixed = cv2.convertMaps(source, None, cv2.CV_16SC2)
    pictures = _to_pictures(patch_YXZ)
    for picture in pictures:
        picture[:] = cv2.remap(picture, *fixed, cv2.INTER_LINEAR, borderValue=(fill,) * CHANNELS)
    warped = _from_pictures(pictures)[..., : patch_YXZ.shape[2]]
    maps = cv2.remap(maps_YXC, source, None, cv2.INTER_NEAREST).reshape(maps_YXC.shape)
    if is_grey:
        grey = np.ascontiguousarray(maps_YXC[..., 0])
        maps[..., 0] = cv2.remap(grey, *fixed, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(warped), maps


def _to_pictures(patch_YXZ: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the layers four by four, (ceil(Z / 4), Y, X, 4), blank layers at the end.

    Four bytes are moved at a time, as one number.
    """
    height, width, depth = patch_YXZ.shape
    missing = -depth % CHANNELS
    if missing:
        patch_YXZ = np.pad(patch_YXZ, ((0, 0), (0, 0), (0, missing)))
    fours = np.ascontiguousarray(patch_YXZ).reshape(height * width, -1).view(np.int32)
    return cv2.transpose(fours).view(np.uint8).reshape(-1, height, width, CHANNELS)


def _from_pictures(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what `_to_pictures` was given, with the blank layers: (Y, X, Z)."""
    number, height, width, _ = pictures.shape
    fours = cv2.transpose(pictures.reshape(number, -1).view(np.int32))
    return fours.view(np.uint8).reshape(height, width, -1)
