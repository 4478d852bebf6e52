"""What several methods use to act by task.

The condition that a network hands to each of its parts begins with the `TaskGroups` of the batch.
What acts by task has a `plain(task)`, so that `core.deploy.specialize` makes of every method the
network it is for one task.

Shape legend: N samples, T tasks the network knows, F features, O outputs, S spatial axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.gatrep import TaskGroups, join, split


class PerTask(nn.Module):
    """A module for each task; a batch runs those of its own tasks alone, on their samples.

    The others get no gradient at all, and an optimiser passes them by.

    Args:
        by_task: The modules, in the order of the tasks.
    """

    def __init__(self, by_task: Iterable[nn.Module]) -> None:
        super().__init__()
        self.by_task = nn.ModuleList(by_task)

    def forward(self, x: Tensor | Sequence[Tensor], groups: TaskGroups, *condition: Any) -> Tensor:
        """Return the outputs (N, ...) for features, or for a list of features, of N samples."""
        is_one = isinstance(x, Tensor)
        inputs = zip(*(split(one, groups.samples) for one in ([x] if is_one else x)), strict=True)
        tasks = sorted(set(groups.ids))
        outputs = (
            self.by_task[task](*rows) if is_one else self.by_task[task](rows)
            for task, rows in zip(tasks, inputs, strict=True)
        )
        return join(outputs, groups.samples)

    def plain(self, task: int) -> nn.Module:
        """Return a copy of the module of a task."""
        return copy.deepcopy(self.by_task[task])


class TaskLinear(nn.Module):
    """A linear layer over features with the one-hot code of the task behind them.

    Args:
        num_features: F.
        num_tasks: T.
        num_outputs: O.
    """

    def __init__(self, num_features: int, num_tasks: int, num_outputs: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_tasks = num_tasks
        self.linear = nn.Linear(num_features + num_tasks, num_outputs)

    def forward(self, features_NF: Tensor, groups: TaskGroups) -> Tensor:
        """Return the outputs (N, O)."""
        codes = F.one_hot(groups.tasks, self.num_tasks).to(features_NF.dtype)[groups.group]
        outputs: Tensor = self.linear(torch.cat([features_NF, codes], dim=1))
        return outputs

    @torch.no_grad()
    def plain(self, task: int) -> nn.Module:
        """Return the linear layer over the features alone: the code adds to its bias."""
        weight, bias = self.linear.weight, self.linear.bias
        plain = nn.Linear(self.num_features, len(bias), device="meta")
        plain.weight = nn.Parameter(weight[:, : self.num_features].clone())
        plain.bias = nn.Parameter(bias + weight[:, self.num_features + task])
        return plain


class ByFeature(nn.Module):
    """A decoder behind modules that each change one of the features, finest first.

    Args:
        changes: One module for each of the first features; those behind pass as they are.
        decoder: What takes the features.
    """

    def __init__(self, changes: Iterable[nn.Module], decoder: nn.Module) -> None:
        super().__init__()
        self.changes = nn.ModuleList(changes)
        self.decoder = decoder

    def forward(self, features: Sequence[Tensor], *condition: Any) -> Tensor:
        """Return what the decoder makes of the changed features."""
        changed = [
            change(one, *condition) for change, one in zip(self.changes, features, strict=False)
        ]
        out: Tensor = self.decoder([*changed, *features[len(changed) :]], *condition)
        return out


def spatial_mean(x: Tensor) -> Tensor:
    """Return the mean (N, C) of features (N, C, *S) over space."""
    return x.flatten(2).mean(2)


def over_space(values_NC: Tensor, x: Tensor) -> Tensor:
    """Return values (N, C) with as many spatial axes, of length 1, as features (N, C, *S) have."""
    return values_NC.view(*values_NC.shape, *[1] * (x.ndim - 2))
