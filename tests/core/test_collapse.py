"""Z as channels and the network that decodes in 2D."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from core.collapse import CollapsedUNet, ZAsChannels
from core.mode import MoDE
from core.unet3d import Parts, TaskConditioned, pad_to_multiple


def collapsed(num_layers: int = 12, **options) -> TaskConditioned:
    encoder = Parts(partial(MoDE, num_tasks=2), 3, **options)
    decoder = Parts(partial(MoDE, num_tasks=2, num_axes=2), 2, **options)
    network = CollapsedUNet(encoder, decoder, num_layers, base_channels=2, num_stages=2)
    return TaskConditioned(network, num_tasks=2)


def test_collapse_is_a_2d_convolution_with_layers_as_channels():
    torch.manual_seed(0)
    collapse = ZAsChannels(channels=2, num_layers=3).double()
    x = torch.randn(1, 2, 3, 5, 4, dtype=torch.float64)
    maps = collapse(x)
    weight, bias = collapse.conv.weight, collapse.conv.bias
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = sum(
        weight[1, z, dy, dx] * padded[0, 1, z, 2 + dy, 3 + dx]
        for z in range(3)
        for dy in range(3)
        for dx in range(3)
    )
    torch.testing.assert_close(maps[0, 1, 2, 3], expected + bias[1])


def test_channels_do_not_mix_in_the_collapse():
    collapse = ZAsChannels(channels=2, num_layers=3)
    x = torch.randn(1, 2, 3, 5, 4)
    before = collapse(x)
    x[:, 1] += 1
    after = collapse(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_other_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="features have 4 layers; this collapse was made for 3"):
        ZAsChannels(2, 3)(torch.zeros(1, 2, 4, 5, 5))


@pytest.mark.parametrize("num_layers", [9, 11, 12, 13])
def test_network_refuses_other_layers_even_within_its_padding(num_layers):
    x = torch.zeros(1, 1, num_layers, 8, 8)
    with pytest.raises(ValueError, match=f"has {num_layers} layers; this network was made for 10"):
        collapsed(num_layers=10)(x, torch.tensor([0]))


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (1, 1)])
def test_maps_have_the_size_of_the_volume(size):
    model = collapsed().eval()
    x, tasks = torch.randn(2, 1, 12, *size), torch.tensor([0, 1])
    with torch.no_grad():
        padded = model(pad_to_multiple(x, 4), tasks)
        actual = model(x, tasks)
    assert actual.shape == (2, 1, *size)
    assert torch.equal(actual, padded[:, :, : size[0], : size[1]])


def test_every_layer_and_parameter_matters():
    model = collapsed(num_layers=10)
    x = torch.randn(2, 1, 10, 16, 16, requires_grad=True)
    model(x, torch.tensor([0, 1])).square().sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
