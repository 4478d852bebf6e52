"""Upsampling and output stride change what they say, and nothing else."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.deploy import specialize
from core.map_networks import CollapsedUNet, UNetThenCollapse, enlarge
from core.mode import MoDE
from core.unet3d import Parts, PlainConv, SubPixelConv, TaskConditioned
from tests.core.test_deploy import settled

NUM_LAYERS = 6


def network(kind: type[nn.Module], upsampling: str = "transposed", **options) -> TaskConditioned:
    torch.manual_seed(0)
    num_axes = 2 if kind is CollapsedUNet else 3
    make_conv = partial(MoDE, num_tasks=2)
    parts = (
        Parts(make_conv, 3),
        Parts(partial(make_conv, num_axes=num_axes), num_axes, upsampling=upsampling),
    )
    return TaskConditioned(kind(*parts, NUM_LAYERS, 2, num_stages=2, **options), 2)


def test_a_sub_pixel_convolution_of_size_1_is_a_transposed_one():
    transposed = nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False)
    conv = SubPixelConv(3, 2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[..., 1, 1] = transposed.weight.permute(1, 2, 3, 0).reshape(8, 3)
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(conv(x), transposed(x), rtol=1e-5, atol=1e-5)


def test_sub_pixel_upsampling_replaces_the_transposed_convolutions_of_the_decoder():
    kinds = [type(m) for m in network(CollapsedUNet, "sub-pixel").modules()]
    assert kinds.count(SubPixelConv) == 2
    assert nn.ConvTranspose2d not in kinds
    assert SubPixelConv not in map(type, network(CollapsedUNet).modules())


def test_sub_pixel_upsampling_of_a_volume_is_refused():
    with pytest.raises(ValueError, match="'sub-pixel' is for maps; volumes take 'transposed'"):
        Parts(PlainConv, 3, upsampling="sub-pixel")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CollapsedUNet, {"upsampling": "sub-pixel"}),
        (CollapsedUNet, {"upsampling": "sub-pixel", "output_stride": 2}),
        (CollapsedUNet, {"output_stride": 4}),
        (UNetThenCollapse, {"output_stride": 2}),
    ],
)
def test_specialised_networks_of_every_option_equal_the_gated_ones(kind, options):
    model = settled(network(kind, **options), (1, NUM_LAYERS, 8, 8)).double()
    x, tasks = torch.randn(2, 1, NUM_LAYERS, 7, 9).double(), torch.tensor([1, 1])
    plain = specialize(model, 1)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x, tasks), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [CollapsedUNet, UNetThenCollapse])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_output_stride_predicts_blocks_of_pixels_and_interpolates_them(kind, stride):
    model = network(kind, output_stride=stride).eval()
    coarse = []
    model.network.head.register_forward_hook(lambda *call: coarse.append(call[-1]))
    with torch.no_grad():
        out = model(torch.randn(2, 1, NUM_LAYERS, 16, 8), torch.tensor([0, 1]))
    assert out.shape == (2, 1, 16, 8)
    assert coarse[0].shape[-2:] == (16 // stride, 8 // stride)


@pytest.mark.parametrize("kind", [CollapsedUNet, UNetThenCollapse])
def test_a_larger_output_stride_leaves_stages_out(kind):
    sizes = [
        sum(p.numel() for p in network(kind, output_stride=stride).network.decoder.parameters())
        for stride in (1, 2, 4)
    ]
    assert sizes[0] > sizes[1] > sizes[2] == 0


@pytest.mark.parametrize("kind", [CollapsedUNet, UNetThenCollapse])
@pytest.mark.parametrize("stride", [0, 3, 8])
def test_an_output_stride_the_stages_do_not_have_is_refused(kind, stride):
    with pytest.raises(ValueError, match=rf"output_stride is {stride}; .* one of 1, 2, 4"):
        network(kind, output_stride=stride)


def test_interpolation_is_that_of_pixel_centres():
    maps = torch.tensor([[[[0.0, 4.0]]]])
    assert enlarge(maps, 2)[0, 0, 0].tolist() == [0, 1, 3, 4]
    assert enlarge(maps, 1) is maps
    slow = F.interpolate(maps, size=(4, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarge(maps, 4), slow)
