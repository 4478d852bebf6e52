"""Multi-Head: one U-Net of which all tasks share the first part, and each has its own last part.

The paper's two variants share everything up to the decoder (Dec.) or up to the last layer (Las.).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

from torch import nn

from core.config import check_literal
from core.unet3d import TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import PerTask

Part = Literal["head", "decoder", "bottleneck"]
PARTS: tuple[Part, ...] = get_args(Part)  # from the output back


@dataclass(frozen=True)
class MultiHeadConfig:
    """Sizes and what each task has of its own.

    Args:
        backbone: Sizes.
        own: Where the parts of each task begin: "decoder" for decoder and head (Dec.), "head" for
            the last convolution (Las.); "bottleneck" for all behind the encoder's stages, as the
            paper does not say whether its first variant shares the bottleneck.
    """

    backbone: Backbone = field(default_factory=Backbone)
    own: Part = "decoder"

    def __post_init__(self) -> None:
        check_literal("own", self.own, Part)


def build(
    config: MultiHeadConfig, num_tasks: int, num_layers: int | None = None
) -> TaskConditioned:
    """Return the partly shared network; see `ssp.networks.registry.build_network`."""
    backbone, own = config.backbone, PARTS[: PARTS.index(config.own) + 1]

    def made(part: Part, make: Callable[[], nn.Module]) -> nn.Module:
        return PerTask(make() for _ in range(num_tasks)) if part in own else make()

    parts, widths = backbone.parts(backbone.encoder_axes), backbone.widths
    encoder = backbone.encoder(parts)
    encoder.bottleneck = made("bottleneck", partial(parts.blocks, *widths[-2:]))
    network = backbone.network(
        num_layers, encoder, made("decoder", backbone.decoder), made("head", backbone.head)
    )
    return TaskConditioned(network, num_tasks)
