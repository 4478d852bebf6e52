"""Mixture of diverse experts (MoDE): a convolution formed by task-gated experts.

Five experts of different shape and kind share one input; a gate, driven by the task alone, weighs
them per output channel; `core.gatrep` computes the weighted sum as one convolution.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.3 and equations (1) and (2).

Shape legend as in `core.gatrep`; T tasks the network knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.choice import COMPUTATIONS, Computation
from core.gates import GateConfig, make_gate
from core.gatrep import (
    REPMODE_EXPERTS,
    Expert,
    TaskGroups,
    convolve_plain,
    live_window,
    merge,
    middle,
)
from core.routing import keep_best


@dataclass(frozen=True)
class Mixture:
    """Which experts are mixed, how they are weighed, and how their sum is computed.

    Every variant that the paper studies in table 2 and figure 4 is one of these.

    Args:
        experts: The experts, in gate order.
        gate: The gate.
        computation: How the gated sum of experts is computed: "auto" chooses the cheaper of
            "merged" and "gated", which are equal. "sparse" is another function: each output
            channel hears its best expert alone (`core.gatrep.convolve_sparse`).
    """

    experts: tuple[Expert, ...] = REPMODE_EXPERTS
    gate: GateConfig = field(default_factory=GateConfig)
    computation: Computation = "auto"


REPMODE = Mixture()


class MoDE(nn.Module):
    """Convolution with zero "same" padding and no bias, mixed from experts by task.

    Args:
        in_channels: I.
        out_channels: O.
        num_tasks: T.
        num_axes: 3 for volumes (N, I, Z, Y, X), 2 for maps (N, I, Y, X).
        mixture: What is mixed and how.

    Attributes:
        computation: That of the mixture; may be changed at any time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_tasks: int,
        num_axes: int = 3,
        mixture: Mixture = REPMODE,
    ) -> None:
        super().__init__()
        self.experts = mixture.experts
        self.computation = mixture.computation
        self.kernels = nn.ParameterList(
            torch.empty(out_channels, in_channels, *[expert.kernel_size] * num_axes)
            for expert in self.experts
        )
        self.gate = make_gate(
            mixture.gate, num_tasks, in_channels, out_channels, len(mixture.experts)
        )
        for kernel in self.kernels:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
        self._kept = _KeptKernel()

    def forward(self, x: Tensor, groups: TaskGroups) -> Tensor:
        """Convolve features (N, I, *S) into (N, O, *S), each sample by its own task.

        Gates and merged kernels are formed in the parameters' precision even under autocast. In
        evaluation without gradients the kernel of a task is kept for the next call.
        """
        if self._may_keep(groups):
            kernel = self._kept.kernel(self, groups.ids[0])
            return convolve_plain(x, middle(kernel, live_window(kernel.shape[2], x.shape[2:])))
        with torch.autocast(x.device.type, enabled=False):
            gates_DEO, groups = self.gate(x, groups)
        # Tasks from before an extension know the first experts only.
        num_experts = gates_DEO.shape[1]
        kernels, experts = tuple(self.kernels)[:num_experts], self.experts[:num_experts]
        return COMPUTATIONS[self.computation](x, kernels, experts, gates_DEO, groups)

    def train(self, mode: bool = True) -> MoDE:
        """Set the mode; training drops the kept kernel instead of carrying it along."""
        if mode:
            self._kept = _KeptKernel()
        return super().train(mode)

    def plain(self, task: int) -> nn.Module:
        """Return the convolution this block is for one task, as ``nn.Conv3d`` or ``nn.Conv2d``.

        Raises:
            ValueError: If it is no convolution because the gate looks at the input.
        """
        kernel = self.merged_kernel(task)
        conv_type = nn.Conv3d if kernel.ndim == 5 else nn.Conv2d
        size = kernel.shape[-1]
        conv = conv_type(
            kernel.shape[1], kernel.shape[0], size, padding=size // 2, bias=False,
            device="meta", dtype=kernel.dtype,
        )  # fmt: skip
        conv.weight = nn.Parameter(kernel)
        return conv

    @torch.no_grad()
    def merged_kernel(self, task: int) -> Tensor:
        """Return the kernel (O, I, *S) of a task, in the parameters' precision.

        Raises:
            ValueError: If there is none because the gate looks at the input.
        """
        with torch.autocast(self.kernels[0].device.type, enabled=False):
            gates_EO = self.gate.of_task(task)
            if self.computation == "sparse":
                gates_EO = keep_best(gates_EO)
            num_experts = len(gates_EO)
            return merge(tuple(self.kernels)[:num_experts], self.experts[:num_experts], gates_EO)

    def _may_keep(self, groups: TaskGroups) -> bool:
        """Tell whether the kernel of this call is that of the next one with the same task."""
        return (
            not torch.compiler.is_compiling()
            and not self.training
            and not torch.is_grad_enabled()
            and len(groups.samples) == 1
            and self.gate.is_fixed
            and self.computation in ("auto", "merged")
            and not self.kernels[0].is_inference()  # whose changes cannot be told
        )


class _KeptKernel:
    """The kernel that a block merged last, as long as nothing it was made of has changed.

    It sees what autograd sees: every change but an in-place one through a weight's `.data`.
    """

    def __init__(self) -> None:
        self._task = -1
        self._sources: list[tuple[Tensor, int]] = []
        self._kernel = torch.empty(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> _KeptKernel:
        return _KeptKernel()

    def __reduce__(self) -> tuple[type[_KeptKernel], tuple[()]]:
        return _KeptKernel, ()

    def kernel(self, block: MoDE, task: int) -> Tensor:
        """Return the kernel of a task, merged anew if the last one was another."""
        weights = [*block.parameters(), *block.buffers()]
        is_same = task == self._task and len(weights) == len(self._sources)
        if not is_same or not all(
            weight.is_set_to(source) and weight._version == version
            for weight, (source, version) in zip(weights, self._sources, strict=True)
        ):
            self._kernel = block.merged_kernel(task)
            self._task = task
            # An alias keeps the memory from being given to another weight at the same place.
            self._sources = [(weight.detach(), weight._version) for weight in weights]
        return self._kernel
