"""Small networks of every method, for the tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from core.unet3d import TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.registry import METHODS, NetworkConfig, build_network

NUM_TASKS = 3
SMALL = Backbone(base_channels=2, num_stages=2)


def small(name: str, **changes) -> NetworkConfig:
    """Return the configuration of a method with the small backbone."""
    return replace(METHODS[name], **{"backbone": SMALL, **changes})


def network(config: NetworkConfig, num_layers: int | None = None) -> TaskConditioned:
    """Return a network of three tasks, always with the same weights."""
    torch.manual_seed(0)
    return build_network(config, NUM_TASKS, num_layers)


def volumes(*shape: int) -> torch.Tensor:
    """Return noise, always the same for a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
