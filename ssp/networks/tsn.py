"""Task switching networks: a learned code of the task scales and shifts the decoder's features.

The encoder is plain and shared. A small network maps the task to a code; every skip and the
bottleneck, and every block of the decoder, pass a convolution, an instance normalisation and a
scale and shift that a linear layer makes of the code.

Reference: Sun et al., Task Switching Network for Multi-Task Learning, ICCV 2021.

Shape legend: N samples, C channels, S spatial axes (ZYX or YX), D distinct tasks, H code length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.gatrep import TaskGroups
from core.unet3d import Blocks, ConvFactory, Parts, TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import ByFeature, PerTask, over_space, spatial_mean

NUM_MAPPINGS = 8


@dataclass(frozen=True)
class TSNConfig:
    """Sizes and choices that the papers leave open.

    Args:
        backbone: Sizes.
        ones_per_task: Length of a task's block of ones in its code before the mapping; the code
            is `num_tasks` times as long, and as long behind the mapping.
        own_head: Whether each task has a last convolution of its own, as the paper says of task
            switching networks in its comparison; else all share one.
    """

    backbone: Backbone = field(default_factory=Backbone)
    ones_per_task: int = 20
    own_head: bool = True

    def __post_init__(self) -> None:
        if self.ones_per_task < 1:
            raise ValueError(f"ones_per_task {self.ones_per_task} must be at least 1; use 20")


def build(config: TSNConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return the task switching network; see `ssp.networks.registry.build_network`."""
    backbone, num_axes = config.backbone, config.backbone.decoder_axes
    task_code = TaskCode(num_tasks, config.ones_per_task)
    parts = backbone.parts(num_axes, kind=partial(SwitchingParts, task_code.length))
    narrow = backbone.plain_conv(num_axes, size=1)
    switches = [parts.switch(width, width, narrow) for width in backbone.widths]
    head = PerTask(backbone.head() for _ in range(num_tasks)) if config.own_head else None
    network = backbone.network(
        num_layers, decoder=ByFeature(switches, backbone.decoder(parts)), head=head
    )
    return TaskConditioned(Coded(network, task_code), num_tasks)


class Coded(nn.Module):
    """A network whose condition ends with the codes of the batch's tasks, made once."""

    def __init__(self, network: nn.Module, task_code: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.task_code = task_code  # a traced network has a `code` of its own

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the prediction of fields (N, 1, *S)."""
        out: Tensor = self.network(x, *condition, self.task_code(*condition))
        return out


class TaskCode(nn.Module):
    """The code of a task: a block of ones at its place, mapped by eight linear layers.

    Args:
        num_tasks: T.
        ones_per_task: Length of a block.

    Attributes:
        length: H, both before and behind the mapping.
    """

    def __init__(self, num_tasks: int, ones_per_task: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.ones_per_task = ones_per_task
        self.length = num_tasks * ones_per_task
        self.mapping = nn.Sequential(
            *(
                layer
                for _ in range(NUM_MAPPINGS)
                for layer in (EqualizedLinear(self.length, self.length), nn.LeakyReLU(0.2))
            )
        )

    def forward(self, groups: TaskGroups) -> Tensor:
        """Return the codes (N, H) of the samples."""
        return self._map(groups.tasks)[groups.group]

    @torch.no_grad()
    def plain(self, task: int) -> nn.Module:
        """Return a module that returns the code (1, H) of one task."""
        device = next(self.parameters()).device
        return _OneCode(self._map(torch.tensor([task], device=device)))

    def _map(self, tasks_D: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        blocks = F.one_hot(tasks_D, self.num_tasks).repeat_interleave(self.ones_per_task, dim=1)
        codes: Tensor = self.mapping(pixel_norm(blocks.to(dtype)))
        return codes


class _OneCode(nn.Module):
    """The code of one task."""

    def __init__(self, code_1H: Tensor) -> None:
        super().__init__()
        self.code_1H: Tensor
        self.register_buffer("code_1H", code_1H)

    def forward(self, *condition: Any) -> Tensor:
        """Return the code (1, H)."""
        return self.code_1H


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are N(0, 1) and scaled when they are used.

    So all layers learn at one speed whatever their size.

    Reference: Karras et al., Progressive Growing of GANs, ICLR 2018, section 4.1.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (D, O) of inputs (D, I)."""
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


def pixel_norm(codes_DH: Tensor) -> Tensor:
    """Return codes divided by the root of their mean square."""
    return codes_DH * torch.rsqrt(codes_DH.square().mean(dim=1, keepdim=True) + 1e-8)


class Switch(nn.Module):
    """A convolution whose normalised output the code of the task scales and shifts.

    Args:
        conv: The convolution.
        code_length: H.
        num_channels: Channels of its output.
        dropout: On its input, 0..1.
    """

    def __init__(
        self, conv: nn.Module, code_length: int, num_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = conv
        self.modulation = nn.Linear(code_length, 2 * num_channels)
        with torch.no_grad():
            self.modulation.bias[:num_channels] = 1
            self.modulation.bias[num_channels:] = 0

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C_out, *S); the condition ends with codes (N, H) or (1, H)."""
        features = self.conv(self.dropout(x), *condition)
        scale, shift = self.modulation(condition[-1]).chunk(2, dim=1)
        switched = instance_norm(features) * over_space(scale, x) + over_space(shift, x)
        return F.leaky_relu(switched, 0.01)


def instance_norm(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return features (N, C, *S) with mean 0 and variance 1 over space.

    As `nn.InstanceNorm3d`, which refuses to train on features of a single voxel: they become 0.
    """
    centred = x - over_space(spatial_mean(x), x)
    return centred * over_space(torch.rsqrt(spatial_mean(centred.square()) + epsilon), x)


class SwitchingParts(Parts):
    """Parts whose blocks are switches.

    Args:
        code_length: H.
        *choices: Those of `Parts`.
        **options: Those of `Parts`.
    """

    def __init__(self, code_length: int, *choices: Any, **options: Any) -> None:
        super().__init__(*choices, **options)
        self.code_length = code_length

    def switch(self, in_channels: int, out_channels: int, make_conv: ConvFactory) -> Switch:
        """Return a switch with a convolution of a factory."""
        conv = make_conv(in_channels, out_channels)
        return Switch(conv, self.code_length, out_channels, self.dropout)

    def blocks(self, in_channels: int, out_channels: int) -> Blocks:
        """Return two switches: in -> out -> out channels."""
        return Blocks(
            self.switch(channels, out_channels, self.make_conv)
            for channels in (in_channels, out_channels)
        )
