"""The convolution takes the faster way where it may, and is the same by both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core import convolution
from core.convolution import SameConv3d, convolution_backward, convolve_same

LARGE = (1, 32, 16, 32, 32)  # large enough for the frequencies
SMALL = (1, 32, 2, 3, 3)


@pytest.fixture
def taken(monkeypatch):
    """The names of the ways by frequencies that were taken."""
    names = []
    for name in ("convolve_fourier", "convolution_backward_fourier"):
        way = getattr(convolution, name)
        monkeypatch.setattr(
            convolution,
            name,
            lambda *args, name=name, way=way: names.append(name) or way(*args),
        )
    return names


def draw(shape, size=5, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype), torch.randn(32, shape[1], *[size] * 3, dtype=dtype)


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "expected"),
    [
        (LARGE, 5, torch.float32, ["convolve_fourier", "convolution_backward_fourier"]),
        (SMALL, 5, torch.float32, []),
        (LARGE, 3, torch.float32, []),
        (LARGE, 5, torch.float64, []),  # exact sums come first
        (LARGE, 5, torch.bfloat16, []),
    ],
    ids=["large", "small", "kernel of 3", "double", "half"],
)
def test_way_and_its_equality(taken, shape, size, dtype, expected):
    x, kernel = draw(shape, size, dtype)
    bias = torch.randn(32, dtype=dtype)
    grad = torch.randn(1, 32, *shape[2:], dtype=dtype)
    actual = convolve_same(x, kernel, bias)
    gradients = convolution_backward(grad, x, kernel, True)
    assert taken == expected
    x.requires_grad_()
    kernel.requires_grad_()
    wanted = F.conv3d(x, kernel, bias, padding=size // 2)
    for ours, theirs in zip(
        (actual, *gradients),
        (wanted.detach(), *torch.autograd.grad(wanted, [x, kernel], grad)),
        strict=True,
    ):
        tolerance = 0.0 if not expected else 2e-5  # of float32 sums over a whole volume
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_input_gradient_is_left_out_where_it_is_not_needed():
    for shape in (LARGE, SMALL):
        x, kernel = draw(shape)
        grad_input, grad_kernel = convolution_backward(x, x, kernel, False)
        assert grad_input is None
        assert grad_kernel.shape == kernel.shape


def test_compiled_and_exported_it_is_the_plain_operator(taken):
    conv = SameConv3d(32, 32, 5, padding=2)
    x = torch.randn(LARGE)
    with torch.no_grad():
        program = torch.export.export(conv, (x,))
        torch.testing.assert_close(program.module()(x), conv(x), rtol=1e-4, atol=1e-4)
    operators = {node.name for node in program.graph.nodes}
    assert "conv3d" in operators
    assert taken == ["convolve_fourier"]  # by the module itself


def test_module_is_a_convolution_of_pytorch():
    conv = SameConv3d(3, 4, 5, padding=2)
    twin = torch.nn.Conv3d(3, 4, 5, padding=2)
    twin.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 8, 9, 10)
    torch.testing.assert_close(conv(x), twin(x), rtol=1e-5, atol=1e-5)
