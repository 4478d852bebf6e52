"""Convolution with zero "same" padding, by the faster of two ways that give the same sums.

PyTorch's own, voxel by voxel, serves everywhere. On a CPU a large kernel over large features in
float32 takes a fraction of the multiplications at the frequencies (`core.fourier`).

Shape legend: N samples, O output and I input channels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.fourier import convolution_backward_fourier, convolve_fourier, is_faster


def convolve_same(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve (N, I, *S) with (O, I, *odd window), and add a bias (O,), if any."""
    if _is_for_fourier(x, kernel):
        convolved = convolve_fourier(x, kernel)
        return convolved if bias is None else convolved + bias.view(-1, *[1] * (x.ndim - 2))
    operation = F.conv3d if x.ndim == 5 else F.conv2d
    return operation(x, kernel, bias, padding=[size // 2 for size in kernel.shape[2:]])


def convolution_backward(
    grad_output: Tensor, x: Tensor, kernel: Tensor, needs_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of `convolve_same` in its features, where needed, and its kernel."""
    if _is_for_fourier(x, kernel):
        return convolution_backward_fourier(grad_output, x, kernel, needs_input)
    num_axes = x.ndim - 2
    padding = [size // 2 for size in kernel.shape[2:]]
    ones, zeros = [1] * num_axes, [0] * num_axes
    grad_input, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad_output, x, kernel, None, ones, padding, ones, False, zeros, 1,
        [needs_input, True, False],
    )  # fmt: skip
    return grad_input, grad_kernel


class SameConv3d(nn.Conv3d):
    """An ``nn.Conv3d`` of stride 1 and zero "same" padding that takes the faster way."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve features (N, I, Z, Y, X)."""
        return convolve_same(x, self.weight, self.bias)


def _is_for_fourier(x: Tensor, kernel: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == kernel.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and is_faster(x.shape, len(kernel), kernel.shape[2:])
    )
