"""A stack: one image of a file as channels of planes, read only where it is asked for.

Shape legend: C channels, Z planes, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VoxelSize = tuple[float, float, float]  # in um (Z, Y, X)
ReadPlanes = Callable[[int, int, int], np.ndarray]
PIXEL_TYPES = ("uint8", "uint16", "int16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Stack:
    """One image of a file, at one time.

    Attributes:
        path: The file, or the folder of an OME-Zarr.
        shape: (C, Z, Y, X).
        dtype: Type of the voxels, one of `PIXEL_TYPES`.
        voxel_size_um: (Z, Y, X), or None if the file does not say it. Z of a single plane that
            says nothing about it is that of Y.
        channel_names: One for each channel, "" where the file gives none.
        read_planes: Returns planes z_start..z_stop (Z, Y, X) of a channel; see `read`.
    """

    path: Path
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    voxel_size_um: VoxelSize | None
    channel_names: tuple[str, ...]
    read_planes: ReadPlanes

    def __post_init__(self) -> None:
        if self.dtype.name not in PIXEL_TYPES:
            raise ValueError(
                f"{self.path} holds voxels of type {self.dtype}; expected one of "
                f"{', '.join(PIXEL_TYPES)}: convert it"
            )

    def read(self, channel: int, z_start: int = 0, z_stop: int | None = None) -> np.ndarray:
        """Return planes z_start..z_stop of a channel, (Z, Y, X) of type `dtype`.

        Raises:
            ValueError: If the voxels are damaged.
        """
        return self.read_planes(channel, z_start, self.shape[1] if z_stop is None else z_stop)

    def find_channel(self, channel: int | str | None) -> int:
        """Return the index of a channel given by index or name; None means the only one.

        Raises:
            ValueError: If there is no such channel, or none was named and there are several.
        """
        count = self.shape[0]
        if channel is None and count == 1:
            return 0
        if isinstance(channel, int) and 0 <= channel < count:
            return channel
        matches = [i for i, name in enumerate(self.channel_names) if name and name == channel]
        if len(matches) == 1:
            return matches[0]
        wanted = "none is chosen" if channel is None else f"there is no {channel!r}"
        names = ", ".join(f"{i} {name!r}" for i, name in enumerate(self.channel_names))
        raise ValueError(
            f"{self.path} has {count} channel(s), {names}, and {wanted}; give an index or name"
        )


def choose_one(path: Path, kind: str, count: int, chosen: int | None) -> int:
    """Return which one of several images or times is meant; the only one if none is chosen.

    Args:
        path: The file, for the error.
        kind: What there are several of: "scene" or "time".
        count: How many the file holds.
        chosen: Which one, from 0.

    Raises:
        ValueError: If it does not exist, or none is chosen of several.
    """
    if chosen is None and count == 1:
        return 0
    if chosen is not None and 0 <= chosen < count:
        return chosen
    found = "none is chosen" if chosen is None else f"{kind} {chosen} is not among them"
    raise ValueError(
        f"{path} holds {count} {kind}s and {found}; give a {kind} from 0 to {count - 1}"
    )
