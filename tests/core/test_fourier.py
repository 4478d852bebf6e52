"""Convolution through Fourier transforms is the direct convolution, in value and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.fourier import (
    _cost,
    _plan,
    _tilings,
    convolution_backward_fourier,
    convolve_fourier,
    is_faster,
)

# Of float64, and of float32, relative to the largest value.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}

axis = st.tuples(st.integers(1, 41), st.sampled_from([1, 3, 5]))
short_axis = st.tuples(st.integers(1, 13), st.sampled_from([1, 3, 5]))


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    # of values drawn from N(0, 1); where a lone sum cancels, of the size of its terms
    error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
    assert error <= CLOSE[wanted.dtype]


def draw(shape, out_channels, window, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=dtype)
    kernel = torch.randn(out_channels, shape[1], *window, generator=generator, dtype=dtype)
    grad = torch.randn(shape[0], out_channels, *shape[2:], generator=generator, dtype=dtype)
    return x, kernel, grad


def direct(x, kernel):
    """The convolution, voxel by voxel."""
    operation = F.conv3d if x.ndim == 5 else F.conv2d
    return operation(x, kernel, padding=[size // 2 for size in kernel.shape[2:]])


def step(convolve, x, kernel, grad):
    """The output, and the gradients of features and kernel."""
    x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
    y = convolve(x, kernel)
    return y.detach(), *torch.autograd.grad(y, (x, kernel), grad)


def assert_same_step(x, kernel, grad):
    found, wanted = (step(way, x, kernel, grad) for way in (convolve_fourier, direct))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@settings(max_examples=40)
@given(
    st.one_of(
        st.tuples(axis, axis),
        st.tuples(short_axis, short_axis, axis),
        st.tuples(axis, short_axis, short_axis),
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_direct_convolution(axes, num_samples, in_channels, out_channels, dtype):
    lengths, window = zip(*axes, strict=True)
    assert_same_step(*draw((num_samples, in_channels, *lengths), out_channels, window, dtype))


@pytest.mark.parametrize("first", [6, 8, 14, 20])
@pytest.mark.parametrize("others", [(5, 5), (7, 9), (13, 12)])
def test_equals_direct_convolution_for_any_tiles(monkeypatch, first, others):
    x, kernel, grad = draw((2, 3, 10, 9, 8), 2, (5, 5, 3))
    points = (first, *others)
    tilings = [_tilings(*one) for one in zip(x.shape[2:], kernel.shape[2:], points, strict=True)]
    plan = tuple(zip(*tilings, strict=True))
    monkeypatch.setattr("core.fourier._plan", lambda *_: (0.0, plan))
    assert_same_step(x, kernel, grad)


def test_equals_direct_convolution_where_channels_are_many():
    assert_same_step(*draw((2, 32, 12, 24, 24), 32, (5, 5, 5), torch.float32))


def test_takes_features_in_any_memory_layout():
    x, kernel, grad = draw((2, 3, 6, 7, 8), 4, (3, 5, 5))
    last = torch.channels_last_3d
    assert_same_step(x.to(memory_format=last), kernel, grad.to(memory_format=last))
    assert_same_step(
        x.transpose(3, 4).contiguous().transpose(3, 4),
        kernel.flip(2),
        grad[:, :, ::2].repeat(1, 1, 2, 1, 1),
    )
    assert_same_step(x, kernel, torch.ones(1, dtype=x.dtype).expand_as(grad))


def test_gradients_are_those_of_finite_differences():
    x, kernel, _ = draw((1, 2, 3, 2, 4), 2, (3, 3, 5))
    assert torch.autograd.gradcheck(convolve_fourier, (x.requires_grad_(), kernel.requires_grad_()))


def test_second_derivatives_are_refused():
    x, kernel, _ = draw((1, 1, 3, 3), 1, (3, 3))
    y = convolve_fourier(x.requires_grad_(), kernel.requires_grad_())
    (grad,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradient_of_features_is_left_out_where_not_needed():
    x, kernel, grad = draw((2, 3, 6, 7, 8), 4, (5, 5, 5))
    none, grad_kernel = convolution_backward_fourier(grad, x, kernel, needs_input=False)
    assert none is None
    assert_close(grad_kernel, step(direct, x, kernel, grad)[2])


def test_arguments_are_left_as_they_are():
    arguments = draw((2, 3, 6, 7, 8), 4, (5, 5, 5))
    before = [one.clone() for one in arguments]
    x, kernel, grad = arguments
    convolve_fourier(x, kernel)
    convolution_backward_fourier(grad, x, kernel, needs_input=True)
    assert all(torch.equal(one, other) for one, other in zip(arguments, before, strict=True))


def test_keeps_features_and_kernel_alone():
    x, kernel, _ = draw((1, 2, 8, 8, 8), 2, (5, 5, 5))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.append(one) or one, lambda one: one
    ):
        convolve_fourier(x.requires_grad_(), kernel.requires_grad_())
    assert [one.data_ptr() for one in kept] == [x.data_ptr(), kernel.data_ptr()]


def test_half_precision_is_refused():
    x, kernel, _ = draw((1, 1, 3, 3), 1, (3, 3))
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16; use float32 or float64"):
        convolve_fourier(x.bfloat16(), kernel.bfloat16())


def test_stays_in_float32_under_autocast():
    x, kernel, grad = draw((2, 3, 6, 7, 8), 4, (5, 5, 5), torch.float32)
    wanted = step(direct, x, kernel, grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(convolve_fourier, x, kernel, grad)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("shape", "out_channels", "window", "faster"),
    [
        ((2, 32, 32, 64, 64), 32, (5, 5, 5), True),
        ((2, 64, 32, 64, 64), 32, (5, 5, 5), True),
        ((2, 64, 16, 32, 32), 64, (5, 5, 5), True),
        ((4, 32, 16, 32, 32), 32, (5, 5, 5), True),
        ((2, 32, 32, 64, 64), 1, (5, 5, 5), True),
        ((2, 1, 32, 64, 64), 32, (5, 5, 5), False),
        ((4, 256, 2, 4, 4), 256, (3, 5, 5), False),
        ((4, 128, 4, 8, 8), 128, (5, 5, 5), False),
        ((2, 32, 32, 64, 64), 32, (1, 1, 1), False),
        ((1, 1, 1, 1, 1), 1, (1, 1, 1), False),
    ],
)
def test_is_chosen_where_it_was_measured_to_be_faster(shape, out_channels, window, faster):
    assert is_faster(shape, out_channels, window) is faster


def test_plan_is_the_cheapest_of_whole_tiles_and_halves():
    shape, window = (2, 32, 32, 64, 64), (5, 5, 5)
    cost, plan = _plan(shape, 32, window)
    assert cost == _cost(shape, 32, plan)
    for parts in (1, 2, 4):
        points = [length // parts + 4 for length in shape[2:]]
        tilings = [_tilings(*one) for one in zip(shape[2:], window, points, strict=True)]
        assert cost <= _cost(shape, 32, tuple(zip(*tilings, strict=True)))


def test_every_output_belongs_to_one_tile():
    for length, size, points in [(1, 1, 2), (7, 5, 6), (32, 5, 20), (64, 3, 12)]:
        inputs, outputs, _ = _tilings(length, size, points)
        voxels = [one for _, cut, _ in outputs.cuts() for one in range(cut.start, cut.stop)]
        assert voxels == list(range(length))
        assert inputs.num == math.ceil(length / (points - size + 1))
