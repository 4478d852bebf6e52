"""A 3D encoder of task-gated experts, each feature turned 2D, and a SegFormer or U-Net decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from core.activations import ActivationName
from core.collapse import CollapseName, FeatureShape, encoder_shapes, make_collapse
from core.map_networks import MapNetwork, PlainConv2d
from core.mode import MoDE
from core.unet3d import Encoder, Parts, TaskConditioned
from vesuvius.networks.decoder_2d import DecoderName, LibraryDecoder, check_decoder
from vesuvius.networks.repmode import experts_up_to


@dataclass(frozen=True)
class RepModeSegformerConfig:
    """Sizes and choices of the encoder of experts with a library's decoder.

    Args:
        base_channels: Width of the first stage; it doubles with each stage.
        num_stages: Number of halvings of the volume.
        activation: Activation of the MoDE blocks.
        resample_activation: Activation after the strided convolutions.
        largest_expert: Size of the largest experts: 5 for all five, 3 for those of 3 and 1, which
            need about a fifth of the multiplications.
        dropout: Probability of dropping an input element of a MoDE block in training, 0..1.
        collapse: How features lose their Z.
        decoder: "segformer" brings all features to a quarter of the resolution and mixes them
            there; "unet" doubles step by step.
        decoder_channels: Width of the decoder: that of the U-Net at full resolution, twice as many
            with each halving; a sixteenth of that of SegFormer.
        output_stride: Pixels for one value of the network, interpolated to every pixel: 4 for
            SegFormer, a power of 2 below 2**num_stages for the U-Net.
    """

    base_channels: int = 16
    num_stages: int = 4
    activation: ActivationName = "mish"
    resample_activation: ActivationName = "funnel"
    largest_expert: Literal[3, 5] = 5
    dropout: float = 0.0
    collapse: CollapseName = "z-as-channels"
    decoder: DecoderName = "segformer"
    decoder_channels: int = 16
    output_stride: int = 4

    def __post_init__(self) -> None:
        if min(self.base_channels, self.num_stages, self.decoder_channels) < 1:
            raise ValueError(
                f"base_channels {self.base_channels}, num_stages {self.num_stages} and "
                f"decoder_channels {self.decoder_channels} must be at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside 0..1; use 0 for none")
        check_decoder(self.decoder, self.output_stride, self.num_stages)

    @property
    def multiple(self) -> int:
        """Return the number that rows and columns are multiples of unless they are padded."""
        return 2**self.num_stages


def build(config: RepModeSegformerConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the network: volumes (N, 1, Z, Y, X) and tasks (N,) to logits (N, 1, Y, X).

    The finest feature, at full resolution, is not decoded: neither decoder takes it.

    Args:
        config: Sizes and choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.
    """
    parts = Parts(
        partial(MoDE, num_tasks=num_tasks, mixture=experts_up_to(config.largest_expert)),
        3,
        config.activation,
        config.resample_activation,
        config.dropout,
    )
    shapes = encoder_shapes(num_layers, config.base_channels, config.num_stages)
    volume = FeatureShape(1, num_layers, shapes[0].num_padding)
    decoder = LibraryDecoder(
        config.decoder,
        [shape.channels for shape in shapes[1:]],
        config.decoder_channels,
        config.output_stride,
    )
    network = MapNetwork(
        Encoder(parts, 1, config.base_channels, config.num_stages),
        [make_collapse(config.collapse, shape, volume, shapes[-1]) for shape in shapes[1:]],
        decoder,
        PlainConv2d(decoder.out_channels, 1, bias=True),
        num_layers,
        (config.multiple,) * 3,
        config.output_stride,
    )
    return TaskConditioned(network, num_tasks)
