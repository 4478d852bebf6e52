"""Masked autoencoding: blocks of a volume are hidden, and a network learns to say what they hold.

What it learns with is any 3D encoder; the decoder is light and thrown away afterwards. A
convolutional encoder cannot leave the hidden blocks out as a transformer does, so their voxels are
set to the mean of the visible ones. The loss counts hidden voxels only.

Reference: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; a decoder with
skips over a convolutional encoder: Tian et al., ICLR 2023 (SparK).

Shape legend: N samples, C channels, Z Y X voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.encoder_decoder import pad_to_multiple
from core.unet3d import Decoder, Encoder, Parts, PlainConv

VARIANCE_FLOOR = 1e-6  # keeps blocks of one value finite when they are normalised


@dataclass(frozen=True)
class MaskConfig:
    """What of a volume is hidden, and what the network has to say about it.

    Args:
        block: Layers, rows and columns of the blocks that are hidden; the last ones are cut.
        ratio: Share of the blocks that are hidden, above 0 and below 1.
        normalize_blocks: Whether each block is to be told with its own mean and standard deviation
            taken away, as the paper does; else its values as they are.
    """

    block: tuple[int, int, int] = (4, 8, 8)
    ratio: float = 0.6
    normalize_blocks: bool = False

    def __post_init__(self) -> None:
        if len(self.block) != 3 or min(self.block) < 1:
            raise ValueError(f"mask.block {self.block} is not (layers, rows, columns), each >= 1")
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio is {self.ratio}; allowed is above 0 and below 1")

    def target(self, x: Tensor) -> Tensor:
        """Return what a network is to say about volumes (N, C, Z, Y, X)."""
        if not self.normalize_blocks:
            return x
        mean, std = block_statistics(x, self.block)
        return (x - mean) / std

    def values(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Return the volumes that a prediction means, given those (N, C, Z, Y, X) it was for."""
        if not self.normalize_blocks:
            return prediction
        mean, std = block_statistics(x, self.block)
        return prediction * std + mean


def hidden_voxels(
    shape: tuple[int, int, int], config: MaskConfig, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which voxels of a volume (Z, Y, X) are hidden: whole blocks, drawn at random.

    Raises:
        ValueError: If the volume has too few blocks for some to be hidden and some to be seen.
    """
    counts = [math.ceil(length / side) for length, side in zip(shape, config.block, strict=True)]
    num_blocks = math.prod(counts)
    num_hidden = round(config.ratio * num_blocks)
    if not 0 < num_hidden < num_blocks:
        raise ValueError(
            f"mask.ratio {config.ratio} hides {num_hidden} of the {num_blocks} blocks of "
            f"{config.block} in a volume of {tuple(shape)}; take smaller blocks or another ratio"
        )
    hidden = np.zeros(num_blocks, dtype=bool)
    hidden[rng.choice(num_blocks, num_hidden, replace=False)] = True
    hidden = hidden.reshape(counts)
    for axis, side in enumerate(config.block):
        hidden = hidden.repeat(side, axis)
    return hidden[: shape[0], : shape[1], : shape[2]]


def hide(x: Tensor, hidden: Tensor) -> Tensor:
    """Return volumes (N, 1, Z, Y, X) with hidden voxels set to the mean of the sample's visible."""
    visible = ~hidden
    total = torch.where(visible, x, 0).sum(dim=(1, 2, 3, 4), keepdim=True)
    return torch.where(visible, x, total / visible.sum(dim=(1, 2, 3, 4), keepdim=True))


def hidden_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error over the hidden voxels, whatever the visible ones hold.

    Args:
        prediction: (N, 1, Z, Y, X).
        target: The same shape.
        hidden: bool, the same shape; at least one voxel.
    """
    # replaced before the arithmetic, so that visible values have no part in the gradient either
    difference = torch.where(hidden, prediction, 0) - torch.where(hidden, target, 0)
    return difference.square().sum() / hidden.sum()


def block_statistics(x: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the block of every voxel, each (N, C, Z, Y, X)."""
    mean = _spread(_pool(x, block), block, x)
    variance = _spread(_pool((x - mean).square(), block), block, x)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def _pool(x: Tensor, block: Sequence[int]) -> Tensor:
    size = tuple(block)
    return F.avg_pool3d(x, size, size, ceil_mode=True, count_include_pad=False)


def _spread(pooled: Tensor, block: Sequence[int], like: Tensor) -> Tensor:
    """Return the value of its block for every voxel of `like`."""
    for axis, side in enumerate(block, start=2):
        pooled = pooled.repeat_interleave(side, dim=axis)
    depth, height, width = like.shape[2:]
    return pooled[:, :, :depth, :height, :width]


class VolumeAutoencoder(nn.Module):
    """An encoder of volumes and a light decoder: volumes to volumes of the same size.

    The decoder is of plain convolutions and stops at half the resolution, where each position
    tells the eight voxels it stands for.

    Args:
        encoder: What is to learn; called with the condition too.
        base_channels: Width of its first stage.
        num_stages: Number of its halvings.
    """

    def __init__(self, encoder: Encoder, base_channels: int, num_stages: int) -> None:
        super().__init__()
        self.multiple = 2**num_stages
        self.encoder = encoder
        self.decoder = Decoder(Parts(PlainConv), 2 * base_channels, num_stages - 1)
        self.head = nn.Conv3d(2 * base_channels, 8, 1)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return volumes (N, 1, Z, Y, X) of volumes (N, 1, Z, Y, X) of any size."""
        features = self.encoder(pad_to_multiple(x, self.multiple), *condition)
        out = _eight_voxels(self.head(self.decoder(features[1:], *condition)))
        depth, height, width = x.shape[2:]
        return out[:, :, :depth, :height, :width]


def _eight_voxels(x: Tensor) -> Tensor:
    """Return volumes (N, 1, 2Z, 2Y, 2X) of features (N, 8, Z, Y, X), in the order zyx."""
    num_samples, _, depth, height, width = x.shape
    parts = x.reshape(num_samples, 2, 2, 2, depth, height, width).permute(0, 4, 1, 5, 2, 6, 3)
    return parts.reshape(num_samples, 1, 2 * depth, 2 * height, 2 * width)
