"""Networks from volumes to maps: a 3D encoder and a 2D decoder, or a 3D U-Net and then a collapse.

`MapNetwork` looks at the volume with a 3D encoder, turns its features 2D and decodes them in 2D,
which is much cheaper; `UNetThenCollapse` decodes in 3D and turns the output volume 2D. Either may
stop at an output stride: the prediction is then made for blocks of pixels and interpolated.

Shape legend as in `core.collapse`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from core.collapse import FeatureShape, encoder_shapes, make_collapse
from core.encoder_decoder import pad_to_multiple
from core.unet3d import Decoder, Encoder, Parts


class PlainConv2d(nn.Conv2d):
    """A convolution of maps with zero "same" padding, deaf to the condition."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int = 3, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, size, padding=size // 2, bias=bias)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Convolve maps (N, I, Y, X)."""
        return super().forward(x)


class MapNetwork(nn.Module):
    """Any 3D encoder, its features turned 2D, any 2D decoder, and a head.

    Args:
        encoder: Volumes to a list of features, finest first; called with the condition too.
        collapses: What turns the last of these features 2D, one for each that is decoded.
        decoder: The list of maps, finest first, to one map; called with the condition too.
        head: That map to the prediction; called with the condition too.
        num_layers: Z of the input.
        multiples: Numbers that Z, Y and X are padded to multiples of.
        output_stride: Pixels of the volume for one of the head; the prediction is interpolated.
    """

    def __init__(
        self,
        encoder: nn.Module,
        collapses: Iterable[nn.Module],
        decoder: nn.Module,
        head: nn.Module,
        num_layers: int,
        multiples: tuple[int, int, int],
        output_stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.multiples = multiples
        self.output_stride = output_stride
        self.encoder = encoder
        self.collapses = nn.ModuleList(collapses)
        self.decoder = decoder
        self.head = head

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the map (N, C_out, Y, X) of volumes (N, C_in, Z, Y, X) of any Y and X.

        Raises:
            ValueError: If Z is not the number of layers the network was made for.
        """
        _check_volume(x, self.num_layers)
        height, width = x.shape[3:]
        x = pad_to_multiple(x, self.multiples)
        features = self.encoder(x, *condition)
        decoded = features[len(features) - len(self.collapses) :]
        maps = [
            collapse(f, x, features[-1])
            for collapse, f in zip(self.collapses, decoded, strict=True)
        ]
        out = self.head(self.decoder(maps, *condition), *condition)
        return enlarge(out, self.output_stride)[:, :, :height, :width]


class CollapsedUNet(MapNetwork):
    """3D encoder, each of its features turned 2D, 2D decoder and head.

    Args:
        encoder_parts: Parts of the 3D encoder.
        decoder_parts: Parts of the 2D decoder.
        num_layers: Z of the input.
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
        in_channels: Channels of the volume.
        out_channels: Channels of the map.
        collapse: How features lose their Z, one of `COLLAPSES`.
        output_stride: Pixels of the volume for one of the head: a power of 2 up to
            ``2**num_stages``. Finer features are left out.

    Raises:
        ValueError: If the output stride or the collapse is none.
    """

    def __init__(
        self,
        encoder_parts: Parts,
        decoder_parts: Parts,
        num_layers: int,
        base_channels: int,
        num_stages: int,
        in_channels: int = 1,
        out_channels: int = 1,
        collapse: str = "z-as-channels",
        output_stride: int = 1,
    ) -> None:
        left_out = halvings(output_stride, num_stages)
        width = base_channels * output_stride
        super().__init__(
            Encoder(encoder_parts, in_channels, base_channels, num_stages),
            make_collapses(collapse, num_layers, base_channels, num_stages, in_channels, left_out),
            Decoder(decoder_parts, width, num_stages - left_out),
            decoder_parts.make_conv(width, out_channels),
            num_layers,
            (2**num_stages,) * 3,
            output_stride,
        )


class UNetThenCollapse(nn.Module):
    """3D U-Net whose output volume is turned into a map at the end.

    Args:
        encoder_parts: Parts of the encoder.
        decoder_parts: Parts of the decoder, 3D too.
        num_layers: Z of the input.
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
        in_channels: Channels of the volume.
        out_channels: Channels of the output volume and of the map.
        collapse: How the output volume loses its Z, one of `COLLAPSES`.
        output_stride: Voxels of the volume for one of the output volume, along each axis: a power
            of 2 up to ``2**num_stages``. Finer features are left out.

    Raises:
        ValueError: If the output stride or the collapse is none.
    """

    def __init__(
        self,
        encoder_parts: Parts,
        decoder_parts: Parts,
        num_layers: int,
        base_channels: int,
        num_stages: int,
        in_channels: int = 1,
        out_channels: int = 1,
        collapse: str = "z-as-channels",
        output_stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.multiple = 2**num_stages
        self.output_stride = output_stride
        self.left_out = halvings(output_stride, num_stages)
        width = base_channels * output_stride
        self.encoder = Encoder(encoder_parts, in_channels, base_channels, num_stages)
        self.decoder = Decoder(decoder_parts, width, num_stages - self.left_out)
        self.head = decoder_parts.make_conv(width, out_channels)
        shapes = encoder_shapes(num_layers, base_channels, num_stages)
        volume = FeatureShape(in_channels, num_layers, shapes[0].num_padding)
        self.output = FeatureShape(out_channels, shapes[self.left_out].num_layers)
        self.collapse = make_collapse(collapse, self.output, volume, shapes[-1])

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the map (N, C_out, Y, X) of volumes (N, C_in, Z, Y, X) of any Y and X.

        Raises:
            ValueError: If Z is not the number of layers the network was made for.
        """
        _check_volume(x, self.num_layers)
        height, width = x.shape[3:]
        x = pad_to_multiple(x, self.multiple)
        features = self.encoder(x, *condition)
        out = self.head(self.decoder(features[self.left_out :], *condition), *condition)
        maps: Tensor = self.collapse(out[:, :, : self.output.num_layers], x, features[-1])
        return enlarge(maps, self.output_stride)[:, :, :height, :width]


def make_collapses(
    collapse: str,
    num_layers: int,
    base_channels: int,
    num_stages: int,
    in_channels: int = 1,
    num_left_out: int = 0,
) -> list[nn.Module]:
    """Return what turns each feature of an `Encoder` 2D, finest first.

    Args:
        collapse: One of `COLLAPSES`.
        num_layers: Z of the input.
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
        in_channels: Channels of the volume.
        num_left_out: How many of the finest features are not decoded.

    Raises:
        ValueError: If the collapse is none.
    """
    shapes = encoder_shapes(num_layers, base_channels, num_stages)
    volume = FeatureShape(in_channels, num_layers, shapes[0].num_padding)
    return [make_collapse(collapse, shape, volume, shapes[-1]) for shape in shapes[num_left_out:]]


def halvings(output_stride: int, num_stages: int) -> int:
    """Return how often a length is halved until one pixel stands for `output_stride`.

    Raises:
        ValueError: If the stride is no power of 2 or above that of the coarsest features.
    """
    allowed = [2**stage for stage in range(num_stages + 1)]
    if output_stride not in allowed:
        raise ValueError(
            f"output_stride is {output_stride}; with {num_stages} halvings it is one of "
            f"{', '.join(map(str, allowed))}"
        )
    return allowed.index(output_stride)


def enlarge(maps: Tensor, factor: int) -> Tensor:
    """Return maps (N, C, Y, X) interpolated to `factor` times the size."""
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


def _check_volume(x: Tensor, num_layers: int) -> None:
    if x.shape[2] != num_layers:
        raise ValueError(
            f"the volume has {x.shape[2]} layers; this network was made for {num_layers}"
        )
