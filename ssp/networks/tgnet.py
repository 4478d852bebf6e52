"""TGNet-style: DoDNet whose encoder and skips are modulated by task and image too.

TGNet has no public code. Its paper describes an advanced DoDNet with task-guided residual blocks in
the encoder and task-guided attention on the skips. Here the second block of every stage of the
encoder, the bottleneck's included, is a residual F that is gated by channel,

    x + F(x) * sigmoid(linear(task, mean of x)),

and every skip is multiplied by such a gate of its own. The head is DoDNet's.

Reference: Wu et al., TGNet: a Task-Guided Network Architecture for Multi-Organ and Tumour
Segmentation from Partially Labelled Datasets, ISBI 2022.

Shape legend: N samples, C channels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from core.unet3d import Blocks, Parts, TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import ByFeature, TaskLinear, over_space, spatial_mean
from ssp.networks.dodnet import DynamicHead, WithBottleneck, check_head_channels


@dataclass(frozen=True)
class TGNetConfig:
    """Sizes.

    Args:
        backbone: Sizes.
        head_channels: Channels of the layers with dynamic kernels.
    """

    backbone: Backbone = field(default_factory=Backbone)
    head_channels: int = 8

    def __post_init__(self) -> None:
        check_head_channels(self.head_channels)


def build(config: TGNetConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return the TGNet-style network; see `ssp.networks.registry.build_network`."""
    backbone = config.backbone
    parts = backbone.parts(backbone.encoder_axes, kind=partial(GuidedParts, num_tasks))
    skips = [GatedByTask(width, num_tasks) for width in backbone.widths[:-1]]
    network = backbone.network(
        num_layers,
        backbone.encoder(parts),
        WithBottleneck(ByFeature(skips, backbone.decoder())),
        DynamicHead(backbone, num_tasks, config.head_channels),
    )
    return TaskConditioned(network, num_tasks)


class TaskAttention(nn.Module):
    """A gate in 0..1 for each channel, from the task and the features' mean over space.

    Args:
        channels: C.
        num_tasks: T.
    """

    def __init__(self, channels: int, num_tasks: int) -> None:
        super().__init__()
        self.linear = TaskLinear(channels, num_tasks, channels)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the gates (N, C, 1, ...) for features (N, C, *S)."""
        return over_space(self.linear(spatial_mean(x), *condition).sigmoid(), x)


class GatedByTask(nn.Module):
    """Features times their gates."""

    def __init__(self, channels: int, num_tasks: int) -> None:
        super().__init__()
        self.attention = TaskAttention(channels, num_tasks)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C, *S) of features (N, C, *S)."""
        return x * self.attention(x, *condition)


class GuidedResidual(nn.Module):
    """Features and a gated residual of them.

    Args:
        residual: F, which keeps the number of channels.
        channels: C.
        num_tasks: T.
    """

    def __init__(self, residual: nn.Module, channels: int, num_tasks: int) -> None:
        super().__init__()
        self.residual = residual
        self.attention = TaskAttention(channels, num_tasks)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C, *S) of features (N, C, *S)."""
        out: Tensor = x + self.residual(x, *condition) * self.attention(x, *condition)
        return out


class GuidedParts(Parts):
    """Parts whose second blocks are guided residuals.

    Args:
        num_tasks: T.
        *choices: Those of `Parts`.
        **options: Those of `Parts`.
    """

    def __init__(self, num_tasks: int, *choices: Any, **options: Any) -> None:
        super().__init__(*choices, **options)
        self.num_tasks = num_tasks

    def blocks(self, in_channels: int, out_channels: int) -> Blocks:
        """Return a block and a guided residual: in -> out -> out channels."""
        first, second = super().blocks(in_channels, out_channels)
        return Blocks([first, GuidedResidual(second, out_channels, self.num_tasks)])
