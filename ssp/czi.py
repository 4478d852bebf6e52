"""CZI, the format of Zeiss microscopes, through pylibCZIrw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ssp.stack import Stack, VoxelSize, choose_one

PIXEL_TYPES = {"Gray8": np.uint8, "Gray16": np.uint16, "Gray32Float": np.float32}
OTHER_AXES = {"R": "rotations", "I": "illuminations", "H": "phases", "V": "views"}
METRES_UM = 1e6


def open_czi(path: Path, scene: int | None = None, time: int | None = None) -> Stack:
    """Open a CZI file.

    Raises:
        ValueError: If it is damaged, holds colour images or further axes, or a scene or time must
            be chosen.
    """
    with _opened(path) as document:
        box = document.total_bounding_box
        types = [document.get_channel_pixel_type(c) for c in range(box["C"][1])]
        scenes = document.scenes_bounding_rectangle_no_pyramid
        area = document.total_bounding_rectangle_no_pyramid
        metadata = ElementTree.fromstring(document.raw_metadata)
    if scenes:
        scene = sorted(scenes)[choose_one(path, "scene", len(scenes), scene)]
        area = scenes[scene]
    else:
        choose_one(path, "scene", 1, scene)
        scene = None
    time = choose_one(path, "time", box["T"][1], time)
    _check_axes(path, box, types)
    num_channels, num_planes = box["C"][1], box["Z"][1]
    dtype = np.result_type(*(PIXEL_TYPES[name] for name in types))

    def read_planes(channel: int, z_start: int, z_stop: int) -> np.ndarray:
        planes = np.empty((z_stop - z_start, area.h, area.w), dtype)
        with _opened(path) as document:
            for z, plane in enumerate(planes, z_start):
                place = {"C": channel, "Z": z, "T": time}
                plane[:] = document.read(roi=area, plane=place, scene=scene)[..., 0]
        return planes

    return Stack(
        path=path,
        shape=(num_channels, num_planes, area.h, area.w),
        dtype=dtype,
        voxel_size_um=_voxel_size_um(metadata, num_planes),
        channel_names=_channel_names(metadata, num_channels),
        read_planes=read_planes,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield the open document; what the library raises on damage becomes one line."""
    from pylibCZIrw import czi

    try:
        with czi.open_czi(str(path)) as document:
            yield document
    except (RuntimeError, ValueError, ElementTree.ParseError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as CZI: {reason}; copy it again") from error


def _check_axes(path: Path, box: dict[str, tuple[int, int]], types: list[str]) -> None:
    """Raise ValueError for colour images and axes other than C, Z, Y, X and T."""
    if unknown := sorted({*types} - {*PIXEL_TYPES}):
        raise ValueError(
            f"{path} holds pixels of type {', '.join(unknown)}; expected "
            f"{', '.join(PIXEL_TYPES)}: export the channels as grey images"
        )
    for axis, name in OTHER_AXES.items():
        if box.get(axis, (0, 1))[1] > 1:
            raise ValueError(
                f"{path} holds {box[axis][1]} {name}; channels, planes and times are expected: "
                "export one of them"
            )


def _voxel_size_um(metadata: ElementTree.Element, num_planes: int) -> VoxelSize | None:
    """Return the voxel size that the scaling gives, which is in metres."""
    found = {}
    for distance in metadata.iterfind("Metadata/Scaling/Items/Distance"):
        value = distance.findtext("Value")
        if value and float(value) > 0:
            found[distance.get("Id")] = float(value) * METRES_UM
    if num_planes == 1 and "Y" in found:
        found.setdefault("Z", found["Y"])
    return (found["Z"], found["Y"], found["X"]) if found.keys() >= {*"ZYX"} else None


def _channel_names(metadata: ElementTree.Element, count: int) -> tuple[str, ...]:
    """Return the name of each channel, "" for one without."""
    listed = metadata.findall("Metadata/Information/Image/Dimensions/Channels/Channel")
    names = [channel.get("Name", "") for channel in listed] + [""] * count
    return tuple(names[:count])
