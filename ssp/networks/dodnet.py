"""DoDNet: the kernels of the last layers are made by a controller that sees task and image.

Reference: Zhang et al., DoDNet: Learning to Segment Multi-Organ and Tumors from Multiple Partially
Labeled Datasets, CVPR 2021.

Shape legend: N samples, C input and O output channels, S spatial axes (ZYX or YX), K channels of
the dynamic layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from core.unet3d import TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import TaskLinear, spatial_mean


@dataclass(frozen=True)
class DoDNetConfig:
    """Sizes.

    Args:
        backbone: Sizes.
        head_channels: Channels of the layers with dynamic kernels.
    """

    backbone: Backbone = field(default_factory=Backbone)
    head_channels: int = 8

    def __post_init__(self) -> None:
        check_head_channels(self.head_channels)


def check_head_channels(head_channels: int) -> None:
    """Refuse dynamic layers without channels.

    Raises:
        ValueError: If there are none.
    """
    if head_channels < 1:
        raise ValueError(f"head_channels {head_channels} must be at least 1; DoDNet has 8")


def build(config: DoDNetConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return DoDNet; see `ssp.networks.registry.build_network`."""
    backbone = config.backbone
    network = backbone.network(
        num_layers,
        decoder=WithBottleneck(backbone.decoder()),
        head=DynamicHead(backbone, num_tasks, config.head_channels),
    )
    return TaskConditioned(network, num_tasks)


class WithBottleneck(nn.Module):
    """A decoder that hands on the bottleneck's features beside its own."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Sequence[Tensor], *condition: Any) -> tuple[Tensor, Tensor]:
        """Return the decoded features (N, C, *S) and the bottleneck's."""
        return self.decoder(features, *condition), features[-1]


class DynamicHead(nn.Module):
    """Three convolutions of size 1 whose kernels a controller makes for each sample.

    Args:
        backbone: Sizes.
        num_tasks: T.
        channels: K; with 8, as in DoDNet, a sample has 153 dynamic parameters.
    """

    def __init__(self, backbone: Backbone, num_tasks: int, channels: int) -> None:
        super().__init__()
        layers = pairwise([channels, channels, channels, 1])
        self.sizes = [size for before, after in layers for size in (before * after, after)]
        reduce = backbone.plain_conv(backbone.decoder_axes, size=1)
        self.reduce = reduce(backbone.base_channels, channels)
        self.controller = TaskLinear(backbone.widths[-1], num_tasks, sum(self.sizes))

    def forward(self, decoded: tuple[Tensor, Tensor], *condition: Any) -> Tensor:
        """Return the prediction (N, 1, *S) of the decoded and the bottleneck's features."""
        features, bottleneck = decoded
        dynamic = self.controller(spatial_mean(bottleneck), *condition).split(self.sizes, dim=1)
        *hidden, last = zip(dynamic[::2], dynamic[1::2], strict=True)
        x = self.reduce(features).flatten(2)
        for kernel, bias in hidden:
            x = torch.relu(_convolve_each(x, kernel, bias))
        return _convolve_each(x, *last).unflatten(2, features.shape[2:])


def _convolve_each(x_NCV: Tensor, kernels: Tensor, biases_NO: Tensor) -> Tensor:
    """Return (N, O, V) of features (N, C, V) of V voxels and a kernel (N, O * C) of each sample."""
    kernels_NOC = kernels.view(*biases_NO.shape, x_NCV.shape[1])
    return torch.baddbmm(biases_NO[:, :, None], kernels_NOC, x_NCV)
