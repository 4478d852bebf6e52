"""Mixture of diverse experts (MoDE): a convolution formed by task-gated experts.

Five experts of different shape and kind share one input; a gate, driven by the task alone, weighs
them per output channel; `core.gatrep` computes the weighted sum as one convolution.

Reference: Zhou et al., RepMode, CVPR 2023, section 3.3 and equations (1) and (2).

Shape legend as in `core.gatrep`; T tasks the network knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.choice import COMPUTATIONS, Computation, Way, cheaper
from core.config import check_literal
from core.convolution import SameConv3d, convolve_same
from core.gates import GateConfig, make_gate, stack_gates
from core.gatrep import (
    REPMODE_EXPERTS,
    Expert,
    TaskGroups,
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
            channel hears its best expert alone (`core.routing.convolve_sparse`).

    Raises:
        ValueError: If there is no expert, or no such computation.
    """

    experts: tuple[Expert, ...] = REPMODE_EXPERTS
    gate: GateConfig = field(default_factory=GateConfig)
    computation: Computation = "auto"

    def __post_init__(self) -> None:
        check_literal("computation", self.computation, Computation)
        if not self.experts:
            raise ValueError("a mixture of no experts; give at least one")


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
        self._kept: _Kept | None = None

    def forward(self, x: Tensor, groups: TaskGroups) -> Tensor:
        """Convolve features (N, I, *S) into (N, O, *S), each sample by its own task.

        Gates and merged kernels are formed in the parameters' precision even under autocast. In
        evaluation without gradients the kernel of a task is kept for the next call, until a weight
        changes. As autograd, it cannot see writes through a weight's `.data`: call `train` and
        `eval` after those.
        """
        if self._may_keep(groups):
            kernel = self._kept_kernel(groups.ids[0])
            return convolve_same(x, middle(kernel, live_window(kernel.shape[2], x.shape[2:])))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._kept = None  # An optimiser may follow, and fused ones leave no trace.
        gates_DEO, groups = self._weigh(x, groups)
        # Tasks from before an extension know the first experts only.
        num_experts = gates_DEO.shape[1]
        kernels, experts = tuple(self.kernels)[:num_experts], self.experts[:num_experts]
        return COMPUTATIONS[self.computation](x, kernels, experts, gates_DEO, groups)

    def way(self, x: Tensor, groups: TaskGroups, device_type: str) -> tuple[Way, int, int]:
        """Return how a training step on these features (N, I, *S) would compute them.

        Returns:
            The way on a device of this type, the number of experts, and of kernels to be merged.

        Raises:
            ValueError: If the block routes sparsely, which is neither way.
        """
        if self.computation == "sparse":
            raise ValueError("sparse routing neither merges nor gates, so it has no plan")
        gates_DEO, groups = self._weigh(x, groups)
        num_distinct, num_experts = gates_DEO.shape[:2]
        if self.computation != "auto":
            return self.computation, num_experts, num_distinct
        experts, out_channels = self.experts[:num_experts], self.kernels[0].shape[0]
        way = cheaper(x.shape, out_channels, experts, num_distinct, device_type)
        return way, num_experts, num_distinct

    def _weigh(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        with torch.autocast(x.device.type, enabled=False):
            gates_DEO, groups = self.gate(x, groups)
        return gates_DEO, groups

    def train(self, mode: bool = True) -> MoDE:
        """Set the mode; training drops the kept kernel instead of carrying it along."""
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MoDE:
        self._kept = None  # It would keep the weights from before a move alive.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def plain(self, *tasks: int) -> nn.Module:
        """Return the convolution this block is for one task, as ``nn.Conv3d`` or ``nn.Conv2d``.

        For several tasks it is the one that the mean of their gates makes, which is the mean of
        their convolutions.

        Raises:
            ValueError: If it is no convolution because the gate looks at the input.
        """
        kernel = self.merged_kernel(*tasks)
        conv_type = SameConv3d if kernel.ndim == 5 else nn.Conv2d
        size = kernel.shape[-1]
        conv = conv_type(
            kernel.shape[1], kernel.shape[0], size, padding=size // 2, bias=False,
            device="meta", dtype=kernel.dtype,
        )  # fmt: skip
        conv.weight = nn.Parameter(kernel)
        return conv

    @torch.no_grad()
    def merged_kernel(self, *tasks: int) -> Tensor:
        """Return the kernel (O, I, *S) of a task, or of the mean gate of several.

        It is in the parameters' precision.

        Raises:
            ValueError: If there is none because the gate looks at the input.
        """
        with torch.autocast(self.kernels[0].device.type, enabled=False):
            gates = [self.gate.of_task(task) for task in tasks]
            if self.computation == "sparse":
                gates = [keep_best(gates_EO) for gates_EO in gates]
            gates_EO = stack_gates(gates).mean(dim=0)
            num_experts = len(gates_EO)
            return merge(tuple(self.kernels)[:num_experts], self.experts[:num_experts], gates_EO)

    def _kept_kernel(self, task: int) -> Tensor:
        """Return the kernel of a task, merged anew if the last one was another."""
        weights = [*self.parameters(), *self.buffers()]
        kept = self._kept  # One read and one write, so that threads do not mix their tasks.
        if kept is None or not kept.is_of(task, weights):
            sources = tuple((weight.detach(), weight._version) for weight in weights)
            kept = self._kept = _Kept(task, sources, self.merged_kernel(task))
        return kept.kernel

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


def has_mixtures(network: nn.Module) -> bool:
    """Tell whether a network has any mixture of experts, without which it ignores the task."""
    return any(isinstance(module, MoDE) for module in network.modules())


@dataclass(frozen=True, eq=False)
class _Kept:
    """The kernel that a block merged last, and what it was made of."""

    task: int
    # An alias of each weight keeps its memory from being given to another at the same place.
    sources: tuple[tuple[Tensor, int], ...]
    kernel: Tensor

    def is_of(self, task: int, weights: Sequence[Tensor]) -> bool:
        """Tell whether it is the kernel of this task and these weights as they are now."""
        return (
            task == self.task
            and len(weights) == len(self.sources)
            and all(
                weight.is_set_to(source) and weight._version == version
                for weight, (source, version) in zip(weights, self.sources, strict=True)
            )
        )
