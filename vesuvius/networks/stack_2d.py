"""A 2D network that takes layers as channels: a timm encoder and a library's decoder.

Shape legend: N samples, C channels, Z layers, Y X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.map_networks import MapNetwork, PlainConv2d
from core.torchvision_guard import ensure_torchvision
from core.unet3d import TaskConditioned
from vesuvius.networks.decoder_2d import DecoderName, LibraryDecoder, check_decoder

NUM_HALVINGS = 5


@dataclass(frozen=True)
class Stack2DConfig:
    """Choices of the 2D network over stacked layers.

    Args:
        encoder: Name of a timm model whose features come at strides 2 or 4 up to 32.
        encoder_weights: Weights of that model, a .safetensors file, to start training from; None
            starts from random ones. Nothing is downloaded.
        decoder: "unet" doubles step by step; "segformer" brings all features to a quarter of the
            resolution and mixes them there.
        decoder_channels: Width of the decoder: that of the U-Net at full resolution, twice as many
            with each halving; a sixteenth of that of SegFormer.
        output_stride: Pixels for one value of the network, interpolated to every pixel: 4 for
            SegFormer, a power of 2 up to 16 for the U-Net.
    """

    encoder: str = "resnet34"
    encoder_weights: str | None = None
    decoder: DecoderName = "unet"
    decoder_channels: int = 16
    output_stride: int = 1

    def __post_init__(self) -> None:
        if self.decoder_channels < 1:
            raise ValueError(f"decoder_channels {self.decoder_channels} must be at least 1")
        if self.encoder_weights and not self.encoder_weights.endswith(".safetensors"):
            raise ValueError(
                f"encoder_weights {self.encoder_weights} is no .safetensors file; convert it, "
                "other formats can run code when they are read"
            )
        check_decoder(self.decoder, self.output_stride, NUM_HALVINGS)

    @property
    def multiple(self) -> int:
        """Return the number that rows and columns are multiples of unless they are padded."""
        return 2**NUM_HALVINGS


def build(config: Stack2DConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the network: volumes (N, 1, Z, Y, X) and tasks (N,), ignored, to logits (N, 1, Y, X).

    It starts from random weights; `load_encoder` reads others.

    Args:
        config: Choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.

    Raises:
        ValueError: If timm does not know the encoder, or its features have other strides.
    """
    encoder = make_encoder(config.encoder, num_layers)
    channels = encoder.out_channels[1:]
    decoder = LibraryDecoder(
        config.decoder, channels, config.decoder_channels, config.output_stride
    )
    network = MapNetwork(
        StackEncoder(encoder),
        [Flat() for _ in channels],
        decoder,
        PlainConv2d(decoder.out_channels, 1, bias=True),
        num_layers,
        (1, config.multiple, config.multiple),
        config.output_stride,
    )
    return TaskConditioned(network, num_tasks)


def make_encoder(name: str, num_layers: int, weights: Path | None = None) -> nn.Module:
    """Return a timm model that gives its features, for images of `num_layers` channels.

    Args:
        name: Of the model.
        num_layers: Channels of the image.
        weights: File to start from; None for random weights.

    Raises:
        ValueError: If timm does not know it, or its features have other strides.
    """
    ensure_torchvision()
    import timm
    from segmentation_models_pytorch.encoders.timm_universal import TimmUniversalEncoder

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(name, timm.list_models())) or "resnet34"
        raise ValueError(f"encoder {name!r} is unknown to timm {timm.__version__}; perhaps {near}")
    options = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    try:
        return TimmUniversalEncoder(name, bool(weights), num_layers, NUM_HALVINGS, **options)
    except ValueError as error:
        raise ValueError(
            f"encoder {name!r} gives no features at strides 2 or 4 up to 32 ({error}); choose "
            "another, resnet34 or convnext_tiny say"
        ) from error


def load_encoder(network: TaskConditioned, config: Stack2DConfig, num_layers: int) -> None:
    """Give the encoder of a network the weights of a file; the first kernels are spread over Z.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds another model.
    """
    from safetensors import SafetensorError, safe_open

    assert config.encoder_weights is not None
    path, encoder = Path(config.encoder_weights), network.network.encoder.encoder
    if not path.is_file():
        raise FileNotFoundError(f"encoder_weights {path.absolute()}: no such file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name.replace(".", "_") for name in file.keys()}  # noqa: SIM118
        # timm leaves at random what a file lacks, and names features after their place
        wanted = {name: name.replace(".", "_") for name in encoder.model.state_dict()}
        missing = [name for name, plain in wanted.items() if plain not in found]
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing:
            raise RuntimeError(f"{missing[0]} and {len(missing) - 1} more are missing")
        source = make_encoder(config.encoder, num_layers, path)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"encoder_weights {path} are not those of {config.encoder} "
            f"({' '.join(str(error).split())[:200]}); give the file of that model"
        ) from error
    encoder.load_state_dict(source.state_dict())


class StackEncoder(nn.Module):
    """A 2D encoder that takes the layers of a volume as channels."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, *condition: Any) -> list[Tensor]:
        """Return maps (N, C, Y, X) at strides 2, 4, 8, 16, 32 of volumes (N, 1, Z, Y, X)."""
        features: list[Tensor] = self.encoder(x[:, 0])[1:]
        return features


class Flat(nn.Module):
    """The collapse of what has no Z any more."""

    def forward(self, features: Tensor, *context: Tensor) -> Tensor:
        """Return the maps (N, C, Y, X) as they are."""
        return features
