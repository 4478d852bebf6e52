"""The networks by method: one configuration and one build function per module of this package.

The type of a configuration says which network it is. A checkpoint stores that type's name with the
configuration (`core.config`), and the name of its module as the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.deploy import specialize
from core.gates import InputGate
from core.unet3d import TaskConditioned, check_tasks
from ssp.networks import condnet, dodnet, multi_head, multi_net, pipo_fan, repmode, tgnet, tsn
from ssp.networks.condnet import CondNetConfig
from ssp.networks.dodnet import DoDNetConfig
from ssp.networks.multi_head import MultiHeadConfig
from ssp.networks.multi_net import MultiNetConfig
from ssp.networks.pipo_fan import PipoFanConfig
from ssp.networks.repmode import RepModeConfig
from ssp.networks.tgnet import TGNetConfig
from ssp.networks.tsn import TSNConfig

NetworkConfig = (
    RepModeConfig
    | MultiNetConfig
    | MultiHeadConfig
    | CondNetConfig
    | TSNConfig
    | PipoFanConfig
    | DoDNetConfig
    | TGNetConfig
)

_BUILD: dict[type, Callable[[Any, int, int | None], TaskConditioned]] = {
    RepModeConfig: repmode.build,
    MultiNetConfig: multi_net.build,
    MultiHeadConfig: multi_head.build,
    CondNetConfig: condnet.build,
    TSNConfig: tsn.build,
    PipoFanConfig: pipo_fan.build,
    DoDNetConfig: dodnet.build,
    TGNetConfig: tgnet.build,
}
MODELS = tuple(kind.__module__ for kind in _BUILD)
# In the order of the paper's Table 1; RepMode's variants are in `ssp.ablations`.
METHODS: dict[str, NetworkConfig] = {
    "multi-net": MultiNetConfig(),
    "multi-head-dec": MultiHeadConfig(own="decoder"),
    "multi-head-las": MultiHeadConfig(own="head"),
    "condnet": CondNetConfig(),
    "tsns": TSNConfig(),
    "pipo-fan": PipoFanConfig(),
    "dodnet": DoDNetConfig(),
    "tgnet-style": TGNetConfig(),
    "repmode": RepModeConfig(),
}


def build_network(
    config: NetworkConfig, num_tasks: int, num_layers: int | None = None
) -> TaskConditioned:
    """Return the network of a configuration.

    It is called with volumes (N, 1, Z, Y, X) of any Z, Y and X and tasks (N,), any mixture, and
    returns predictions: of target "stack" (N, 1, Z, Y, X), of "projection" and "plane" maps
    (N, 1, Y, X). Each sample's prediction is that of its own task.

    Args:
        config: Sizes and choices.
        num_tasks: Number of tasks, at least 1.
        num_layers: Z of the volumes, which only a projection needs, and then fixes.

    Raises:
        ValueError: If there is no task, or a projection is not told its layers.
    """
    if num_tasks < 1:
        raise ValueError(f"num_tasks is {num_tasks}; give at least one task")
    return _BUILD[type(config)](config, num_tasks, num_layers)


def for_task(model: TaskConditioned, task: int) -> nn.Module:
    """Return the network that a model is for one task: ``forward(x)``, in evaluation mode.

    It is plain (`core.deploy.specialize`), with parameters of its own. RepMode with gates that see
    the input has no plain network: then it is the model itself, always given that task.

    Args:
        model: A network of `build_network`.
        task: Integer in 0..num_tasks-1.

    Raises:
        ValueError: If the task is out of range.
    """
    if any(isinstance(module, InputGate) for module in model.modules()):
        return OneTask(model, task)
    return specialize(model, task)


class OneTask(nn.Module):
    """A model that is always given the same task.

    Args:
        model: The model; it is put into evaluation mode and shared.
        task: The task.

    Raises:
        ValueError: If the task is out of range.
    """

    def __init__(self, model: TaskConditioned, task: int) -> None:
        super().__init__()
        check_tasks([task], model.num_tasks)
        self.model = model
        self.task = task
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the predictions of volumes (N, 1, Z, Y, X)."""
        out: Tensor = self.model(x, torch.full((len(x),), self.task))
        return out


def model_name(config: NetworkConfig) -> str:
    """Return what a checkpoint calls the model: the module of its configuration."""
    return type(config).__module__
