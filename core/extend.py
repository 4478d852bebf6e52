"""Task-incremental learning: a network that knows one task more, and forgets nothing.

Every mixture gets one more expert, a convolution of size 3, and the new task a gate of its own over
all experts. Everything else is frozen, the statistics of the batch normalisations too. Tasks from
before run the experts they have always run, by the gates they have always had, so that their
predictions stay the same bit for bit, however long the new task is trained. (In a batch that holds
both, an old task hears the new experts with weight 0, which needs them to be finite.)

Extending again freezes the last extension as well. Task t of T + 1, T + 2, ... has one expert more
than the task before it.

Reference: Zhou et al., RepMode, CVPR 2023, section 4.4, table 3 and figure 8.

Shape legend as in `core.gatrep`; T tasks the network knew.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from core.gates import GateConfig, TaskGate, stack_gates
from core.gatrep import Expert, TaskGroups
from core.mode import MoDE
from core.unet3d import TaskConditioned

NEW_EXPERT = Expert("conv", 3)


class ExtendedGate(nn.Module):
    """The gate of all earlier tasks, untouched, and beside it the gate of one more task.

    Args:
        old: Gate of tasks 0..T-1 over E experts.
        out_channels: O.
    """

    config: GateConfig
    num_experts: int
    num_tasks: int

    def __init__(self, old: TaskGate | ExtendedGate, out_channels: int) -> None:
        super().__init__()
        self.config = old.config
        self.num_experts = old.num_experts + 1
        self.num_tasks = old.num_tasks + 1
        self.old = old
        self.new = TaskGate(1, self.num_experts, out_channels, self.config)

    @property
    def is_fixed(self) -> bool:
        """Whether a task has the same gating weights at each call, as long as no weight changes."""
        return self.old.is_fixed and self.new.is_fixed

    def forward(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        """Return the gating weights (D, E, O) of the batch's distinct tasks, and its groups.

        E is the number of experts that the newest task of the batch has; for the older ones beside
        it the newer experts weigh 0.
        """
        if max(groups.ids) < self.old.num_tasks:
            return self.old(x, groups)  # type: ignore[no-any-return]
        return stack_gates([self.of_task(task) for task in sorted(set(groups.ids))]), groups

    def of_task(self, task: int) -> Tensor:
        """Return the gating weights (E, O) of a task; E is what the task has."""
        return self.old.of_task(task) if task < self.old.num_tasks else self.new.of_task(0)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of maps by its running statistics, in training too."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation of volumes by its running statistics, in training too."""

    def train(self, mode: bool = True) -> FrozenBatchNorm3d:
        """Stay in evaluation mode."""
        return super().train(False)


def extend(model: TaskConditioned) -> TaskConditioned:
    """Return a network that knows what `model` knows and can learn one task more, the last.

    The new experts and gates are initialised at random, as all are; only they have a gradient. The
    given model is left as it is.

    Args:
        model: A network of task-gated mixtures; it may be an extended one.

    Returns:
        A network of the same class with ``num_tasks + 1`` tasks, in evaluation mode, on the device
        and in the precision of `model`.

    Raises:
        ValueError: If the model has no mixture, or one whose gate looks at the input.
    """
    extended = copy.deepcopy(model).requires_grad_(False)
    blocks = _mixtures(extended)
    for block in blocks:
        _add_expert(block)
    for module in list(extended.modules()):
        _freeze_norms(module)
    extended.num_tasks += 1
    return extended.eval()


def rebuild(base: TaskConditioned, num_extensions: int) -> TaskConditioned:
    """Return `base` extended so many times, to load the state of such a network into.

    Args:
        base: The network as it was before any extension.
        num_extensions: What `count_extensions` gave for the network whose state it is.

    Raises:
        ValueError: If the number is negative, or for what `extend` raises.
    """
    if num_extensions < 0:
        raise ValueError(f"number of extensions is {num_extensions}; it is at least 0")
    for _ in range(num_extensions):
        base = extend(base)
    return base


def count_extensions(model: nn.Module) -> int:
    """Return how many times a network has been extended.

    Raises:
        ValueError: If the network cannot be extended at all.
    """
    gate: nn.Module = _mixtures(model)[0].gate
    count = 0
    while isinstance(gate, ExtendedGate):
        gate, count = gate.old, count + 1
    return count


def _mixtures(model: nn.Module) -> list[MoDE]:
    """Return the mixtures of a network.

    Raises:
        ValueError: If there is none, or one that cannot be extended.
    """
    blocks = [module for module in model.modules() if isinstance(module, MoDE)]
    if not blocks:
        raise ValueError(
            "the network has no mixture of experts to extend; give a task-gated network, not a "
            "specialized one"
        )
    if not all(isinstance(block.gate, TaskGate | ExtendedGate) for block in blocks):
        raise ValueError(
            "the network has input-dependent gates, which know no tasks, so it cannot be extended "
            'by one; train with gates that see the task (GateConfig sees="task")'
        )
    return blocks


def _add_expert(block: MoDE) -> None:
    """Give a mixture the new expert and the gate of the new task."""
    like = block.kernels[0]
    out_channels, in_channels = like.shape[:2]
    kernel = torch.empty(out_channels, in_channels, *[NEW_EXPERT.size] * (like.ndim - 2))
    nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))
    block.experts = (*block.experts, NEW_EXPERT)
    block.kernels.append(nn.Parameter(kernel.to(like)))
    old = block.gate
    assert isinstance(old, TaskGate | ExtendedGate)
    block.add_module("gate", ExtendedGate(old, out_channels).to(like))


def _freeze_norms(module: nn.Module) -> None:
    """Replace the batch normalisations right below a module by frozen ones that hold the same."""
    for name, norm in module.named_children():
        frozen: nn.Module
        if isinstance(norm, nn.BatchNorm3d):
            frozen = FrozenBatchNorm3d(norm.num_features, norm.eps, norm.momentum, device="meta")
        elif isinstance(norm, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
        else:
            continue
        frozen.load_state_dict(norm.state_dict(), assign=True)
        module.add_module(name, frozen.requires_grad_(False))
