"""The ink networks: one configuration and one build function per module of this package.

The type of a recipe's `network` says which network it is. A checkpoint stores that type's name with
the configuration, and the name of its module as the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.unet3d import TaskConditioned
from vesuvius.networks import i3d, repmode, repmode_segformer, stack_2d
from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.pretrained import Pretrained
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig

if TYPE_CHECKING:
    from vesuvius.recipes import InkRecipe

NetworkConfig = RepModeConfig | I3DConfig | Stack2DConfig | RepModeSegformerConfig

_BUILD: dict[type, Callable[[Any, int, int], TaskConditioned]] = {
    RepModeConfig: repmode.build,
    I3DConfig: i3d.build,
    Stack2DConfig: stack_2d.build,
    RepModeSegformerConfig: repmode_segformer.build,
}
MODELS = tuple(kind.__module__ for kind in _BUILD)


def build_network(config: NetworkConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the network of a configuration: (N, 1, Z, Y, X) and tasks (N,) to logits (N, 1, Y, X).

    A network without mixtures of experts takes the tasks and ignores them.

    Args:
        config: Sizes and choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.

    Raises:
        ValueError: If the choices do not fit each other.
    """
    return _BUILD[type(config)](config, num_layers, num_tasks)


def load_pretrained(
    network: TaskConditioned, recipe: InkRecipe, pretrained: Pretrained | None = None
) -> None:
    """Give a new network the weights that it is to start from, if any.

    Args:
        network: That of the recipe.
        recipe: Its network may name a file of weights.
        pretrained: An encoder pretrained on papyrus.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the weights are of another model.
    """
    config = recipe.network
    if isinstance(config, Stack2DConfig) and config.encoder_weights:
        stack_2d.load_encoder(network, config, recipe.window.num_layers)
    if pretrained:
        pretrained.load_into(network, recipe)


def model_name(config: NetworkConfig) -> str:
    """Return what a checkpoint calls the model: the module of its configuration."""
    return type(config).__module__
