"""I3D for ink: the inflated Inception network without its head, decoded in 2D.

Reference: Carreira and Zisserman, Quo Vadis, Action Recognition?, CVPR 2017, figure 3. Layers take
the place of frames. Its features, and the volume itself, lose their Z, are brought to the widths of
the decoder and decoded by that of `core.unet3d`.

Shape legend: N samples, C channels, Z layers, Y X pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.activations import ActivationName, make_activation
from core.collapse import CollapseName, FeatureShape, make_collapse
from core.map_networks import MapNetwork, PlainConv2d, halvings
from core.unet3d import ConvNormAct, Decoder, Parts, TaskConditioned, Upsampling

PAPER_CHANNELS = 64  # width of the first convolution, for which the widths below are given
# Each block: 1x1x1; 1x1x1 and 3x3x3; 1x1x1 and 3x3x3; pooling and 1x1x1.
BLOCKS_3 = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
BLOCKS_4 = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
BLOCKS_5 = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))
Z_STRIDES = (1, 2, 2, 2, 4, 8)  # of the volume and of the five features
NUM_HALVINGS = 5  # of rows and columns


@dataclass(frozen=True)
class I3DConfig:
    """Sizes and choices of the inflated Inception network.

    Args:
        base_channels: Width of the first convolution, 64 in the paper; all others follow in
            proportion.
        activation: Activation after every convolution.
        dropout: Probability of dropping an input element of an Inception block, or of a
            convolution of the decoder, in training, 0..1.
        collapse: How features lose their Z.
        decoder_channels: Width of the decoder at full resolution; it doubles with each halving.
        upsampling: How the decoder doubles its maps.
        output_stride: Pixels for one value of the network: 1, or a power of 2 up to 32,
            interpolated to every pixel; finer features are left out.
    """

    base_channels: int = 64
    activation: ActivationName = "relu"
    dropout: float = 0.0
    collapse: CollapseName = "z-as-channels"
    decoder_channels: int = 16
    upsampling: Upsampling = "transposed"
    output_stride: int = 2

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.decoder_channels < 1:
            raise ValueError(
                f"base_channels {self.base_channels} and decoder_channels {self.decoder_channels} "
                "must be at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside 0..1; use 0 for none")
        halvings(self.output_stride, NUM_HALVINGS)

    @property
    def multiple(self) -> int:
        """Return the number that rows and columns are multiples of unless they are padded."""
        return 2**NUM_HALVINGS


def build(config: I3DConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the network: volumes (N, 1, Z, Y, X) and tasks (N,), ignored, to logits (N, 1, Y, X).

    Args:
        config: Sizes and choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.
    """
    encoder = InceptionEncoder(config.base_channels, config.activation, config.dropout)
    first = halvings(config.output_stride, NUM_HALVINGS)
    padded = num_layers + -num_layers % Z_STRIDES[-1]
    shapes = []
    for channels, stride in zip(encoder.channels, Z_STRIDES, strict=True):
        shown = -(-num_layers // stride)
        shapes.append(FeatureShape(channels, shown, padded // stride - shown))
    collapses = [
        ProjectedCollapse(
            make_collapse(config.collapse, shape, shapes[0], shapes[-1]),
            shape.channels,
            config.decoder_channels * 2**level,
            config.activation,
        )
        for level, shape in enumerate(shapes)
    ]
    parts = Parts(
        PlainConv2d, 2, config.activation, config.activation, config.dropout, config.upsampling
    )
    width = config.decoder_channels * config.output_stride
    network = MapNetwork(
        encoder,
        collapses[first:],
        Decoder(parts, width, NUM_HALVINGS - first),
        PlainConv2d(width, 1, bias=True),
        num_layers,
        (Z_STRIDES[-1], config.multiple, config.multiple),
        config.output_stride,
    )
    return TaskConditioned(network, num_tasks)


class ProjectedCollapse(nn.Module):
    """A collapse, then a 1x1 convolution to another width."""

    def __init__(
        self, collapse: nn.Module, in_channels: int, out_channels: int, activation: str
    ) -> None:
        super().__init__()
        self.collapse = collapse
        self.project = ConvNormAct(
            PlainConv2d(in_channels, out_channels, size=1),
            nn.BatchNorm2d(out_channels),
            make_activation(activation, out_channels, 2),
        )

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return maps (N, C_out, Y, X) of features (N, C, Z, Y, X)."""
        maps: Tensor = self.project(self.collapse(features, *context))
        return maps


class InceptionEncoder(nn.Module):
    """The inflated Inception network up to its last block.

    Args:
        base_channels: Width of the first convolution.
        activation: Activation after every convolution, by name.
        dropout: Probability of dropping an input element of an Inception block.
        in_channels: Channels of the volume.

    Attributes:
        channels: Widths of the volume and of the five features, finest first.
    """

    def __init__(
        self, base_channels: int, activation: str, dropout: float, in_channels: int = 1
    ) -> None:
        super().__init__()

        def width(channels: int) -> int:
            return -(-channels * base_channels // PAPER_CHANNELS)

        def unit(before: int, after: int, size: int = 1, stride: int = 1) -> ConvNormAct:
            conv = nn.Conv3d(before, after, size, stride, size // 2, bias=False)
            return ConvNormAct(conv, nn.BatchNorm3d(after), make_activation(activation, after))

        def blocks(before: int, paper_widths: tuple[tuple[int, ...], ...]) -> nn.Sequential:
            made = nn.Sequential()
            for widths in paper_widths:
                made.append(InceptionBlock(unit, before, list(map(width, widths)), dropout))
                before = made[-1].out_channels
            return made

        stem, second = width(64), width(192)
        plane_pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        third = blocks(second, BLOCKS_3)
        fourth = blocks(third[-1].out_channels, BLOCKS_4)
        fifth = blocks(fourth[-1].out_channels, BLOCKS_5)
        self.stages = nn.ModuleList(
            [
                unit(in_channels, stem, 7, 2),
                nn.Sequential(plane_pool, unit(stem, stem), unit(stem, second, 3)),
                nn.Sequential(plane_pool, third),
                nn.Sequential(nn.MaxPool3d(3, 2, 1), fourth),
                nn.Sequential(nn.MaxPool3d(2, 2), fifth),
            ]
        )
        ends = (part[-1].out_channels for part in (third, fourth, fifth))
        self.channels = (in_channels, stem, second, *ends)

    def forward(self, x: Tensor, *condition: Any) -> list[Tensor]:
        """Return the volume (N, C, Z, Y, X) itself and its features at strides 2, 4, 8, 16, 32.

        Z is halved by the first, fourth and fifth stage alone (`Z_STRIDES`).
        """
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class InceptionBlock(nn.Module):
    """Four branches side by side: two with a 3x3x3 convolution, one without, one that pools.

    Args:
        unit: Factory of a convolution with normalisation and activation: (in, out, size).
        in_channels: Channels of the input.
        widths: The six widths of the branches in the order of `BLOCKS_3`.
        dropout: Probability of dropping an input element.

    Attributes:
        out_channels: Channels of all branches together.
    """

    def __init__(
        self,
        unit: Callable[..., nn.Module],
        in_channels: int,
        widths: list[int],
        dropout: float,
    ) -> None:
        super().__init__()
        direct, narrow, wide, narrow_2, wide_2, pooled = widths
        self.out_channels = direct + wide + wide_2 + pooled
        self.dropout = nn.Dropout(dropout)
        self.branches = nn.ModuleList(
            [
                unit(in_channels, direct),
                nn.Sequential(unit(in_channels, narrow), unit(narrow, wide, 3)),
                nn.Sequential(unit(in_channels, narrow_2), unit(narrow_2, wide_2, 3)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), unit(in_channels, pooled)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, out_channels, Z, Y, X) of features (N, C, Z, Y, X)."""
        x = self.dropout(x)
        return torch.cat([branch(x) for branch in self.branches], dim=1)
