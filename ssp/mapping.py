"""Predictions of whole images: a network run tile by tile over a volume in bounded memory.

Shape legend: N tiles, M members, Z Y X voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.inference import Journal, Write, stream
from core.tiling import TilePlan
from core.uncertainty import Member, predictor
from ssp.networks.backbone import Target


class OneChannel(nn.Module):
    """A network of volumes with a channel axis, for tiles without one.

    Args:
        network: Volumes (N, 1, Z, Y, X) to predictions (N, 1, *S).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles_NZYX: Tensor) -> Tensor:
        """Return the predictions (N, 1, *S)."""
        out: Tensor = self.network(tiles_NZYX[:, None]).float()
        return out


@dataclass(frozen=True)
class Field:
    """What is tiled of an image: all of it, or rows and columns if a map is predicted.

    Attributes:
        shape: (Z, Y, X) of the image.
        tile: (Z, Y, X) of a tile.
        target: What is predicted.
        num_layers: Z that the network needs, where it predicts a map.

    Raises:
        ValueError: If the network cannot take the planes of the image.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    target: Target = "stack"
    num_layers: int | None = None

    def __post_init__(self) -> None:
        if self.is_map and self.shape[0] != self.num_layers:
            raise ValueError(
                f"the image has {self.shape[0]} planes; this network makes one map of "
                f"{self.num_layers}: give an image of as many, at the same distances"
            )

    @property
    def is_map(self) -> bool:
        """Whether a map (Y, X) is predicted."""
        return self.target != "stack"

    @property
    def plan(self) -> TilePlan:
        """Return the tiles, half a tile apart."""
        first = 1 if self.is_map else 0
        tile = self.tile[first:]
        stride = tuple(max(1, length // 2) for length in tile)
        return TilePlan(self.shape[first:], tile, stride)

    def read(self, signal: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return a range of the streaming axis of a z-scored image (Z, Y, X)."""
        part = signal[:, start:stop] if self.is_map else signal[start:stop]
        return np.ascontiguousarray(part)

    def check_samples(self, multiple: int) -> None:
        """Refuse tiles so small that samples could not place their dropout in the field.

        Args:
            multiple: What a network pads its input to a multiple of.

        Raises:
            ValueError: If a tile is at most half of that.
        """
        if 2 * min(self.plan.tile) <= multiple:
            raise ValueError(
                f"tiles of {' x '.join(map(str, self.plan.tile))} are at most half of the "
                f"{multiple} that the network pads them to, too small for Monte Carlo samples; "
                "train it on larger patches"
            )


def map_image(
    members: Sequence[Member],
    signal: np.ndarray,
    field: Field,
    write: Write,
    device: torch.device | str,
    batch_size: int = 1,
    journal: Journal | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Predict one image with one member or with several at once.

    Args:
        members: Of one task, tiles (N, Z, Y, X) to (N, 1, *S).
        signal: Z-scored image (Z, Y, X), any float type.
        field: How it is tiled.
        write: Takes start, stop and values (M, planes, Y, X), or (M, rows, X) of maps.
        device: Where to compute.
        batch_size: Tiles predicted at once.
        journal: See `core.inference.stream`.
        advance: Told of tiles done.
    """
    stream(
        field.plan,
        lambda start, stop: field.read(signal, start, stop),
        predictor(members, device),
        write,
        batch_size=batch_size,
        num_channels=len(members),
        journal=journal,
        advance=advance,
    )
