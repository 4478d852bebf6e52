"""From 3D features to 2D maps: Z as channels, and the network that decodes in 2D.

Ink is a map, not a volume. The network here looks at the volume with a 3D encoder, turns every
skip and the bottleneck 2D, and decodes in 2D, which is much cheaper than a 3D decoder.

Shape legend: N samples, C channels, Z layers, Y X pixels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.unet3d import Decoder, Encoder, Parts, pad_to_multiple


class ZAsChannels(nn.Module):
    """2D convolution of each feature over its layers: (N, C, Z, Y, X) to (N, C, Y, X).

    Every channel has its own kernel over (Z, 3, 3), so it learns which depth matters to it.

    Args:
        channels: C.
        num_layers: Z, fixed by the kernel.
    """

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.conv = nn.Conv2d(channels * num_layers, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, C, Y, X) of features (N, C, Z, Y, X).

        Raises:
            ValueError: If the features do not have the layers the kernel was made for.
        """
        if x.shape[2] != self.num_layers:
            raise ValueError(
                f"features have {x.shape[2]} layers; this collapse was made for {self.num_layers}"
            )
        maps: Tensor = self.conv(x.flatten(1, 2))
        return maps


class CollapsedUNet(nn.Module):
    """3D encoder, each of its features turned 2D, 2D decoder and head.

    Args:
        encoder_parts: Parts of the 3D encoder.
        decoder_parts: Parts of the 2D decoder.
        num_layers: Z of the input.
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
        in_channels: Channels of the volume.
        out_channels: Channels of the map.
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
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.multiple = 2**num_stages
        self.encoder = Encoder(encoder_parts, in_channels, base_channels, num_stages)
        padded_layers = num_layers + -num_layers % self.multiple
        self.collapses = nn.ModuleList(
            ZAsChannels(base_channels * 2**stage, padded_layers // 2**stage)
            for stage in range(num_stages + 1)
        )
        self.decoder = Decoder(decoder_parts, base_channels, num_stages)
        self.head = decoder_parts.make_conv(base_channels, out_channels)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the map (N, C_out, Y, X) of volumes (N, C_in, Z, Y, X) of any Y and X.

        Raises:
            ValueError: If Z is not the number of layers the network was made for.
        """
        if x.shape[2] != self.num_layers:
            raise ValueError(
                f"the volume has {x.shape[2]} layers; this network was made for {self.num_layers}"
            )
        features = self.encoder(pad_to_multiple(x, self.multiple), *condition)
        maps = [collapse(f) for collapse, f in zip(self.collapses, features, strict=True)]
        out: Tensor = self.head(self.decoder(maps, *condition), *condition)
        return out[:, :, : x.shape[3], : x.shape[4]]
