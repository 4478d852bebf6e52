"""PIPO-FAN: the input at five scales into the encoder, predictions at five scales, weighed.

Pooled inputs pass a shared stem, and more residual blocks the coarser they are, and join the
encoder at their scale. What the decoder has at each scale passes more residual blocks the coarser
it is and predicts; a shared attention net weighs the enlarged predictions for each sample. With
another number of stages there are as many scales as stages and one more.

Interpretations: the stem, like a residual block, is the two blocks of a stage; features are brought
to the width of the first stage before the residual blocks of an output, so that one attention net
fits all scales; attention sees features, not predictions, so that it serves all tasks. With deep
supervision the enlarged predictions of all scales are channels behind the weighed one in training,
and the loss, the mean over all channels, compares each with the target, with equal weights.

Reference: Fang and Yan, Multi-Organ Segmentation over Partially Labeled Datasets with Multi-Scale
Feature Abstraction, TMI 2020.

Shape legend: N samples, C channels, S spatial axes (ZYX or YX), L scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.unet3d import Blocks, Decoder, EncoderStage, Parts, TaskConditioned
from ssp.networks.backbone import Backbone
from ssp.networks.conditioning import PerTask, over_space, spatial_mean


@dataclass(frozen=True)
class PipoFanConfig:
    """Sizes and supervision.

    Args:
        backbone: Sizes.
        deep_supervision: Whether in training the prediction of each scale is compared with the
            target too, not the weighed one alone.
    """

    backbone: Backbone = field(default_factory=Backbone)
    deep_supervision: bool = False


def build(config: PipoFanConfig, num_tasks: int, num_layers: int | None = None) -> TaskConditioned:
    """Return PIPO-FAN; see `ssp.networks.registry.build_network`."""
    backbone = config.backbone
    encoder_parts, decoder_parts = (
        backbone.parts(num_axes) for num_axes in (backbone.encoder_axes, backbone.decoder_axes)
    )
    network = backbone.network(
        num_layers,
        PyramidEncoder(encoder_parts, backbone.widths),
        PyramidDecoder(decoder_parts, backbone.base_channels, backbone.num_stages),
        AdaptiveFusion(decoder_parts, backbone, num_tasks, config.deep_supervision),
    )
    return TaskConditioned(network, num_tasks)


class Residual(nn.Module):
    """Two blocks and what they were given."""

    def __init__(self, parts: Parts, channels: int) -> None:
        super().__init__()
        self.blocks = parts.blocks(channels, channels)

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return features (N, C, *S) of features (N, C, *S)."""
        out: Tensor = x + self.blocks(x, *condition)
        return out


class PyramidEncoder(nn.Module):
    """An encoder that is given its input at every scale.

    Args:
        parts: Makes its parts.
        widths: Channels of its features, finest first, the bottleneck's last.
    """

    def __init__(self, parts: Parts, widths: Sequence[int]) -> None:
        super().__init__()
        base, *_, last = widths
        befores = [1, *(width + base for width in widths[:-1])]
        self.stem = parts.blocks(1, base)
        self.refine = nn.ModuleList(
            Blocks(Residual(parts, base) for _ in range(scale)) for scale in range(len(widths) - 1)
        )
        self.stages = nn.ModuleList(
            EncoderStage(parts, before, width)
            for before, width in zip(befores[:-1], widths[:-1], strict=True)
        )
        self.bottleneck = parts.blocks(befores[-1], last)

    def forward(self, x: Tensor, *condition: Any) -> list[Tensor]:
        """Return the skips, finest first, and the bottleneck's features last."""
        skips, pooled = [], x
        for stage, refine in zip(self.stages, self.refine, strict=True):
            skip, halved = stage(x)
            skips.append(skip)
            pooled = F.avg_pool3d(pooled, 2) if x.ndim == 5 else F.avg_pool2d(pooled, 2)
            x = torch.cat([halved, refine(self.stem(pooled))], dim=1)
        return [*skips, self.bottleneck(x)]


class PyramidDecoder(Decoder):
    """A decoder that returns what it has at every scale."""

    def forward(self, features: Sequence[Tensor], *condition: Any) -> list[Tensor]:
        """Return the bottleneck's features and those behind each stage, coarsest first."""
        *skips, x = features
        scales = [x]
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            scales.append(stage(scales[-1], skip))
        return scales


class AdaptiveFusion(nn.Module):
    """Predictions at every scale, weighed by a shared attention net.

    Args:
        parts: Makes its parts.
        backbone: Sizes.
        num_tasks: T; each has a head of its own at each scale.
        deep_supervision: Whether training is given the prediction of each scale too.
    """

    def __init__(
        self, parts: Parts, backbone: Backbone, num_tasks: int, deep_supervision: bool = False
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        base, narrow = backbone.base_channels, backbone.plain_conv(backbone.decoder_axes, size=1)
        widths = backbone.widths[::-1]
        self.branches = nn.ModuleList(
            Blocks([narrow(width, base), *(Residual(parts, base) for _ in range(num_residuals))])
            for width, num_residuals in zip(widths, range(len(widths))[::-1], strict=True)
        )
        self.heads = nn.ModuleList(
            PerTask(narrow(base, 1) for _ in range(num_tasks)) for _ in widths
        )
        self.attention = nn.Sequential(nn.Linear(base, base), nn.ReLU(), nn.Linear(base, 1))

    def forward(self, scales: Sequence[Tensor], *condition: Any) -> Tensor:
        """Return the prediction (N, 1, *S) of a decoder's features, coarsest first.

        In training with deep supervision L channels follow, the predictions of the scales.
        """
        features = [branch(scale) for branch, scale in zip(self.branches, scales, strict=True)]
        scores = [
            self.attention(spatial_mean(one)) + self.attention(one.flatten(2).amax(2))
            for one in features
        ]
        weights_NL = torch.cat(scores, dim=1).softmax(dim=1)
        size, mode = scales[-1].shape[2:], "trilinear" if scales[-1].ndim == 5 else "bilinear"
        maps = [
            F.interpolate(head(one, *condition), size=size, mode=mode, align_corners=False)
            for head, one in zip(self.heads, features, strict=True)
        ]
        weighed = (
            over_space(weight, scales[-1]) * one
            for weight, one in zip(weights_NL.split(1, dim=1), maps, strict=True)
        )
        prediction = torch.stack(list(weighed)).sum(0)
        if self.training and self.deep_supervision:
            return torch.cat([prediction, *maps], dim=1)
        return prediction
