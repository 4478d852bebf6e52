"""Gating re-parameterization (GatRep): the sum of gated experts as one convolution, exactly.

Every expert is linear in its input and the gate scales output channels, so

    sum_e g_e * (W_e conv x)  =  (sum_e g_e * W_e) conv x.

The right side merges kernels, one per distinct task of a batch; the left side runs the shared
experts on the whole batch and gates their outputs. Both are the same function of the same
parameters, in value and gradient. Merging does fewer multiplications; gating writes no kernel per
task, which is cheaper where kernels are larger than feature maps. `convolve` takes the cheaper one.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.4 and equations (3) to (6).

Shape legend: N samples, D distinct tasks of the batch, E experts, O output and I input channels,
S spatial axes (ZYX or YX; the number of them comes from the kernels), K kernel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Expert:
    """One expert: a convolution of odd `size`, or an average of `size` and then a 1-convolution."""

    kind: Literal["conv", "average"]
    size: int

    def __post_init__(self) -> None:
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
        tasks: The distinct tasks, int64 (D,), ascending.
        group: For each sample, the position of its task in `tasks`, int64 (N,).
        samples: For each distinct task, the indices of its samples, int64.
    """

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
            torch.tensor(distinct, device=device),
            torch.tensor([distinct.index(task) for task in task_N], device=device),
            tuple(torch.tensor(samples, device=device) for samples in members),
        )


def merge(kernels: Sequence[Tensor], experts: Sequence[Expert], gates_EO: Tensor) -> Tensor:
    """Merge the experts into one kernel.

    Experts are summed from the smallest size outwards: each size is added into the centre of the
    next one, and an average is a broadcast of its single weight, so no padded copy is made.

    Args:
        kernels: For each expert its learned kernel (O, I, *S).
        experts: What each kernel is.
        gates_EO: Gating weights (E, O).

    Returns:
        The merged kernel (O, I, K, ...) with K the largest expert size.

    Reference: RepMode equations (5) and (6).
    """
    num_axes = kernels[0].ndim - 2
    merged: Tensor | None = None
    for size in sorted({expert.size for expert in experts}):
        total: Tensor | None = None
        for kernel, expert, gate_O in zip(kernels, experts, gates_EO, strict=True):
            if expert.size != size:
                continue
            share = size**num_axes if expert.kind == "average" else 1
            gated = (gate_O / share).view(-1, *[1] * (num_axes + 1)) * kernel
            total = gated if total is None else total + gated
        assert total is not None
        if total.shape[-1] != size:
            total = total.expand(*total.shape[:2], *[size] * num_axes).clone()
        if merged is not None:
            margin = (size - merged.shape[-1]) // 2
            centre = (slice(margin, size - margin),) * num_axes
            total[(slice(None), slice(None), *centre)] += merged
        merged = total
    assert merged is not None
    return merged


def convolve_merged(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Convolve with one merged kernel per distinct task; zero "same" padding.

    Args:
        x: Features (N, I, *S).
        kernels: For each expert its learned kernel (O, I, *S).
        experts: What each kernel is.
        gates_DEO: Gating weights of the distinct tasks (D, E, O).
        groups: Which sample belongs to which distinct task.

    Returns:
        Features (N, O, *S).
    """
    if len(groups.samples) == 1:
        return _convolve(x, merge(kernels, experts, gates_DEO[0]))
    parts = [
        _convolve(x[samples], merge(kernels, experts, gates_EO))
        for samples, gates_EO in zip(groups.samples, gates_DEO, strict=True)
    ]
    return torch.cat(parts)[torch.argsort(torch.cat(groups.samples))]


def convolve_gated(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Run every expert on the whole batch and gate its output; arguments as `convolve_merged`.

    Under autocast the sum is formed in the gates' precision and returned in the convolutions'.

    Reference: RepMode figure 4 (a).
    """
    gates_NEO = gates_DEO[groups.group]
    total: Tensor | None = None
    for e, (kernel, expert) in enumerate(zip(kernels, experts, strict=True)):
        features = _average(x, expert.size) if expert.kind == "average" else x
        gate = gates_NEO[:, e].view(*gates_NEO.shape[::2], *[1] * (x.ndim - 2))
        convolved = _convolve(features, kernel)
        total = gate * convolved if total is None else total + gate * convolved
    assert total is not None
    return total.to(convolved.dtype)


# Cost of merging one kernel element in a training step (written, read and summed again for the
# gradient, all bound by memory), in multiply-adds of a convolution. An estimate, not yet tuned; it
# decides speed only, never the result.
MERGE_COST = 64


def merging_is_cheaper(x: Tensor, experts: Sequence[Expert], num_distinct: int) -> bool:
    """Return whether merging kernels costs less than gating outputs for this batch.

    Both run the convolutions of the merged size; merging adds `MERGE_COST` per kernel element and
    distinct task, gating adds the smaller experts on every voxel of every sample.
    """
    num_axes = x.ndim - 2
    taps = max(expert.size for expert in experts) ** num_axes
    extra_taps = sum(expert.kernel_size**num_axes for expert in experts) - taps
    voxels = x.shape[0] * x[0, 0].numel()
    return num_distinct * taps * MERGE_COST < extra_taps * voxels


def convolve(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Compute the gated sum of experts by the cheaper path; arguments as `convolve_merged`."""
    merged = merging_is_cheaper(x, experts, len(groups.samples))
    path = convolve_merged if merged else convolve_gated
    return path(x, kernels, experts, gates_DEO, groups)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (N, I, *S) with (O, I, *S) under zero "same" padding."""
    operation = F.conv3d if x.ndim == 5 else F.conv2d
    return operation(x, kernel, padding=kernel.shape[-1] // 2)


def _average(x: Tensor, size: int) -> Tensor:
    """Average over windows of `size`; the zero padding is part of every average.

    Padded first because the pooling operators refuse inputs smaller than their window.
    """
    operation = F.avg_pool3d if x.ndim == 5 else F.avg_pool2d
    padded = F.pad(x, [size // 2] * 2 * (x.ndim - 2))
    return operation(padded, size, stride=1)
