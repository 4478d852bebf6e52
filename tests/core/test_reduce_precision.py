"""Kernels in fewer bits: what is stored, what is computed, and the error that is told."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core.activations import ACTIVATIONS
from core.deploy import reduce_precision, specialize
from core.unet3d import RepModeUNet

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
X = torch.randn(2, 1, 6, 4, 4, generator=torch.Generator().manual_seed(0))


def plain(activation: str = "relu") -> nn.Module:
    torch.manual_seed(1)
    options = {"activation": activation, "resample_activation": activation}
    return specialize(RepModeUNet(2, base_channels=2, num_stages=1, **options).eval(), 0)


def convs(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv3d)] + [
        module for module in network.modules() if isinstance(module, nn.ConvTranspose3d)
    ]


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_network_of_rounded_kernels(activation, dtype):
    network = plain(activation)
    reduced, error = reduce_precision(network, dtype, X)
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for conv in convs(rounded):
            conv.weight.copy_(conv.weight.to(dtype))
        expected, found, before = rounded(X), reduced(X), network(X)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    difference = (found - before).abs().max()
    assert error.absolute == difference > 0
    assert error.relative == pytest.approx(float(difference / before.abs().max()))
    assert error.relative < (0.02 if dtype == torch.bfloat16 else 0.002)
    assert f"({error.relative:.2g} of the largest output)" in str(error)


@DTYPES
def test_kernels_alone_are_stored_in_fewer_bits(dtype):
    network = plain("funnel")
    reduced, _ = reduce_precision(network, dtype, X)
    before = sum(weight.nbytes for weight in network.parameters() if weight.ndim == 5)
    kernels = [weight for weight in reduced.parameters() if weight.ndim == 5]
    assert {weight.dtype for weight in kernels} == {dtype}
    assert 2 * sum(weight.nbytes for weight in kernels) == before
    others = [weight for weight in reduced.parameters() if weight.ndim != 5]
    assert {weight.dtype for weight in others} == {torch.float32}


def test_the_given_network_is_left_as_it_is():
    network = plain()
    before = copy.deepcopy(network.state_dict())
    reduce_precision(network, torch.bfloat16, X)
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_kernel_beyond_the_type_is_refused():
    network = plain()
    with torch.no_grad():
        network.head.weight[0, 0, 0, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"the kernel head reaches 1e\+05 and torch\.float16 only"):
        reduce_precision(network, torch.float16, X)
    reduce_precision(network, torch.bfloat16, X)


def test_an_output_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite; check the network's weights"):
        reduce_precision(plain(), torch.bfloat16, X / 0)
