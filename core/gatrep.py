"""Gating re-parameterization (GatRep): the sum of gated experts as one convolution, exactly.

Every expert is linear in its input and the gate scales output channels, so

    sum_e g_e * (W_e conv x)  =  (sum_e g_e * W_e) conv x.

The right side merges kernels, one per distinct task of a batch; the left side runs the shared
experts on the whole batch and gates their outputs. Both are the same function of the same
parameters, in value and gradient. Merging does fewer multiplications; gating writes no kernel per
task, which is cheaper where kernels are larger than feature maps. `core.choice` takes the cheaper.

On features shorter than a kernel the outer taps only ever meet the zero padding: 116 of 125 on a
feature map of 1 x 2 x 2. Both ways leave them out; their gradient is zero.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.4 and equations (3) to (6).

Shape legend: N samples, D distinct tasks of the batch, E experts, O output and I input channels,
S spatial axes (ZYX or YX; the number of them comes from the kernels), K kernel size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import check_literal
from core.convolution import convolution_backward, convolve_same

ExpertKind = Literal["conv", "average"]


@dataclass(frozen=True)
class Expert:
    """One expert: a convolution of odd `size`, or an average of `size` and then a 1-convolution."""

    kind: ExpertKind
    size: int

    def __post_init__(self) -> None:
        check_literal("expert kind", self.kind, ExpertKind)
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"expert size {self.size} is not odd and positive; use 1, 3, 5, ...")

    @property
    def kernel_size(self) -> int:
        """Size of the learned kernel: an average learns one weight per channel pair."""
        return self.size if self.kind == "conv" else 1


REPMODE_EXPERTS = (
    Expert("conv", 5),
    Expert("conv", 3),
    Expert("conv", 1),
    Expert("average", 3),
    Expert("average", 5),
)


@dataclass(frozen=True)
class TaskGroups:
    """The samples of a batch grouped by task; made once per forward pass, used by every block.

    Attributes:
        ids: The task of each sample, plain integers (N,).
        tasks: The distinct tasks, int64 (D,), ascending.
        group: For each sample, the position of its task in `tasks`, int64 (N,).
        samples: For each distinct task, the indices of its samples, int64.
    """

    ids: tuple[int, ...]
    tasks: Tensor
    group: Tensor
    samples: tuple[Tensor, ...]

    @classmethod
    def of(cls, task_N: Sequence[int], device: torch.device | str = "cpu") -> TaskGroups:
        """Group the samples of a batch by their task, with index tensors on `device`.

        Takes plain integers: reading them from a device once costs one wait, and none later.
        """
        distinct = sorted(set(task_N))
        members = [[n for n, task in enumerate(task_N) if task == one] for one in distinct]
        return cls(
            tuple(task_N),
            torch.tensor(distinct, device=device),
            torch.tensor([distinct.index(task) for task in task_N], device=device),
            tuple(torch.tensor(samples, device=device) for samples in members),
        )

    def each_alone(self) -> TaskGroups:
        """Return groups of one sample each, in the order of the batch."""
        alone = torch.arange(len(self.ids), device=self.group.device)
        return TaskGroups(self.ids, self.tasks[self.group], alone, tuple(alone.split(1)))


def live_window(size: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return how much of a kernel of `size` meets features of these lengths, axis by axis.

    A tap further out than the longest distance between two voxels only meets padding.
    Example: size 5 on lengths (1, 2, 3) gives (1, 3, 5).
    """
    return tuple(min(size, 2 * length - 1) for length in lengths)


def merge(kernels: Sequence[Tensor], experts: Sequence[Expert], gates_EO: Tensor) -> Tensor:
    """Merge the experts into one kernel.

    Every expert is added into the centre of one kernel of the largest size; an average is its
    single weight, broadcast. No padded copy is made.

    Args:
        kernels: For each expert its learned kernel (O, I, *S).
        experts: What each kernel is.
        gates_EO: Gating weights (E, O).

    Returns:
        The merged kernel (O, I, K, ...) with K the largest expert size.

    Reference: RepMode equations (5) and (6).
    """
    largest = max(expert.size for expert in experts)
    return _merge(kernels, experts, gates_EO, (largest,) * (kernels[0].ndim - 2))


def _merge(
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_EO: Tensor,
    window: tuple[int, ...],
) -> Tensor:
    """Merge the taps inside a window; the kernels may be cut to it already."""
    merged = kernels[0].new_zeros(*kernels[0].shape[:2], *window)
    for kernel, expert, gate_O in zip(kernels, experts, gates_EO, strict=True):
        reached = [min(expert.size, size) for size in window]
        weight = _per_channel(gate_O / _share(expert, len(window)), len(window))
        middle(merged, reached).addcmul_(middle(kernel, reached), weight)
    return merged


def _unmerge(
    grad_merged: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_EO: Tensor,
    grad_kernels: Sequence[Tensor | None],
) -> Tensor:
    """Undo `_merge` for gradients.

    Args:
        grad_merged: Gradient of the merged kernel (O, I, *window).
        kernels: What was merged.
        experts: What each kernel is.
        gates_EO: Gating weights (E, O).
        grad_kernels: Gradients of the kernels, to be added to; None for a frozen one.

    Returns:
        Gradient of the gating weights (E, O).
    """
    num_axes = grad_merged.ndim - 2
    grad_gates = []
    for kernel, expert, gate_O, grad_kernel in zip(
        kernels, experts, gates_EO, grad_kernels, strict=True
    ):
        share = _share(expert, num_axes)
        grad = middle(grad_merged, [min(expert.size, size) for size in grad_merged.shape[2:]])
        if expert.kind == "average":
            grad = grad.sum(tuple(range(2, grad.ndim)), keepdim=True)
        grad_gates.append((grad * kernel).flatten(1).sum(1) / share)
        if grad_kernel is not None:
            grad_kernel.addcmul_(grad, _per_channel(gate_O / share, num_axes))
    return torch.stack(grad_gates)


class _MergedConvolution(torch.autograd.Function):
    """One merged convolution per group, which keeps no kernel for the backward pass.

    The kernels are merged again there: memory is that of a plain convolution, features alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gates_DEO: Tensor,
        experts: tuple[Expert, ...],
        samples: tuple[Tensor, ...],
        *kernels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, gates_DEO, *samples, *kernels)
        ctx.experts = experts
        window, live = _cut(kernels, experts, x)
        outputs = (
            convolve_same(rows, _merge(live, experts, gates_EO, window).to(x.dtype))
            for rows, gates_EO in zip(split(x, samples), gates_DEO, strict=True)
        )
        return join(outputs, samples)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, gates_DEO, *rest = ctx.saved_tensors
        samples, kernels = tuple(rest[: len(gates_DEO)]), rest[len(gates_DEO) :]
        needs_x, needs_kernels = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        window, live = _cut(kernels, ctx.experts, x)
        grad_live = [
            torch.zeros_like(kernel) if needed else None
            for kernel, needed in zip(live, needs_kernels, strict=True)
        ]
        grad_x, grad_gates = None, []
        parts = (samples, split(x, samples), split(grad_outputs[0], samples), gates_DEO)
        for members, rows, grad_rows, gates_EO in zip(*parts, strict=True):
            kernel = _merge(live, ctx.experts, gates_EO, window).to(x.dtype)
            grad_input, grad_kernel = convolution_backward(grad_rows, rows, kernel, needs_x)
            if grad_input is not None:
                grad_x = _put(grad_input, grad_x, members, len(x))
            grad_kernel = grad_kernel.to(gates_EO.dtype)
            grad_gates.append(_unmerge(grad_kernel, live, ctx.experts, gates_EO, grad_live))
        grad_kernels = [
            None if grad is None else _uncut(grad, kernel.shape)
            for grad, kernel in zip(grad_live, kernels, strict=True)
        ]
        return grad_x, torch.stack(grad_gates), None, None, *grad_kernels


def _cut(
    kernels: Sequence[Tensor], experts: Sequence[Expert], x: Tensor
) -> tuple[tuple[int, ...], list[Tensor]]:
    """Return the window of taps that meet features (N, I, *S), and the kernels cut to it."""
    window = live_window(max(expert.size for expert in experts), x.shape[2:])
    return window, [middle(kernel, window).contiguous() for kernel in kernels]


def _uncut(grad: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of a whole kernel: zero for the taps that were cut away."""
    if grad.shape == shape:
        return grad
    whole = grad.new_zeros(shape)
    middle(whole, grad.shape[2:]).copy_(grad)
    return whole


def convolve_merged(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Convolve with one merged kernel per distinct task; zero "same" padding.

    Under autocast kernels are merged in the parameters' precision and convolved in autocast's.

    Args:
        x: Features (N, I, *S).
        kernels: For each expert its learned kernel (O, I, *S).
        experts: What each kernel is.
        gates_DEO: Gating weights of the distinct tasks (D, E, O).
        groups: Which sample belongs to which distinct task.

    Returns:
        Features (N, O, *S).
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != kernels[0].dtype:
        raise ValueError(
            f"features are {x.dtype} and kernels {kernels[0].dtype}; convert one, or use autocast"
        )
    merged: Tensor = _MergedConvolution.apply(  # type: ignore[no-untyped-call]
        x, gates_DEO, tuple(experts), groups.samples, *kernels
    )
    return merged


def convolve_gated(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Run every expert on the whole batch and gate its output; arguments as `convolve_merged`.

    Under autocast the sum is formed in the gates' precision and returned in the convolutions'.

    Reference: RepMode figure 4 (a), complete utilisation.
    """
    gates_NEO = gates_DEO[groups.group]
    total: Tensor | None = None
    for e, (kernel, expert) in enumerate(zip(kernels, experts, strict=True)):
        window = live_window(expert.kernel_size, x.shape[2:])
        features = average(x, expert.size) if expert.kind == "average" else x
        gate = gates_NEO[:, e].view(*gates_NEO.shape[::2], *[1] * (x.ndim - 2))
        convolved = convolve_same(features, middle(kernel, window))
        total = gate * convolved if total is None else total + gate * convolved
    assert total is not None
    return total.to(convolved.dtype)


def middle(kernel: Tensor, window: Sequence[int]) -> Tensor:
    """Return a view of the central taps of a kernel (O, I, *S), at most `window` an axis."""
    for axis, size in enumerate(window, start=2):
        margin = max(0, kernel.shape[axis] - size) // 2
        kernel = kernel.narrow(axis, margin, kernel.shape[axis] - 2 * margin)
    return kernel


def _per_channel(gate_O: Tensor, num_axes: int) -> Tensor:
    """Return the gating weights of one expert so that they scale a kernel (O, I, *S)."""
    return gate_O.view(-1, *[1] * (num_axes + 1))


def _share(expert: Expert, num_axes: int) -> int:
    """Return what an expert's weight is divided by: an average has as many parts as voxels."""
    return expert.size**num_axes if expert.kind == "average" else 1


def split(x: Tensor, samples: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield the rows of each group; all of `x` as it is where there is one group."""
    return (x if len(samples) == 1 else x[members] for members in samples)


def join(parts: Iterable[Tensor], samples: tuple[Tensor, ...]) -> Tensor:
    """Undo `split`, holding one part at a time."""
    whole: Tensor | None = None
    num_samples = sum(len(members) for members in samples)
    for part, members in zip(parts, samples, strict=True):
        whole = _put(part, whole, members, num_samples)
    assert whole is not None
    return whole


def _put(part: Tensor, whole: Tensor | None, members: Tensor, num_samples: int) -> Tensor:
    """Return the whole batch with the rows of one group put in; it is made at the first."""
    if len(part) == num_samples:
        return part
    if whole is None:
        is_last = part.ndim == 5 and part.is_contiguous(memory_format=torch.channels_last_3d)
        layout = torch.channels_last_3d if is_last else torch.contiguous_format
        shape = (num_samples, *part.shape[1:])
        whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
    whole[members] = part
    return whole


def average(x: Tensor, size: int) -> Tensor:
    """Average over windows of `size`; the zero padding is part of every average.

    Padded first where an axis is shorter than the window, which the operators refuse.
    """
    operation = F.avg_pool3d if x.ndim == 5 else F.avg_pool2d
    if min(x.shape[2:]) >= size:
        return operation(x, size, stride=1, padding=size // 2)
    return operation(F.pad(x, [size // 2] * 2 * (x.ndim - 2)), size, stride=1)
