"""2D decoders of segmentation_models_pytorch for any encoder whose features are maps.

Shape legend: N samples, C channels, Y X pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from core.map_networks import halvings
from core.torchvision_guard import ensure_torchvision

DecoderName = Literal["unet", "segformer"]
SEGFORMER_STRIDE = 4
SEGFORMER_WIDENING = 16  # its one width for that of a U-Net at full resolution: 256 for 16


class LibraryDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch, deaf to the condition.

    Args:
        name: "unet" doubles step by step and joins each feature; "segformer" brings all features
            to a quarter of the resolution and mixes them there.
        channels: Channels of the features at strides 2, 4, 8 and so on.
        width: Channels of a U-Net at full resolution, twice as many with each halving; the width of
            SegFormer is `SEGFORMER_WIDENING` times this.
        output_stride: Pixels of the input for one of the output.

    Attributes:
        out_channels: Channels of the output.

    Raises:
        ValueError: If the decoder does not have the output stride, or too few features.
    """

    def __init__(
        self, name: DecoderName, channels: Sequence[int], width: int, output_stride: int
    ) -> None:
        super().__init__()
        check_decoder(name, output_stride, len(channels))
        ensure_torchvision()
        # their features begin with the image, of which they need the size alone
        encoder_channels = [0, *channels]
        if name == "segformer":
            from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

            self.out_channels = SEGFORMER_WIDENING * width
            self.decoder = SegformerDecoder(encoder_channels, len(channels), self.out_channels)
            # Its linear layers over pixels as the convolutions they are: the reshapes around them
            # cannot be exported for any number of samples.
            self.decoder.mlp_stage = nn.ModuleList(
                nn.Conv2d(mlp.linear.in_features, self.out_channels, 1)
                for mlp in self.decoder.mlp_stage
            )
            return
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        finest = halvings(output_stride, len(channels))
        widths = [width * 2**level for level in range(len(channels) - 1, finest - 1, -1)]
        self.out_channels = widths[-1]
        self.decoder = UnetDecoder(encoder_channels, widths, len(widths))

    def forward(self, maps: Sequence[Tensor], *condition: Any) -> Tensor:
        """Return a map (N, out_channels, Y, X) of features at strides 2, 4, 8 and so on."""
        number, _, height, width = maps[0].shape
        image = maps[0].new_empty(number, 0, 2 * height, 2 * width)
        decoded: Tensor = self.decoder([image, *maps])
        return decoded


def check_decoder(name: DecoderName, output_stride: int, num_halvings: int) -> None:
    """Refuse an output stride that a decoder does not have.

    Raises:
        ValueError: If it is another than 4 for SegFormer, which needs three halvings, or none of
            the strides above the coarsest for a U-Net.
    """
    if name == "segformer":
        if output_stride != SEGFORMER_STRIDE:
            raise ValueError(
                f"output_stride is {output_stride}; the decoder 'segformer' has "
                f"{SEGFORMER_STRIDE} alone: use that, or the decoder 'unet'"
            )
        if num_halvings < 3:
            raise ValueError(
                f"the decoder 'segformer' needs 3 halvings or more, found {num_halvings}; use "
                "more, or the decoder 'unet'"
            )
        return
    halvings(output_stride, num_halvings - 1)
