"""Mixture of diverse experts (MoDE): a convolution formed by task-gated experts.

Five experts of different shape and kind share one input; a gate, driven by the task alone, weighs
them per output channel; `core.gatrep` computes the weighted sum as one convolution.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.3 and equations (1) and (2).

Shape legend as in `core.gatrep`; T tasks the network knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.gatrep import REPMODE_EXPERTS, Expert, TaskGroups, convolve, merge


class TaskGate(nn.Module):
    """Gating weights of a task: one linear layer over its one-hot code, softmax over experts."""

    def __init__(self, num_tasks: int, num_experts: int, out_channels: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.linear = nn.Linear(num_tasks, num_experts * out_channels)

    def forward(self, tasks_D: Tensor) -> Tensor:
        """Return the gating weights (D, E, O) of integer tasks (D,); they sum to 1 over E."""
        one_hot = F.one_hot(tasks_D, self.linear.in_features).to(self.linear.weight.dtype)
        return self.linear(one_hot).view(len(tasks_D), self.num_experts, -1).softmax(dim=1)


class MoDE(nn.Module):
    """Convolution with zero "same" padding and no bias, mixed from experts by task.

    Args:
        in_channels: I.
        out_channels: O.
        num_tasks: T.
        num_axes: 3 for volumes (N, I, Z, Y, X), 2 for maps (N, I, Y, X).
        experts: The experts, in gate order.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_tasks: int,
        num_axes: int = 3,
        experts: Sequence[Expert] = REPMODE_EXPERTS,
    ) -> None:
        super().__init__()
        self.experts = tuple(experts)
        self.kernels = nn.ParameterList(
            torch.empty(out_channels, in_channels, *[expert.kernel_size] * num_axes)
            for expert in self.experts
        )
        self.gate = TaskGate(num_tasks, len(self.experts), out_channels)
        for kernel in self.kernels:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    def forward(self, x: Tensor, groups: TaskGroups) -> Tensor:
        """Convolve features (N, I, *S) into (N, O, *S), each sample by its own task.

        Gates and merged kernels are formed in the parameters' precision even under autocast.
        """
        with torch.autocast(x.device.type, enabled=False):
            gates_DEO = self.gate(groups.tasks)
        return convolve(x, tuple(self.kernels), self.experts, gates_DEO, groups)

    def plain(self, task: int) -> nn.Module:
        """Return the convolution this block is for one task, as ``nn.Conv3d`` or ``nn.Conv2d``."""
        device = self.kernels[0].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            gates_EO = self.gate(torch.tensor([task], device=device))[0]
            kernel = merge(tuple(self.kernels), self.experts, gates_EO)
        conv_type = nn.Conv3d if kernel.ndim == 5 else nn.Conv2d
        size = kernel.shape[-1]
        conv = conv_type(
            kernel.shape[1], kernel.shape[0], size, padding=size // 2, bias=False,
            device="meta", dtype=kernel.dtype,
        )  # fmt: skip
        conv.weight = nn.Parameter(kernel)
        return conv
