"""The ink networks: one configuration and one build function per module of this package.

The type of a recipe's `network` says which network it is. A checkpoint stores that type's name with
the configuration and the module's name as its model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.unet3d import TaskConditioned
from vesuvius.networks import repmode
from vesuvius.networks.repmode import RepModeConfig

NetworkConfig = RepModeConfig

_BUILD: dict[type, Callable[[Any, int, int], TaskConditioned]] = {RepModeConfig: repmode.build}


def build_network(config: NetworkConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the network of a configuration: (N, 1, Z, Y, X) and tasks (N,) to logits (N, 1, Y, X).

    A network without mixtures of experts takes the tasks and ignores them.

    Args:
        config: Sizes and choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.
    """
    return _BUILD[type(config)](config, num_layers, num_tasks)


def model_name(config: NetworkConfig) -> str:
    """Return what a checkpoint calls the model: the module of its configuration."""
    return type(config).__module__


MODELS = tuple(kind.__module__ for kind in _BUILD)
