"""The image of a file as a network needs it: one channel, z-scored, at the voxel size of training.

Shape legend: Z Y X voxels.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from core.provenance import file_hash
from ssp.readers import open_stack
from ssp.resample import Shape, resampled_shape, standardize
from ssp.stack import Stack, VoxelSize


@dataclass(frozen=True)
class InputConfig:
    """Which image of a file is predicted, and how large its voxels are.

    Args:
        channel: Index from 0 or name of the transmitted-light channel; the only one by default.
        scene: Which of several images, from 0.
        time: Which of several times, from 0.
        axes: For a TIFF that does not say it, the letter of each axis longer than 1: "CZYX".
        source_voxel_size: Voxel size of the image in um (Z Y X), in place of what it says.
        factor: Factors of Z, Y and X by which it is resampled, in place of voxel sizes; 1 1 1
            resamples nothing.
    """

    channel: int | str | None = None
    scene: int | None = None
    time: int | None = None
    axes: str | None = None
    source_voxel_size: tuple[float, float, float] | None = None
    factor: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("source_voxel_size", "factor"):
            values = getattr(self, name)
            if values is not None and not all(0 < value < float("inf") for value in values):
                raise ValueError(f"{name} {' '.join(map(str, values))} must be above 0")
        if self.factor and self.source_voxel_size:
            raise ValueError("factor and source_voxel_size both say how to resample; give one")


@dataclass(frozen=True, eq=False)
class Source:
    """An image to be predicted.

    Attributes:
        stack: The image, no voxel of it read yet.
        config: Which channel, and how large its voxels are.
        wanted_um: Voxel size of training (Z, Y, X); None if unknown.
    """

    stack: Stack
    config: InputConfig
    wanted_um: VoxelSize | None

    @property
    def shape(self) -> Shape:
        """Return (Z, Y, X) of the image as it is stored."""
        return self.stack.shape[1:]

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """Return the voxel size of the image (Z, Y, X), as given or as it says."""
        return self.config.source_voxel_size or self.stack.voxel_size_um

    @cached_property
    def channel(self) -> int:
        """Return the index of the channel that is predicted."""
        return self.stack.find_channel(self.config.channel)

    @cached_property
    def factors(self) -> tuple[float, float, float]:
        """Return by what Z, Y and X of the image grow.

        Raises:
            ValueError: If a voxel size that is needed is unknown.
        """
        if self.config.factor is not None:
            return self.config.factor
        size, wanted = self.voxel_size_um, self.wanted_um
        if size is None:
            raise ValueError(
                f"{self.stack.path} does not say its voxel size; give it in um with "
                "--source-voxel-size Z Y X, or --factor 1 1 1 to keep the voxels as they are"
            )
        if wanted is None:
            raise ValueError(
                "the model was trained on images of unknown voxel size; give the factors that "
                "they were prepared with as --factor Z Y X"
            )
        return (size[0] / wanted[0], size[1] / wanted[1], size[2] / wanted[2])

    @cached_property
    def resampled_shape(self) -> Shape:
        """Return (Z, Y, X) of the image at the voxel size of training."""
        return resampled_shape(self.shape, self.factors)

    @contextmanager
    def open(self, scratch: Path) -> Iterator[np.ndarray]:
        """Yield the z-scored, resampled image (Z, Y, X), float32, mapped from a temporary file."""
        stack, channel = self.stack, self.channel
        with tempfile.TemporaryFile(dir=scratch) as file:
            signal = np.memmap(file, np.float32, "w+", shape=self.resampled_shape)
            standardize(
                lambda start, stop: stack.read(channel, start, stop),
                self.shape,
                signal,
                scratch,
                f"{stack.path} channel {channel}",
            )
            yield signal

    @property
    def sha256(self) -> str:
        """Return a hash of the file, or of the names, sizes and times of the files of a folder."""
        path = self.stack.path
        if path.is_file():
            return file_hash(path)
        stats = [(file.relative_to(path), file.stat()) for file in sorted(path.rglob("*"))]
        rows = [(str(name), stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def open_source(path: Path, config: InputConfig, wanted_um: VoxelSize | None) -> Source:
    """Open an image to be predicted; no voxel is read yet.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If it is no stack, is damaged, or a scene or time must be chosen.
    """
    return Source(open_stack(path, config.scene, config.time, config.axes), config, wanted_um)
