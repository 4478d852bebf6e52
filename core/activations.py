"""Activations by name: ReLU, Mish, and the two that share the name FReLU."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

ActivationName = Literal["relu", "mish", "funnel", "flexible"]
ACTIVATIONS: tuple[ActivationName, ...] = get_args(ActivationName)


class Funnel(nn.Module):
    """Funnel activation: the larger of a feature and its depthwise 3-neighbourhood condition.

    Reference: Ma et al., Funnel Activation for Visual Recognition, ECCV 2020, equation (1).
    """

    def __init__(self, channels: int, num_axes: int) -> None:
        super().__init__()
        conv_type, norm_type = (
            (nn.Conv3d, nn.BatchNorm3d) if num_axes == 3 else (nn.Conv2d, nn.BatchNorm2d)
        )
        self.conv = conv_type(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = norm_type(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, condition(x)) for features (N, C, *S)."""
        return torch.maximum(x, self.norm(self.conv(x)))


class FlexibleReLU(nn.Module):
    """Flexible rectified linear unit: ReLU whose floor is learned per channel, from 0.

    Reference: Qiu et al., FReLU: Flexible Rectified Linear Units, ICPR 2018, equation (4).
    """

    def __init__(self, channels: int, num_axes: int) -> None:
        super().__init__()
        self.floor = nn.Parameter(torch.zeros(channels, *[1] * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x) + floor for features (N, C, *S)."""
        return torch.relu(x) + self.floor


def make_activation(name: str, channels: int, num_axes: int = 3) -> nn.Module:
    """Return the activation `name` for features of `channels` channels and `num_axes` axes.

    Raises:
        ValueError: If the name is not one of `ACTIVATIONS`.
    """
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "mish":
        return nn.Mish(inplace=True)
    if name == "funnel":
        return Funnel(channels, num_axes)
    if name == "flexible":
        return FlexibleReLU(channels, num_axes)
    raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
