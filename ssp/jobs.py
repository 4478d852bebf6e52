"""What is to be stored of each pair of images, from their headers alone.

Shape legend: Z planes, Y rows, X columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.ome_zarr import METADATA_FILES
from core.terminal import progress
from ssp.lists import Row, Source
from ssp.readers import open_stack, plain_name
from ssp.resample import Shape, resampled_shape
from ssp.stack import Stack, VoxelSize

Order = Literal["zscore-resample", "resample-zscore"]


@dataclass(frozen=True)
class Resampling:
    """How volumes are resampled; the fields are options of `prepare`."""

    voxel_size: float
    source_voxel_size: VoxelSize | None
    factor: VoxelSize | None
    order: Order

    def factors(self, stack: Stack) -> tuple[float, float, float]:
        """Return by what Z, Y and X of a stack grow.

        Raises:
            ValueError: If its voxel size is needed and unknown.
        """
        if self.factor is not None:
            return self.factor
        size = self.source_voxel_size or stack.voxel_size_um
        if size is None:
            raise ValueError(
                f"{stack.path} does not say its voxel size; give it in um with "
                "--source-voxel-size Z Y X, or --factor 1 1 1 to keep the voxels as they are"
            )
        return (size[0] / self.voxel_size, size[1] / self.voxel_size, size[2] / self.voxel_size)


@dataclass(frozen=True)
class Job:
    """One volume to store.

    Attributes:
        key: Its name, which two volumes share only if they are the same.
        stack: Where it is read.
        channel: Index of its channel.
        out_shape: (Z, Y, X) after resampling.
        is_plane: Whether it is stored as (Y, X): a target of one plane, for all of its signal's.
        source_voxel_size_um: (Z, Y, X), or None if unknown.
    """

    key: str
    stack: Stack
    channel: int
    out_shape: Shape
    is_plane: bool
    source_voxel_size_um: VoxelSize | None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape of the stored array."""
        return self.out_shape[1:] if self.is_plane else self.out_shape


def plan_pairs(
    rows: Sequence[Row], resampling: Resampling, axes: str | None
) -> list[tuple[Job, Job]]:
    """Return what to store of each row, its signal and its target.

    Raises:
        ValueError: If an image is no stack, lacks a channel or a voxel size, or does not fit its
            target.
    """
    sources = dict.fromkeys(source for row in rows for source in (row.signal, row.target))
    stacks = {}
    with progress("reading headers", len(sources), "images") as advance:
        for source in sources:
            stacks[source] = open_stack(source.path, source.scene, source.time, axes)
            advance(1)
    pairs = []
    for row in rows:
        signal, target = stacks[row.signal], stacks[row.target]
        _check_target(signal, target, resampling)
        factors = resampling.factors(signal)
        voxel_size_um = resampling.source_voxel_size or signal.voxel_size_um
        pair = []
        for source, stack, channel, is_plane in (
            (row.signal, signal, row.signal_channel, False),
            (row.target, target, row.target_channel, target.shape[1] == 1),
        ):
            index, shape = stack.find_channel(channel), resampled_shape(stack.shape[1:], factors)
            key = _key(source, index, shape, is_plane, resampling.order, axes)
            pair.append(Job(key, stack, index, shape, is_plane, voxel_size_um))
        pairs.append(tuple(pair))
    return pairs


def _check_target(signal: Stack, target: Stack, resampling: Resampling) -> None:
    """Raise ValueError unless a target lies on the voxels, or the rows and columns, of a signal."""
    depths = {signal.shape[1], 1}
    if target.shape[2:] != signal.shape[2:] or target.shape[1] not in depths:
        found, expected = (" x ".join(map(str, stack.shape[1:])) for stack in (target, signal))
        raise ValueError(
            f"{target.path} is {found} (Z x Y x X) but its signal {signal.path} is {expected}; a "
            "target has the rows and columns of its signal and as many planes, or one"
        )
    sizes = signal.voxel_size_um, target.voxel_size_um
    if None in sizes or resampling.factor or resampling.source_voxel_size:
        return
    if not np.allclose(sizes[0][1:], sizes[1][1:], rtol=0.01):
        raise ValueError(
            f"{target.path} has pixels of {sizes[1][1:]} um but its signal {signal.path} of "
            f"{sizes[0][1:]}; check the pair, or give --source-voxel-size Z Y X"
        )


def _key(
    source: Source, channel: int, shape: Shape, is_plane: bool, order: Order, axes: str | None
) -> str:
    """Return the name of a stored volume: readable, and a hash of all it depends on."""
    path = source.path.resolve()
    files = [path / name for name in METADATA_FILES] if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    facts = (str(path), state, source.scene, source.time, channel, shape, is_plane, order, axes)
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return f"{plain_name(path)}-c{channel}-{digest[:12]}"
