"""CondNet: each convolution of the decoder sees the task as one more channel of a constant value.

Reference: Dmitriev and Kaufman, Learning Multi-Class Segmentations from Single-Class Datasets,
CVPR 2019.

Shape legend: N samples, C channels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.gatrep import TaskGroups
from core.unet3d import ConvFactory, TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import PerTask


@dataclass(frozen=True)
class CondNetConfig:
    """Sizes and choices that the papers leave open.

    Args:
        backbone: Sizes.
        values: Value of the first and of the last task; the others lie evenly between.
        own_head: Whether each task has a last convolution of its own, deaf to the value; else all
            share one, which hears it.
    """

    backbone: Backbone = field(default_factory=Backbone)
    values: tuple[float, float] = (-1.0, 1.0)
    own_head: bool = True

    def __post_init__(self) -> None:
        if len(self.values) != 2 or self.values[0] == self.values[1]:
            raise ValueError(
                f"values {self.values} give all tasks the same; give two that differ, -1 and 1 say"
            )


def build(config: CondNetConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return CondNet; see `ssp.networks.registry.build_network`."""
    backbone = config.backbone
    make_conv = partial(
        ValuedConv,
        values=np.linspace(*config.values, num_tasks).tolist(),
        make_conv=backbone.plain_conv(backbone.decoder_axes),
    )
    head = (
        PerTask(backbone.head() for _ in range(num_tasks))
        if config.own_head
        else make_conv(backbone.base_channels, 1)
    )
    decoder = backbone.decoder(backbone.parts(backbone.decoder_axes, make_conv))
    return TaskConditioned(backbone.network(num_layers, decoder=decoder, head=head), num_tasks)


class ValuedConv(nn.Module):
    """A convolution of features and one constant channel, the value of the task.

    Args:
        in_channels: Channels of the features.
        out_channels: Channels of the output.
        values: Value of each task.
        make_conv: Factory of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, values: list[float], make_conv: ConvFactory
    ) -> None:
        super().__init__()
        self.values = values
        self.conv = make_conv(in_channels + 1, out_channels)

    def forward(self, x: Tensor, groups: TaskGroups) -> Tensor:
        """Convolve features (N, C, *S) and the value of each sample's task."""
        values = x.new_tensor([self.values[task] for task in groups.ids])
        constant = values.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
        out: Tensor = self.conv(torch.cat([x, constant], dim=1))
        return out

    def plain(self, task: int) -> nn.Module:
        """Return the convolution of features and one value."""
        return _OneValueConv(copy.deepcopy(self.conv), self.values[task])


class _OneValueConv(nn.Module):
    """A convolution of features and a constant channel of one value.

    The value meets the zero padding, so it is more than a bias.
    """

    def __init__(self, conv: nn.Module, value: float) -> None:
        super().__init__()
        self.conv = conv
        self.value = value

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Convolve features (N, C, *S)."""
        constant = torch.full_like(x[:, :1], self.value)
        out: Tensor = self.conv(torch.cat([x, constant], dim=1))
        return out
