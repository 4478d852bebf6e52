"""From 3D features to 2D maps: the ways to do without Z.

Ink is a map, not a volume. How features lose their Z is a module made by `make_collapse`, called as
``collapse(features, volume, bottleneck)`` with the padded input and the bottleneck's features as
context, which only the Z-vectors look at. A collapse has no task: all tasks share it. The networks
that use it are in `core.map_networks`.

Z is padded to a multiple by repeating the last layer. Those copies show nothing new, and in a mean
they would count the last layer several times, so every collapse leaves out the layers that show
padding alone. Z as channels keeps them: its kernel learns what they are worth.

Shape legend: N samples, C channels, Z layers, Y X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

CollapseName = Literal[
    "z-as-channels", "mean", "max", "attention", "z-vector-input", "z-vector-bottleneck"
]
COLLAPSES: tuple[CollapseName, ...] = get_args(CollapseName)


@dataclass(frozen=True)
class FeatureShape:
    """What a collapse must know of features (N, C, Z, Y, X).

    Args:
        channels: C.
        num_layers: Layers that show the volume.
        num_padding: Layers behind them that show padding alone; Z is the sum of both.
    """

    channels: int
    num_layers: int
    num_padding: int = 0

    def shown(self, features: Tensor) -> Tensor:
        """Return the layers that show the volume.

        Raises:
            ValueError: If the features have another Z.
        """
        _check_layers(features, self.num_layers + self.num_padding)
        return features[:, :, : self.num_layers]


class ZAsChannels(nn.Module):
    """2D convolution of each feature over its layers: (N, C, Z, Y, X) to (N, C, Y, X).

    Every channel has its own kernel over (Z, 3, 3), so it learns which depth matters to it.

    Args:
        channels: C.
        num_layers: Z, fixed by the kernel; with the layers that show padding.
    """

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.conv = nn.Conv2d(channels * num_layers, channels, 3, padding=1, groups=channels)

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X).

        Raises:
            ValueError: If the features do not have the layers the kernel was made for.
        """
        _check_layers(features, self.num_layers)
        maps: Tensor = self.conv(features.flatten(1, 2))
        return maps


class MeanOverZ(nn.Module):
    """Mean over the layers."""

    def __init__(self, shape: FeatureShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X)."""
        return self.shape.shown(features).mean(2)


class MaxOverZ(nn.Module):
    """Largest value over the layers, for each channel and pixel; equal ones share the gradient."""

    def __init__(self, shape: FeatureShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X)."""
        return self.shape.shown(features).amax(2)


class AttentionOverZ(nn.Module):
    """Average over the layers, weighted at each pixel by a softmax of learned scores.

    A 1x1x1 convolution without bias (which the softmax would cancel) scores each voxel from its
    channels; all channels share the weights.
    """

    def __init__(self, shape: FeatureShape) -> None:
        super().__init__()
        self.shape = shape
        self.score = nn.Conv3d(shape.channels, 1, 1, bias=False)

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X)."""
        shown = self.shape.shown(features)
        weights: Tensor = self.score(shown).softmax(2)
        return (weights * shown).sum(2)


class ZVector(nn.Module):
    """Product of features with a vector along Z that a linear layer makes of a source, per sample.

    The source is averaged over Y and X, so the vector depends on the whole patch or tile, not on a
    neighbourhood. With all weights zero the vector is 1/Z, the mean.

    An interpretation: of the vector it is known that it is learned, lies along Z, meets the
    features in a tensor product, and is taken from the input or from the bottleneck.

    Args:
        shape: Of the features.
        source: Shape of what the vector is made of.
    """

    def __init__(self, shape: FeatureShape, source: FeatureShape) -> None:
        super().__init__()
        self.shape = shape
        self.source = source
        self.vector = nn.Linear(source.channels * source.num_layers, shape.num_layers)

    def contract(self, features: Tensor, source: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X) and their source, likewise NCZYX."""
        profile = self.source.shown(source).mean((3, 4)).flatten(1)
        vector_NZ = (1 + self.vector(profile)) / self.shape.num_layers
        return torch.einsum("nczyx,nz->ncyx", self.shape.shown(features), vector_NZ)


class InputZVector(ZVector):
    """Z-vector made of the network's input."""

    def forward(self, features: Tensor, volume: Tensor, bottleneck: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X) and the padded volume."""
        return self.contract(features, volume)


class BottleneckZVector(ZVector):
    """Z-vector made of the bottleneck's features."""

    def forward(self, features: Tensor, volume: Tensor, bottleneck: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X) and the bottleneck's."""
        return self.contract(features, bottleneck)


def make_collapse(
    name: str, shape: FeatureShape, volume: FeatureShape, bottleneck: FeatureShape
) -> nn.Module:
    """Return the collapse `name` for features of `shape`.

    Args:
        name: One of `COLLAPSES`.
        shape: Of the features.
        volume: Of the padded input.
        bottleneck: Of the bottleneck's features.

    Raises:
        ValueError: If the name is not one of `COLLAPSES`.

    Reference: mean, Z as channels and Z-vectors are the ways tried by Rodriguez and Debole,
    "Vesuvius Challenge using RepMode".
    """
    if name == "z-as-channels":
        return ZAsChannels(shape.channels, shape.num_layers + shape.num_padding)
    if name == "mean":
        return MeanOverZ(shape)
    if name == "max":
        return MaxOverZ(shape)
    if name == "attention":
        return AttentionOverZ(shape)
    if name == "z-vector-input":
        return InputZVector(shape, volume)
    if name == "z-vector-bottleneck":
        return BottleneckZVector(shape, bottleneck)
    raise ValueError(f"unknown collapse {name!r}; choose one of {', '.join(COLLAPSES)}")


def encoder_shapes(num_layers: int, base_channels: int, num_stages: int) -> list[FeatureShape]:
    """Return the shapes of an encoder's features, finest first, the bottleneck's last.

    A layer shows the volume as soon as one of the input's layers below it does.
    Example: 10 layers and 2 halvings, padded to 12: 10 + 2, 5 + 1 and 3 + 0 layers.
    """
    padded = num_layers + -num_layers % 2**num_stages
    shapes = []
    for stage in range(num_stages + 1):
        shown = -(-num_layers // 2**stage)
        shapes.append(FeatureShape(base_channels * 2**stage, shown, padded // 2**stage - shown))
    return shapes


def _check_layers(features: Tensor, num_layers: int) -> None:
    if features.shape[2] != num_layers:
        raise ValueError(
            f"features have {features.shape[2]} layers; this collapse was made for {num_layers}"
        )
