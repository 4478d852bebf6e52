"""Activations by name."""

from __future__ import annotations

import pytest
import torch

from core.activations import ACTIVATIONS, FlexibleReLU, Funnel, make_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("num_axes", [2, 3])
def test_every_activation_keeps_the_shape(name, num_axes):
    x = torch.randn(2, 3, *[4] * num_axes)
    assert make_activation(name, 3, num_axes)(x).shape == x.shape


def test_funnel_is_never_below_its_input_and_sees_neighbours():
    funnel = Funnel(2, 3).eval()
    x = torch.randn(1, 2, 5, 5, 5)
    assert (funnel(x) >= x).all()
    with torch.no_grad():
        funnel.conv.weight.fill_(10.0)
    z = x.abs().requires_grad_()
    funnel(z)[0, 0, 2, 2, 2].backward()
    assert (z.grad[0, 0, 1:4, 1:4, 1:4] > 0).all()
    assert (z.grad[0, 1] == 0).all()


def test_flexible_relu_starts_as_relu_and_learns_its_floor():
    activation = FlexibleReLU(2, 2)
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(activation(x), torch.relu(x))
    with torch.no_grad():
        activation.floor[1] = -0.5
    assert activation(x)[0, 1].min() == -0.5


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'gelu'; choose one of relu, mish, funnel, flexible"):
        make_activation("gelu", 4)
