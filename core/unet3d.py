"""The RepMode U-Net, built from stages that do not know what kind of convolution they hold.

An encoder halves the volume `num_stages` times, a decoder doubles it back and joins the encoder's
features (skips) on the way. The convolutions are made by an injected factory, and whatever a
forward pass is given beside the features (`*condition`: the task groups of the batch, or nothing
for a plain network) is handed to each of them. So one topology serves mixtures of experts and
plain convolutions, volumes and maps.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.2 and appendix A.

Shape legend: N samples, C channels, Z Y X voxels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.activations import make_activation
from core.config import check_literal
from core.convolution import SameConv3d
from core.encoder_decoder import EncoderDecoder
from core.gatrep import TaskGroups
from core.mode import REPMODE, Mixture, MoDE

ConvFactory = Callable[[int, int], nn.Module]
Upsampling = Literal["transposed", "sub-pixel"]


class ConvNormAct(nn.Module):
    """A convolution, batch normalisation and an activation, after an optional dropout."""

    def __init__(
        self, conv: nn.Module, norm: nn.Module, activation: nn.Module, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = conv
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C_out, *S') of features (N, C_in, *S)."""
        features: Tensor = self.activation(self.norm(self.conv(self.dropout(x), *condition)))
        return features


class PlainConv(SameConv3d):
    """A convolution with zero "same" padding, deaf to the condition."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int = 3, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, size, padding=size // 2, bias=bias)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Convolve features (N, I, Z, Y, X)."""
        return super().forward(x)


class SubPixelConv(nn.Conv2d):
    """A 3x3 convolution to four maps per channel, then laid out as one map of twice the size.

    A transposed convolution of size and stride 2 is the same with a kernel of size 1.

    Reference: Shi et al., CVPR 2016; Theis et al., Lossy Image Compression with Compressive
    Autoencoders, ICLR 2017, section 2.2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, 4 * out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, O, 2Y, 2X) of features (N, I, Y, X)."""
        return F.pixel_shuffle(super().forward(x), 2)


class Blocks(nn.ModuleList):
    """Blocks run one after the other, each given the same condition."""

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the features after the last block."""
        for block in self:
            x = block(x, *condition)
        return x


class Parts:
    """Makes the parts of a U-Net for volumes (`num_axes` 3) or maps (2).

    Args:
        make_conv: Factory of the blocks' convolutions: (in_channels, out_channels) -> module.
        num_axes: Number of spatial axes.
        activation: Activation of the blocks, by name.
        resample_activation: Activation after the strided and transposed convolutions, by name.
        dropout: Probability of dropping an input element of a block, 0..1.
        upsampling: How maps are doubled; volumes only by transposed convolutions.

    Raises:
        ValueError: If volumes are to be doubled by sub-pixel convolutions.
    """

    def __init__(
        self,
        make_conv: ConvFactory,
        num_axes: int = 3,
        activation: str = "relu",
        resample_activation: str = "relu",
        dropout: float = 0.0,
        upsampling: Upsampling = "transposed",
    ) -> None:
        if num_axes == 3 and upsampling != "transposed":
            raise ValueError(
                f"upsampling {upsampling!r} is for maps; volumes take 'transposed', so use it or a "
                "2D decoder"
            )
        self.make_conv = make_conv
        self.num_axes = num_axes
        self.activation = activation
        self.resample_activation = resample_activation
        self.dropout = dropout
        self.upsampling = upsampling

    def blocks(self, in_channels: int, out_channels: int) -> Blocks:
        """Return two convolution blocks: in -> out -> out channels."""
        return Blocks(
            ConvNormAct(
                self.make_conv(channels, out_channels),
                self._norm(out_channels),
                make_activation(self.activation, out_channels, self.num_axes),
                self.dropout,
            )
            for channels in (in_channels, out_channels)
        )

    def down(self, channels: int) -> ConvNormAct:
        """Return the strided convolution that halves every axis and keeps the width."""
        conv_type = nn.Conv3d if self.num_axes == 3 else nn.Conv2d
        return self._resample(conv_type(channels, channels, 2, stride=2, bias=False), channels)

    def up(self, channels: int) -> ConvNormAct:
        """Return the convolution that doubles every axis and halves the width."""
        halved = channels // 2
        if self.upsampling == "sub-pixel":
            return self._resample(SubPixelConv(channels, halved), halved)
        conv_type = nn.ConvTranspose3d if self.num_axes == 3 else nn.ConvTranspose2d
        return self._resample(conv_type(channels, halved, 2, stride=2, bias=False), halved)

    def _resample(self, conv: nn.Module, channels: int) -> ConvNormAct:
        activation = make_activation(self.resample_activation, channels, self.num_axes)
        return ConvNormAct(conv, self._norm(channels), activation)

    def _norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm3d(channels) if self.num_axes == 3 else nn.BatchNorm2d(channels)


class EncoderStage(nn.Module):
    """Two blocks, whose output is the skip, then a halving of the volume."""

    def __init__(self, parts: Parts, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.blocks = parts.blocks(in_channels, out_channels)
        self.down = parts.down(out_channels)

    def forward(self, x: Tensor, *condition: Any) -> tuple[Tensor, Tensor]:
        """Return the skip (N, C_out, *S) and the halved features (N, C_out, *S/2)."""
        skip = self.blocks(x, *condition)
        return skip, self.down(skip)


class DecoderStage(nn.Module):
    """A doubling of the volume, the skip joined in front of it, two blocks."""

    def __init__(self, parts: Parts, in_channels: int) -> None:
        super().__init__()
        self.up = parts.up(in_channels)
        self.blocks = parts.blocks(in_channels, in_channels // 2)

    def forward(self, x: Tensor, skip: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C/2, *S) of features (N, C, *S/2) and their skip (N, C/2, *S)."""
        features: Tensor = self.blocks(torch.cat([skip, self.up(x)], dim=1), *condition)
        return features


class Encoder(nn.Module):
    """The contracting half: `num_stages` stages of doubling width and a bottleneck."""

    def __init__(self, parts: Parts, in_channels: int, base_channels: int, num_stages: int) -> None:
        super().__init__()
        widths = [base_channels * 2**stage for stage in range(num_stages)]
        self.stages = nn.ModuleList(
            EncoderStage(parts, before, width)
            for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        self.bottleneck = parts.blocks(widths[-1], 2 * widths[-1])

    def forward(self, x: Tensor, *condition: Any) -> list[Tensor]:
        """Return the skips, finest first, and the bottleneck's features last."""
        skips = []
        for stage in self.stages:
            skip, x = stage(x, *condition)
            skips.append(skip)
        return [*skips, self.bottleneck(x, *condition)]


class Decoder(nn.Module):
    """The expanding half, from the bottleneck's features back to the finest skip.

    Args:
        parts: Makes its parts.
        base_channels: Width of the finest skip; each coarser one has twice the width.
        num_stages: Number of doublings.
    """

    def __init__(self, parts: Parts, base_channels: int, num_stages: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            DecoderStage(parts, base_channels * 2**stage) for stage in range(num_stages, 0, -1)
        )

    def forward(self, features: Sequence[Tensor], *condition: Any) -> Tensor:
        """Return features (N, base, *S) of an encoder's features, finest first."""
        *skips, x = features
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x = stage(x, skip, *condition)
        return x


class UNet3D(EncoderDecoder):
    """3D U-Net over volumes of any size; lengths are padded to `2**num_stages` and cropped back.

    Args:
        encoder_parts: Parts of the encoder and the bottleneck.
        decoder_parts: Parts of the decoder and the head.
        in_channels: Channels of the volume.
        out_channels: Channels of the prediction.
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
    """

    def __init__(
        self,
        encoder_parts: Parts,
        decoder_parts: Parts,
        in_channels: int,
        out_channels: int,
        base_channels: int,
        num_stages: int,
    ) -> None:
        super().__init__(
            Encoder(encoder_parts, in_channels, base_channels, num_stages),
            Decoder(decoder_parts, base_channels, num_stages),
            decoder_parts.make_conv(base_channels, out_channels),
            2**num_stages,
        )


class TaskConditioned(nn.Module):
    """A network of task-gated convolutions, called with a batch and the task of each sample.

    Args:
        network: Module called as ``network(x, groups)``; `core.deploy.specialize` makes of it the
            plain ``network(x)`` of one task.
        num_tasks: T.
    """

    def __init__(self, network: nn.Module, num_tasks: int) -> None:
        super().__init__()
        self.network = network
        self.num_tasks = num_tasks

    def forward(self, x_NCZYX: Tensor, task_N: Tensor) -> Tensor:
        """Return the prediction of each volume for its own task.

        Args:
            x_NCZYX: Volumes (N, C, Z, Y, X), floating point.
            task_N: Tasks (N,), integers in 0..num_tasks-1, any mixture.

        Raises:
            ValueError: If a task is out of range or the shapes do not fit.
        """
        if x_NCZYX.ndim != 5:
            raise ValueError(f"input has shape {tuple(x_NCZYX.shape)}; expected (N, C, Z, Y, X)")
        is_integer = not (task_N.is_floating_point() or task_N.dtype == torch.bool)
        if task_N.shape != x_NCZYX.shape[:1] or not len(task_N) or not is_integer:
            raise ValueError(
                f"tasks are {task_N.dtype} of shape {tuple(task_N.shape)} for {len(x_NCZYX)} "
                "samples; give one integer per sample, and at least one sample"
            )
        tasks = task_N.tolist()
        check_tasks(tasks, self.num_tasks)
        out: Tensor = self.network(x_NCZYX, TaskGroups.of(tasks, x_NCZYX.device))
        return out


def check_tasks(tasks: Sequence[int], num_tasks: int) -> None:
    """Refuse tasks that the network does not know.

    Raises:
        ValueError: Naming the tasks out of range.
    """
    unknown = sorted({task for task in tasks if not 0 <= task < num_tasks})
    if unknown:
        raise ValueError(
            f"task {', '.join(map(str, unknown))} is out of range; "
            f"this network knows tasks 0..{num_tasks - 1}"
        )


Gated = Literal["both", "encoder", "decoder"]


class RepModeUNet(TaskConditioned):
    """RepMode: a 3D U-Net whose every stride-1 convolution is a mixture of experts.

    With the default width and 12 tasks it is the paper's network of 123,877,633 parameters.

    Args:
        num_tasks: T.
        base_channels: Width of the first stage; it doubles with each stage.
        in_channels: Channels of the input volume.
        out_channels: Channels of the prediction.
        num_stages: Number of halvings.
        mixture: The experts of every block, their gate, and how their sum is computed.
        gated: Where the mixtures are; the other half has plain 3x3x3 convolutions. The bottleneck
            belongs to the encoder.
        activation: Activation of the blocks (`core.activations.ACTIVATIONS`).
        resample_activation: Activation after strided and transposed convolutions.
        dropout: Dropout on the input of every block, 0..1.

    Raises:
        ValueError: If a number is below 1, or `gated` names no place.
    """

    def __init__(
        self,
        num_tasks: int,
        base_channels: int = 32,
        in_channels: int = 1,
        out_channels: int = 1,
        num_stages: int = 4,
        mixture: Mixture = REPMODE,
        gated: Gated = "both",
        activation: str = "relu",
        resample_activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        if min(num_tasks, base_channels, in_channels, out_channels, num_stages) < 1:
            raise ValueError(
                f"num_tasks {num_tasks}, base_channels {base_channels}, in_channels {in_channels}, "
                f"out_channels {out_channels} and num_stages {num_stages} must all be at least 1"
            )
        check_literal("gated", gated, Gated)
        make_conv = partial(MoDE, num_tasks=num_tasks, mixture=mixture)
        encoder_parts, decoder_parts = (
            Parts(
                make_conv if gated in ("both", half) else PlainConv,
                activation=activation,
                resample_activation=resample_activation,
                dropout=dropout,
            )
            for half in ("encoder", "decoder")
        )
        network = UNet3D(
            encoder_parts, decoder_parts, in_channels, out_channels, base_channels, num_stages
        )
        super().__init__(network, num_tasks)
