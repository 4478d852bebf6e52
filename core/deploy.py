"""From a task-gated network to the plain network it is for some task, and to smaller kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import register_parametrization

from core.activations import Funnel
from core.mode import MoDE
from core.unet3d import ConvNormAct, SubPixelConv, TaskConditioned, check_tasks

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_TINY = torch.finfo(torch.float32).tiny
_CONVS = (nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_Conv = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


@runtime_checkable
class ByTask(Protocol):
    """A module whose forward pass follows the tasks it is given beside the features."""

    def plain(self, task: int, /) -> nn.Module:
        """Return the module this is for one task, deaf to tasks, with parameters of its own."""


def specialize(model: TaskConditioned, task: int | Sequence[int]) -> nn.Module:
    """Return the plain network that `model` is for `task`, or for the mean gate of several.

    Every mixture of experts becomes one convolution, every other module that acts by task what it
    is for this one, and every batch normalisation is folded into the convolution before it. The
    given model is left as it is.

    Args:
        model: A network of mixtures, or of other modules with a `plain` of their own (`ByTask`).
        task: Integer in 0..num_tasks-1, or a sequence of them: every gate is then the mean of the
            gates of these tasks, for samples of which it is not known to which task they belong.

    Returns:
        A module in evaluation mode with ``forward(x)``, on the device and in the precision of
        `model`, holding parameters of its own.

    Raises:
        ValueError: If a task is out of range, there is none, or there are several and the network
            acts by task in other ways than by mixtures.

    Reference: RepMode section 3.4; the folding is that of any convolution and its BN.
    """
    tasks = tuple(task) if isinstance(task, Sequence) else (task,)
    if not tasks:
        raise ValueError("no task is given to specialize for; name one, or several for their mean")
    check_tasks(tasks, model.num_tasks)
    by_task = [module for module in model.modules() if isinstance(module, ByTask)]
    others = [type(module).__name__ for module in by_task if not isinstance(module, MoDE)]
    if len(tasks) > 1 and others:
        raise ValueError(
            f"{others[0]} has no mean of tasks {', '.join(map(str, tasks))}, only mixtures of "
            "experts have; specialize for one task"
        )
    # The experts are not copied: at full width they are five times the plain network.
    memo = {id(module): module.plain(*tasks) for module in by_task}
    plain = copy.deepcopy(model.network, memo).eval()
    for module in plain.modules():
        for conv_name, norm_name in _pairs(module):
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            if isinstance(conv, _CONVS) and isinstance(norm, _NORMS):
                _fold(conv, norm)
                setattr(module, norm_name, nn.Identity())
    return plain


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return names of children of which the second takes what the first returns, and only that."""
    if isinstance(module, ConvNormAct | Funnel):
        return [("conv", "norm")]
    if isinstance(module, nn.Sequential):
        # a subclass of a normalisation may do more: timm's are followed by their activation
        children = module.named_children()
        return [(a, b) for (a, _), (b, norm) in pairwise(children) if type(norm) in _NORMS]
    return []


def _fold(conv: _Conv, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    """Make a convolution what it is together with the normalisation behind it."""
    is_transposed = isinstance(conv, _TRANSPOSED)
    values = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    if isinstance(conv, SubPixelConv):  # four of its maps become one that is normalised
        values = [value.repeat_interleave(4) for value in values if value is not None]
    mean, variance, weight, bias = values
    assert mean is not None
    assert variance is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, weight, bias, is_transposed
    )


@dataclass(frozen=True)
class RoundingError:
    """How far rounded kernels move an output.

    Attributes:
        absolute: Largest absolute difference of an element.
        relative: The same, as part of the largest absolute output.
    """

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:.2g} ({self.relative:.2g} of the largest output)"


def reduce_precision(
    plain: nn.Module, dtype: torch.dtype, *example: Tensor
) -> tuple[nn.Module, RoundingError]:
    """Return a network that stores its convolution kernels in `dtype`, and what that changes.

    Arithmetic stays in the precision of `plain`: each kernel is widened when it is used. So the
    result runs wherever `plain` does (onnxruntime has no bfloat16 convolution, and on CPUs those in
    float16 are tens of times slower), its error is that of the kernels alone, and it is the same on
    every device. Biases and normalisations, a few values per channel, are not rounded.

    Args:
        plain: A plain network in evaluation mode; it is left as it is.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        *example: Inputs of the network to measure the error with.

    Raises:
        ValueError: If a kernel does not fit into `dtype`, or the outputs are not finite.
    """
    reduced = copy.deepcopy(plain)
    convs = {name: m for name, m in reduced.named_modules() if isinstance(m, _CONVS)}
    for name, conv in convs.items():
        kernel = conv.weight.detach()
        stored = kernel.to(dtype)
        if not stored.isfinite().all():
            raise ValueError(
                f"the kernel {name} reaches {kernel.abs().max():.3g} and {dtype} only "
                f"{torch.finfo(dtype).max:.3g}; take bfloat16 or float32"
            )
        conv.weight = nn.Parameter(stored, requires_grad=False)
        register_parametrization(conv, "weight", _Widened(kernel.dtype), unsafe=True)
    with torch.no_grad():
        expected = plain(*example)
        absolute, largest = (reduced(*example) - expected).abs().max(), expected.abs().max()
    if not absolute.isfinite():
        raise ValueError("the output for the example is not finite; check the network's weights")
    return reduced, RoundingError(float(absolute), float(absolute / largest.clamp_min(_TINY)))


class _Widened(nn.Module):
    """What a convolution sees of a kernel that is stored in a smaller type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: Tensor) -> Tensor:
        """Return the kernel in the type of arithmetic."""
        return stored.to(self.dtype)
