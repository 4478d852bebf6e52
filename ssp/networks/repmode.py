"""RepMode: every stride-1 convolution is a mixture of experts gated by the task.

Reference: Zhou et al., RepMode, CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from core.config import check_literal
from core.mode import Mixture, MoDE
from core.unet3d import Gated, Parts, TaskConditioned
from ssp.networks.backbone import Backbone


@dataclass(frozen=True)
class RepModeConfig:
    """Sizes and choices of RepMode; the rows of the paper's Table 2 are in `ssp.ablations`.

    Args:
        backbone: Sizes; the kernel size is that of the half that is not gated, if any.
        mixture: The experts of every block, their gate, and how their sum is computed.
        gated: Where the mixtures are, "both" halves, "encoder" or "decoder"; the other half has
            plain convolutions. The bottleneck belongs to the encoder, the head to the decoder.
    """

    backbone: Backbone = field(default_factory=Backbone)
    mixture: Mixture = field(default_factory=Mixture)
    gated: Gated = "both"

    def __post_init__(self) -> None:
        check_literal("gated", self.gated, Gated)


def build(config: RepModeConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return RepMode; see `ssp.networks.registry.build_network`.

    For stacks it is `core.unet3d.RepModeUNet`, with the same names in the state dict.
    """
    backbone = config.backbone

    def parts(half: Gated, num_axes: int) -> Parts:
        mixed = partial(MoDE, num_tasks=num_tasks, num_axes=num_axes, mixture=config.mixture)
        plain = backbone.plain_conv(num_axes, bias=False)  # a mixture has none either
        return backbone.parts(num_axes, mixed if config.gated in ("both", half) else plain)

    decoder_parts = parts("decoder", backbone.decoder_axes)
    network = backbone.network(
        num_layers,
        backbone.encoder(parts("encoder", backbone.encoder_axes)),
        backbone.decoder(decoder_parts),
        decoder_parts.make_conv(backbone.base_channels, 1),
    )
    return TaskConditioned(network, num_tasks)
