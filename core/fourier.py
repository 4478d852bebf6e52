"""Convolution through small Fourier transforms: a product at each frequency, not a sum of taps.

Features are cut into tiles that overlap by the kernel size less one (overlap-save); of a tile of T
points, T - K + 1 outputs are free of wrap-around. A tile of 20 x 20 x 20 points takes about 4 real
multiplications per output and channel pair where 5 x 5 x 5 taps take 125; transforms come on top.

Tiles are short, so transforms are matrix products of T x T, which also put frequencies in front, as
the batch of the product of channels. Frequencies lie half-way between the usual ones,
exp(-2 pi i (f + 1/2) n / T): a real axis has exactly T / 2 of them. The other axes follow for one
frequency of the first axis at a time (a slab). Temporary memory is thus input and output once,
transformed along their first axis (about (L + K) / L of their bytes), and the spectra of one slab;
nothing but features and kernel is kept for the backward pass.

It is the direct sum up to rounding: in float32 about 4e-7 of the largest value, in outputs and
gradients. A voxel that is not finite spoils all of the tiles it is in.

References: Mathieu, Henaff and LeCun, Fast training of convolutional networks through FFTs, ICLR
2014 (arXiv:1312.5851); overlap-save: Oppenheim and Schafer, Discrete-time signal processing, 8.7.3.

Shape legend: N samples, I input and O output channels, C either, S spatial axes (2 or 3), L voxels
of an axis, K taps, T points of a tile; F frequencies of a slab, R rows: tiles of all samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# In multiply-adds of a direct convolution: a real multiply-add of a product of matrices, moving a
# complex value in and out, and the calls for a slab. Estimates, checked against measured steps of
# layers on two cores; they decide speed alone.
COMPLEX_RATIO = 2.75
MOVE = 120.0
SLAB = 2e7
# Direct convolutions compute output channels by so many at a time.
DIRECT_BLOCK = 16
# The estimate must be better by so much.
MARGIN = 1.25
# Outputs of a tile along an axis that are tried; a shorter axis is one tile.
STEPS = (4, 6, 8, 11, 16, 22, 32)


@dataclass(frozen=True)
class _Tiling:
    """The tiles of one axis: `num` windows of `width` voxels, a `step` apart, in `points` points.

    The first window starts `lead` voxels before the first voxel; what lies outside is zero.
    Example: 32 outputs of 5 taps by 2 tiles: of inputs (-2, 18), (14, 34), of outputs (0, 16),
    (16, 32).
    """

    length: int
    points: int
    num: int
    step: int
    lead: int
    width: int

    @property
    def overlaps(self) -> bool:
        return self.num > 1 and self.width > self.step

    def cuts(self) -> Iterator[tuple[int, slice, slice]]:
        """Yield for each tile its number, its voxels, and their points in the tile."""
        for tile in range(self.num):
            start = tile * self.step - self.lead
            low, high = max(start, 0), min(start + self.width, self.length)
            yield tile, slice(low, high), slice(low - start, high - start)


def _tilings(length: int, size: int, points: int) -> tuple[_Tiling, _Tiling, _Tiling]:
    """Return the tilings of the inputs, the outputs and the kernel along one axis."""
    step = points - size + 1
    num = -(-length // step)
    return (
        _Tiling(length, points, num, step, size // 2, points),
        _Tiling(length, points, num, step, 0, step),
        _Tiling(size, points, 1, size, 0, size),
    )


def _waves(num: int, points: int, sign: int) -> Tensor:
    """Return exp(sign 2 pi i (f + 1/2) n / points), complex128 (num, points)."""
    phase = torch.outer(torch.arange(num) + 0.5, torch.arange(points, dtype=torch.float64))
    return torch.polar(torch.ones_like(phase), sign * 2 * math.pi / points * phase)


class _Transform:
    """The transform of features (N, C, *L), or of a kernel (O, I, *K), and its inverse.

    `sign` is that of the exponent; the spectrum of the other sign is the conjugate.
    """

    def __init__(self, tilings: Sequence[_Tiling], sign: int, like: Tensor) -> None:
        self.first, *self.others = tilings
        waves = _waves(self.first.points // 2, self.first.points, sign)
        self.parts = torch.view_as_real(waves).mT.flatten(0, 1).to(like)
        self.waves = [
            _waves(tiling.points, tiling.points, sign).to(like.device, like.dtype.to_complex())
            for tiling in self.others
        ]
        num = len(self.others)
        self.order = [*range(0, 2 * num, 2), *range(1, 2 * num, 2)]

    def empty(self, like: Tensor, num_samples: int, channels: int) -> Tensor:
        """Return room for features transformed along the first axis.

        Shape (tiles, N, C, frequencies, 2, *lengths of the other axes); 2: real, imaginary.
        """
        lengths = [tiling.length for tiling in self.others]
        frequencies = self.first.points // 2
        return like.new_empty(self.first.num, num_samples, channels, frequencies, 2, *lengths)

    def analyse(self, x: Tensor) -> Tensor:
        """Transform features along their first axis; shape as `empty`."""
        slabs = self.empty(x, *x.shape[:2])
        x = x.reshape(x.shape[0] * x.shape[1], x.shape[2], -1)
        for tile, voxels, points in self.first.cuts():
            out = slabs[tile].flatten(0, 1).flatten(1, 2).flatten(2)
            torch.bmm(self.parts[:, points].expand(len(x), -1, -1), x[:, voxels], out=out)
        return slabs

    def spectrum(self, slabs: Tensor, frequency: int) -> Tensor:
        """Return the whole spectrum (F, R, C) at one frequency of the first axis."""
        slab = torch.complex(*slabs[:, :, :, frequency].unbind(3))
        for tiling, waves in zip(reversed(self.others), reversed(self.waves), strict=True):
            rows = slab.flatten(0, -2)
            out = rows.new_empty(tiling.points, tiling.num, len(rows))
            for tile, voxels, points in tiling.cuts():
                torch.mm(waves[:, points], rows[:, voxels].t(), out=out[:, tile])
            slab = out.view(tiling.points, tiling.num, *slab.shape[:-1])
        tail = range(len(self.order), slab.ndim)
        num = len(self.others)
        slab = slab.permute(*self.order, *tail)
        return slab.reshape(math.prod(slab.shape[:num]), -1, slab.shape[-1])

    def put(self, spectrum: Tensor, slabs: Tensor, frequency: int) -> None:
        """Undo `spectrum`: write the slab of one frequency of the first axis."""
        shape = [tiling.points for tiling in self.others] + [tiling.num for tiling in self.others]
        inverse = [self.order.index(axis) for axis in range(len(shape))]
        slab = spectrum.view(*shape, -1).permute(*inverse, len(shape))
        for tiling, waves in zip(self.others, self.waves, strict=True):
            tiles = slab.reshape(tiling.points, tiling.num, -1)
            new = tiles.new_zeros if tiling.overlaps else tiles.new_empty
            rows = new(tiles.shape[2], tiling.length)
            back = waves.conj().resolve_conj() / tiling.points
            for tile, voxels, points in tiling.cuts():
                rows[:, voxels].addmm_(tiles[:, tile].t(), back[:, points], beta=tiling.overlaps)
            slab = rows
        target = slabs[:, :, :, frequency]
        slab = slab.view(*target.shape[:3], *target.shape[4:])
        target.copy_(torch.view_as_real(slab).movedim(-1, 3))

    def synthesise(self, slabs: Tensor) -> Tensor:
        """Undo `analyse`: return features (N, C, *L)."""
        tiling = self.first
        shape = (*slabs.shape[1:3], tiling.length, *slabs.shape[5:])
        x = slabs.new_zeros(shape) if tiling.overlaps else slabs.new_empty(shape)
        rows = x.view(shape[0] * shape[1], tiling.length, -1)
        back = self.parts.t() * (2 / tiling.points)
        for tile, voxels, points in tiling.cuts():
            tiles = slabs[tile].flatten(0, 1).flatten(1, 2).flatten(2)
            matrix = back[points].expand(len(rows), -1, -1)
            rows[:, voxels].baddbmm_(matrix, tiles, beta=tiling.overlaps)
        return x


class _FourierConvolution(torch.autograd.Function):
    """Keeps features and kernel alone; the backward pass transforms them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        inputs, outputs, taps = _plan(tuple(x.shape), len(kernel), tuple(kernel.shape[2:]))[1]
        of_x, of_y = _Transform(inputs, -1, x), _Transform(outputs, -1, x)
        of_kernel = _Transform(taps, 1, x)
        x_slabs, kernel_slabs = of_x.analyse(x), of_kernel.analyse(kernel)
        y_slabs = of_y.empty(x, len(x), len(kernel))
        for frequency in range(y_slabs.shape[3]):
            kernel_FOI = of_kernel.spectrum(kernel_slabs, frequency)
            of_y.put(of_x.spectrum(x_slabs, frequency) @ kernel_FOI.mT, y_slabs, frequency)
        return of_y.synthesise(y_slabs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor]:
        x, kernel = ctx.saved_tensors
        return convolution_backward_fourier(grad_output, x, kernel, ctx.needs_input_grad[0])


def convolve_fourier(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (N, I, *S) with (O, I, *odd window) under zero "same" padding.

    Equals direct convolution; N at least 1.

    Raises:
        ValueError: Features are neither float32 nor float64.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x is {x.dtype}; use float32 or float64, or the direct convolution")
    y: Tensor = _FourierConvolution.apply(x, kernel)  # type: ignore[no-untyped-call]
    return y


def convolution_backward_fourier(
    grad_output: Tensor, x: Tensor, kernel: Tensor, needs_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of `convolve_fourier` in its features, where needed, and its kernel."""
    inputs, outputs, taps = _plan(tuple(x.shape), len(kernel), tuple(kernel.shape[2:]))[1]
    of_x, of_grad_x = _Transform(inputs, -1, x), _Transform(inputs, 1, x)
    of_kernel, of_grad_kernel = _Transform(taps, 1, x), _Transform(taps, -1, x)
    of_grad_y = _Transform(outputs, 1, x)
    x_slabs, kernel_slabs = of_x.analyse(x), of_kernel.analyse(kernel)
    grad_y_slabs = of_grad_y.analyse(grad_output)
    grad_kernel_slabs = torch.empty_like(kernel_slabs)
    for frequency in range(x_slabs.shape[3]):
        grad_FRO = of_grad_y.spectrum(grad_y_slabs, frequency)
        grad_kernel_FOI = grad_FRO.mT @ of_x.spectrum(x_slabs, frequency)
        of_grad_kernel.put(grad_kernel_FOI, grad_kernel_slabs, frequency)
        if needs_input:
            kernel_FOI = of_kernel.spectrum(kernel_slabs, frequency)
            of_grad_x.put(grad_FRO @ kernel_FOI, x_slabs, frequency)  # This slab of x is done with.
    grad_x = of_grad_x.synthesise(x_slabs) if needs_input else None
    return grad_x, of_grad_kernel.synthesise(grad_kernel_slabs)


def is_faster(shape: Sequence[int], out_channels: int, window: Sequence[int]) -> bool:
    """Return whether a training step is expected to be faster than direct convolution on a CPU.

    Never ask for a GPU: its direct convolutions are faster by more than the multiplications.

    Args:
        shape: Of the features (N, I, *S).
        out_channels: O.
        window: Of the kernel, odd sizes.
    """
    blocked = -(-out_channels // DIRECT_BLOCK) * DIRECT_BLOCK
    direct = 3 * math.prod(shape) * blocked * math.prod(window)
    return MARGIN * _plan(tuple(shape), out_channels, tuple(window))[0] < direct


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], out_channels: int, window: tuple[int, ...]
) -> tuple[float, tuple[tuple[_Tiling, ...], ...]]:
    """Return the least cost, and its tilings of inputs, outputs and kernel, each of all axes."""
    choices = []
    for axis, (length, size) in enumerate(zip(shape[2:], window, strict=True)):
        nums = {-(-length // step) for step in STEPS}
        points = {-(-length // num) + size - 1 for num in nums}
        if axis == 0:
            points = {even + even % 2 for even in points}
        choices.append([_tilings(length, size, one) for one in sorted(points)])
    plans = (tuple(zip(*tilings, strict=True)) for tilings in itertools.product(*choices))
    return min(((_cost(shape, out_channels, plan), plan) for plan in plans), key=lambda one: one[0])


def _cost(shape: Sequence[int], out_channels: int, plan: tuple[tuple[_Tiling, ...], ...]) -> float:
    """Return the cost of a training step, in multiply-adds of a direct convolution.

    Inputs are transformed three times (forward, backward, gradient), as is the kernel; outputs
    twice. There are three products of channels.
    """
    num_samples, in_channels = shape[:2]
    pairs = in_channels * out_channels
    counts = (3 * num_samples * in_channels, 2 * num_samples * out_channels, 3 * pairs)
    total = 0.0
    for count, (first, *others) in zip(counts, plan, strict=True):
        values = count * first.num * first.points / 2 * math.prod(axis.length for axis in others)
        total += values * (2 * COMPLEX_RATIO * min(first.points, first.length) + MOVE)
        for axis in reversed(others):
            values *= axis.num * axis.points / axis.length
            total += values * (4 * COMPLEX_RATIO * min(axis.points, axis.length) + MOVE)
    inputs = plan[0]
    spectrum = num_samples * math.prod(axis.num * axis.points for axis in inputs) / 2
    return total + 12 * COMPLEX_RATIO * spectrum * pairs + SLAB * inputs[0].points / 2
