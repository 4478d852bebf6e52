"""Gates: how much each expert counts for each output channel, by task or by input.

The paper's gate is one linear layer over a task's one-hot code and a softmax over the experts. Its
ablations (table 2, "Gating") change the code, the depth or the activation, each a field of
`GateConfig`, or look at the features instead of the task (`InputGate`).

Reference: Zhou et al., RepMode, CVPR 2023, equations (1) and (2) and section 4.3.

Shape legend as in `core.gatrep`; T tasks the network knows, H code length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import check_literal
from core.gatrep import TaskGroups

Sight = Literal["task", "input"]
Code = Literal["one-hot", "gaussian"]
GateActivation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class GateConfig:
    """What a gate sees and how it weighs.

    Args:
        sees: "task", or "input": the features averaged over space, blind to the task.
        code: Code of a task: "one-hot", or "gaussian": fixed N(0, 1) numbers, as many as there are
            tasks (the paper leaves their number open).
        hidden: Width of a hidden layer with ReLU; 0 for none. The paper's ablation has 6.
        activation: "softmax" over the experts, or "sigmoid" for each on its own.

    Raises:
        ValueError: If one of them is not among these.
    """

    sees: Sight = "task"
    code: Code = "one-hot"
    hidden: int = 0
    activation: GateActivation = "softmax"

    def __post_init__(self) -> None:
        check_literal("what the gate sees", self.sees, Sight)
        check_literal("gate code", self.code, Code)
        check_literal("gate activation", self.activation, GateActivation)
        if self.hidden < 0:
            raise ValueError(f"gate hidden width {self.hidden} is negative; use 0 for no layer")


class Gate(nn.Module):
    """Layers from a code to gating weights; what the code is, the subclasses say.

    Attributes:
        perturb: Applied to the logits (D, E, O); the identity, unless an uncertainty estimate
            puts noise in its place.
    """

    def __init__(
        self, code_size: int, num_experts: int, out_channels: int, config: GateConfig
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.config = config
        self.hidden = (
            nn.Sequential(nn.Linear(code_size, config.hidden), nn.ReLU())
            if config.hidden
            else nn.Identity()
        )
        self.linear = nn.Linear(config.hidden or code_size, num_experts * out_channels)
        self.perturb: nn.Module = nn.Identity()

    def forward(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        """Return the gating weights (D, E, O) for features (N, I, *S), and the groups they are of.

        E may be below the number of experts: the experts after the first E then have no part.
        """
        raise NotImplementedError

    def of_task(self, task: int) -> Tensor:
        """Return the gating weights (E, O) of a task.

        Raises:
            ValueError: If they depend on more than the task.
        """
        raise NotImplementedError

    @property
    def is_fixed(self) -> bool:
        """Whether a task has the same gating weights at each call, as long as no weight changes."""
        return isinstance(self.perturb, nn.Identity)

    def weigh(self, codes_DH: Tensor) -> Tensor:
        """Return the gating weights (D, E, O) of codes (D, H)."""
        logits = self.linear(self.hidden(codes_DH)).view(len(codes_DH), self.num_experts, -1)
        logits = self.perturb(logits)
        weights: Tensor = (
            logits.softmax(dim=1) if self.config.activation == "softmax" else logits.sigmoid()
        )
        return weights


class TaskGate(Gate):
    """Gating weights driven by the task alone."""

    def __init__(
        self,
        num_tasks: int,
        num_experts: int,
        out_channels: int,
        config: GateConfig = GateConfig(),
    ) -> None:
        super().__init__(num_tasks, num_experts, out_channels, config)
        self.num_tasks = num_tasks
        self.codes: Tensor | None
        gaussian = torch.randn(num_tasks, num_tasks) if config.code == "gaussian" else None
        self.register_buffer("codes", gaussian)

    def forward(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        """Return the gating weights (D, E, O) of the batch's distinct tasks, and its groups."""
        return self.weigh(self._codes(groups.tasks)), groups

    def of_task(self, task: int) -> Tensor:
        """Return the gating weights (E, O) of a task."""
        return self.weigh(self._codes(torch.tensor([task], device=self.linear.weight.device)))[0]

    def _codes(self, tasks_D: Tensor) -> Tensor:
        if self.codes is None:
            return F.one_hot(tasks_D, self.num_tasks).to(self.linear.weight.dtype)
        return self.codes[tasks_D]


class InputGate(Gate):
    """Gating weights driven by the features, averaged over space; every sample has its own."""

    @property
    def is_fixed(self) -> bool:
        """No: they change with the input."""
        return False

    def forward(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        """Return the gating weights (N, E, O) of the samples, each a group of its own."""
        pooled = x.mean(dim=tuple(range(2, x.ndim)), dtype=self.linear.weight.dtype)
        return self.weigh(pooled), groups.each_alone()

    def of_task(self, task: int) -> Tensor:
        """Refuse: the weights follow from the input.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "an input-dependent gate has no kernel of a task, so the network cannot be "
            'specialized; train with gates that see the task (GateConfig sees="task")'
        )


def stack_gates(gates: Sequence[Tensor]) -> Tensor:
    """Return the gating weights (D, E, O) of tasks whose own (E, O) may be of fewer experts.

    The experts that a task lacks weigh 0.
    """
    num_experts = max(map(len, gates))
    return torch.stack([F.pad(gate, (0, 0, 0, num_experts - len(gate))) for gate in gates])


def make_gate(
    config: GateConfig, num_tasks: int, in_channels: int, out_channels: int, num_experts: int
) -> Gate:
    """Return the gate that `config` describes for a block of I to O channels and E experts."""
    if config.sees == "input":
        return InputGate(in_channels, num_experts, out_channels, config)
    return TaskGate(num_tasks, num_experts, out_channels, config)
