"""Multi-Net: a U-Net for each task, each trained on the images of its own task alone.

All networks are held by one module, so that the one training loop serves them. A batch runs and
changes the networks of its own tasks alone, normalisation statistics and the moments of an
optimiser of the Adam family included. So with batches of one task each network is trained
just as it would be alone. With mixed batches it sees the same patches, but in batches of its own
that are smaller and come more often, and its part in the mean loss is its share of the batch.
Batch normalisation needs more than one value per channel: where a batch may hold one sample of a
task, patches must be longer than ``2**num_stages`` along some axis.

Reference: Ounkomol et al., Label-free prediction of three-dimensional fluorescence images, Nature
Methods 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.unet3d import TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import PerTask


@dataclass(frozen=True)
class MultiNetConfig:
    """Sizes of each of the networks.

    Args:
        backbone: Sizes.
    """

    backbone: Backbone = field(default_factory=Backbone)


def build(config: MultiNetConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return one network for each task; see `ssp.networks.registry.build_network`."""
    networks = (config.backbone.network(num_layers) for _ in range(num_tasks))
    return TaskConditioned(PerTask(networks), num_tasks)
