"""The decoders of segmentation_models_pytorch do here what they do at home."""

from __future__ import annotations

import pytest
import torch

from core.torchvision_guard import ensure_torchvision
from vesuvius.networks.decoder_2d import LibraryDecoder

ensure_torchvision()
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder  # noqa: E402
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder  # noqa: E402

CHANNELS = (3, 5, 7)


def features(batch: int = 2) -> list[torch.Tensor]:
    """Return random maps at strides 2, 4 and 8 of an image of 16 x 32."""
    torch.manual_seed(1)
    return [torch.randn(batch, c, 8 >> n, 16 >> n) for n, c in enumerate(CHANNELS)]


def test_the_segformer_decoder_equals_the_librarys_with_its_linear_layers():
    ours = LibraryDecoder("segformer", CHANNELS, width=1, output_stride=4).eval()
    library = SegformerDecoder([1, *CHANNELS], 3, 16).eval()
    state = {
        name: value
        for name, value in ours.decoder.state_dict().items()
        if not name.startswith("mlp_stage")
    }
    for number, conv in enumerate(ours.decoder.mlp_stage):
        state[f"mlp_stage.{number}.linear.weight"] = conv.weight.detach()[:, :, 0, 0]
        state[f"mlp_stage.{number}.linear.bias"] = conv.bias.detach()
    library.load_state_dict(state)
    with torch.no_grad():
        found = ours(features())
        expected = library([torch.zeros(2, 1, 16, 32), *features()])
    assert found.shape == (2, ours.out_channels, 4, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_unet_decoder_equals_the_librarys():
    ours = LibraryDecoder("unet", CHANNELS, width=2, output_stride=1).eval()
    library = UnetDecoder([1, *CHANNELS], [8, 4, 2], 3).eval()
    library.load_state_dict(ours.decoder.state_dict())
    with torch.no_grad():
        found = ours(features())
        expected = library([torch.zeros(2, 1, 16, 32), *features()])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("stride", "channels"), [(1, 2), (2, 4), (4, 8)])
def test_the_unet_decoder_stops_at_its_output_stride(stride, channels):
    decoder = LibraryDecoder("unet", CHANNELS, width=2, output_stride=stride).eval()
    assert decoder.out_channels == channels
    assert decoder(features()).shape == (2, channels, 16 // stride, 32 // stride)


def test_the_condition_is_not_heard():
    decoder = LibraryDecoder("unet", CHANNELS, width=2, output_stride=2).eval()
    with torch.no_grad():
        assert torch.equal(decoder(features()), decoder(features(), "task 3"))
