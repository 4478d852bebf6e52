"""The U-Net that all methods share: its sizes, its plain parts, and how they become a network.

A method is this backbone with some of its encoder, decoder and head exchanged. Every network takes
one channel and returns one, and its lengths are padded by repeating the far edge until they can be
halved `num_stages` times.

Shape legend: N samples, C channels, Z Y X voxels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from core.collapse import CollapseName
from core.config import check_literal
from core.encoder_decoder import EncoderDecoder
from core.map_networks import MapNetwork, PlainConv2d, make_collapses
from core.unet3d import ConvFactory, Decoder, Encoder, Parts, PlainConv

Target = Literal["stack", "projection", "plane"]
KernelSize = Literal[3, 5]
_AXES: dict[Target, tuple[int, int]] = {"stack": (3, 3), "projection": (3, 2), "plane": (2, 2)}


@dataclass(frozen=True)
class Backbone:
    """Sizes of the shared U-Net.

    Args:
        base_channels: Width of the first stage; it doubles with each stage.
        num_stages: Number of halvings.
        kernel_size: Of the plain convolutions, which the paper leaves open: 3 as in pytorch_fnet,
            or 5 as RepMode's merged ones.
        dropout: Probability of dropping an input element of a block in training, 0..1.
        target: What is predicted: "stack" a volume for each volume; "projection" one map for each
            volume, decoded in 2D; "plane" a map for each volume of a single plane, all in 2D.
        collapse: How features lose their Z before they are decoded in 2D.
    """

    base_channels: int = 32
    num_stages: int = 4
    kernel_size: KernelSize = 3
    dropout: float = 0.0
    target: Target = "stack"
    collapse: CollapseName = "z-as-channels"

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.num_stages < 1:
            raise ValueError(
                f"base_channels {self.base_channels} and num_stages {self.num_stages} "
                "must be at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside 0..1; use 0 for none")
        check_literal("kernel_size", self.kernel_size, KernelSize)
        check_literal("target", self.target, Target)
        check_literal("collapse", self.collapse, CollapseName)

    @property
    def encoder_axes(self) -> int:
        """Return the number of spatial axes that the encoder sees."""
        return _AXES[self.target][0]

    @property
    def decoder_axes(self) -> int:
        """Return the number of spatial axes that the decoder sees."""
        return _AXES[self.target][1]

    @property
    def widths(self) -> list[int]:
        """Return the channels of the encoder's features, finest first, the bottleneck's last."""
        return [self.base_channels * 2**stage for stage in range(self.num_stages + 1)]

    def plain_conv(self, num_axes: int, size: int | None = None, bias: bool = True) -> ConvFactory:
        """Return the factory of plain convolutions, of the kernel size of the backbone if none."""
        kind = PlainConv if num_axes == 3 else PlainConv2d
        return partial(kind, size=size or self.kernel_size, bias=bias)

    def parts(
        self,
        num_axes: int,
        make_conv: ConvFactory | None = None,
        kind: Callable[..., Parts] = Parts,
    ) -> Parts:
        """Return the maker of parts, with plain convolutions if none are given."""
        return kind(make_conv or self.plain_conv(num_axes), num_axes, dropout=self.dropout)

    def encoder(self, parts: Parts | None = None) -> Encoder:
        """Return an encoder, of plain parts if none are given."""
        parts = parts or self.parts(self.encoder_axes)
        return Encoder(parts, 1, self.base_channels, self.num_stages)

    def decoder(self, parts: Parts | None = None) -> Decoder:
        """Return a decoder, of plain parts if none are given."""
        parts = parts or self.parts(self.decoder_axes)
        return Decoder(parts, self.base_channels, self.num_stages)

    def head(self) -> nn.Module:
        """Return a plain last convolution."""
        return self.plain_conv(self.decoder_axes)(self.base_channels, 1)

    def network(
        self,
        num_layers: int | None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> nn.Module:
        """Return the network of an encoder, a decoder and a head, each plain if not given.

        Args:
            num_layers: Z of the input, which a projection must know; others do without.
            encoder: Fields to features of the widths of the backbone, finest first.
            decoder: Features, 2D where the target is, to what the head takes.
            head: That to the prediction.

        Raises:
            ValueError: If the number of layers is needed and not given.
        """
        encoder, decoder = encoder or self.encoder(), decoder or self.decoder()
        head = head or self.head()
        multiple = 2**self.num_stages
        if self.target == "projection":
            if not num_layers or num_layers < 1:
                raise ValueError(
                    f"num_layers is {num_layers}; target 'projection' needs the number of layers "
                    "of its volumes, 1 or more"
                )
            collapses = make_collapses(
                self.collapse, num_layers, self.base_channels, self.num_stages
            )
            return MapNetwork(encoder, collapses, decoder, head, num_layers, (multiple,) * 3)
        network = EncoderDecoder(encoder, decoder, head, multiple)
        return SinglePlane(network) if self.target == "plane" else network


class SinglePlane(nn.Module):
    """A network of maps, given as volumes of one plane."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the map (N, 1, Y, X) of volumes (N, C, 1, Y, X).

        Raises:
            ValueError: If there is more than one plane.
        """
        if x.shape[2] != 1:
            raise ValueError(
                f"the volume has {x.shape[2]} planes; target 'plane' takes 1: choose 'projection' "
                "or 'stack'"
            )
        out: Tensor = self.network(x[:, :, 0], *condition)
        return out
