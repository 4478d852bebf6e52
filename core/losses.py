"""Losses of maps with a mask of valid pixels.

Axes: N batch, Y rows, X columns. Ignored pixels (valid = 0) are replaced before any arithmetic, so
that whatever they hold, NaN and infinity included, changes neither value nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SSIM_SIZE = 11  # side of the Gaussian window, in pixels
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # for values in 0..1


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts in a loss; 0 leaves it out.

    Args:
        dice: Dice loss, over the batch as a whole; 0, without gradient, if it has no positive
            pixel.
        bce: Binary cross-entropy with smoothed labels.
        focal: Focal loss, a cross-entropy that looks away from pixels that are easy.
        mse: Squared error of the probability.
        ssim: 1 - structural similarity of probability and label.

    Raises:
        ValueError: If a weight is below 0 or not finite, or all are 0.
    """

    dice: float = 0.5
    bce: float = 0.5
    focal: float = 0.0
    mse: float = 0.0
    ssim: float = 0.0

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"weight of {name} is {value}, allowed is 0 or more")
        if not any(values.values()):
            raise ValueError(f"all weights ({', '.join(values)}) are 0; give one above 0")


class MapLoss(nn.Module):
    """Weighted sum of losses of a map.

    Args:
        weights: Of the parts.
        smoothing: Labels 0 and 1 become `smoothing` and `1 - smoothing` in the cross-entropy.
        focal_alpha: Weight of positive pixels in the focal loss, that of negative ones is the rest
            of 1.
        focal_gamma: How far the focal loss looks away from easy pixels; 0 not at all.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        weights: LossWeights = LossWeights(),
        smoothing: float = 0.25,
        focal_alpha: float = 0.3,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"smoothing is {smoothing}, allowed is 0 <= smoothing < 0.5")
        if not 0 <= focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {focal_alpha}, allowed is 0..1")
        if focal_gamma != 0 and not 1 <= focal_gamma < float("inf"):  # below 1 has no gradient at 0
            raise ValueError(f"focal_gamma is {focal_gamma}, allowed is 0, or 1 or more")
        parts: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            "dice": dice_loss,
            "bce": partial(bce_loss, smoothing=smoothing),
            "focal": partial(focal_loss, alpha=focal_alpha, gamma=focal_gamma),
            "mse": mse_loss,
            "ssim": ssim_loss,
        }
        self.weights = {name: getattr(weights, name) for name in parts if getattr(weights, name)}
        self.parts = {name: parts[name] for name in self.weights}

    def forward(
        self, logits_N1YX: Tensor, label_N1YX: Tensor, valid_N1YX: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            logits_N1YX: Float, any range.
            label_N1YX: 0 or 1, or between where patches were mixed, any dtype.
            valid_N1YX: Nonzero where a pixel counts, any dtype; all do if None.

        Returns:
            The scalar loss, 0 with zero gradient if no pixel is valid, and the detached parts
            before weighting.

        Raises:
            ValueError: If the shapes differ.
        """
        valid = torch.ones_like(logits_N1YX) if valid_N1YX is None else valid_N1YX
        for name, given in {"label": label_N1YX, "valid": valid}.items():
            if given.shape != logits_N1YX.shape:
                raise ValueError(
                    f"{name} is {tuple(given.shape)}, the logits are {tuple(logits_N1YX.shape)}; "
                    "give maps of the same shape"
                )
        is_valid = valid != 0
        logits = torch.where(is_valid, logits_N1YX, 0)
        label = torch.where(is_valid, label_N1YX.to(logits.dtype), 0)
        found = {name: part(logits, label, is_valid) for name, part in self.parts.items()}
        loss = torch.stack([self.weights[name] * value for name, value in found.items()]).sum()
        return loss, {name: value.detach() for name, value in found.items()}


def valid_mean(values: Tensor, is_valid: Tensor) -> Tensor:
    """Return the mean over the valid pixels; 0 with zero gradient if there is none."""
    return torch.where(is_valid, values, 0).sum() / is_valid.sum().clamp_min(1)


def dice_loss(logits: Tensor, label: Tensor, is_valid: Tensor) -> Tensor:
    """Return 1 - Dice of the whole batch; 0 without gradient if no valid pixel is positive.

    Reference: Milletari et al., V-Net, 3DV 2016; `segmentation_models_pytorch.losses.DiceLoss`.
    """
    prob = torch.where(is_valid, torch.sigmoid(logits), 0)
    score = 2 * (prob * label).sum() / (prob.sum() + label.sum()).clamp_min(1e-7)
    return (1 - score) * (label.sum() > 0)


def bce_loss(logits: Tensor, label: Tensor, is_valid: Tensor, smoothing: float) -> Tensor:
    """Return the binary cross-entropy for labels `smoothing` and `1 - smoothing`."""
    soft = label * (1 - 2 * smoothing) + smoothing
    values = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return valid_mean(values, is_valid)


def focal_loss(
    logits: Tensor, label: Tensor, is_valid: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Return the cross-entropy weighted by (1 - probability of the truth) ** gamma and by class.

    Reference: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation (5).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    missed = -torch.expm1(-entropy)
    weight = alpha * label + (1 - alpha) * (1 - label)
    return valid_mean(weight * missed**gamma * entropy, is_valid)


def mse_loss(logits: Tensor, label: Tensor, is_valid: Tensor) -> Tensor:
    """Return the squared error of the probability."""
    return valid_mean((torch.sigmoid(logits) - label) ** 2, is_valid)


def ssim_loss(logits: Tensor, label: Tensor, is_valid: Tensor) -> Tensor:
    """Return 1 - the structural similarity of probability and label, both 0 where ignored."""
    prob = torch.where(is_valid, torch.sigmoid(logits), 0)
    return valid_mean(1 - structural_similarity(prob, label), is_valid)


def structural_similarity(a_N1YX: Tensor, b_N1YX: Tensor) -> Tensor:
    """Return the structural similarity (N, 1, Y, X) around each pixel of maps in 0..1.

    Beyond the edges maps are mirrored, or repeated where they are smaller than half a window.

    Reference: Wang et al., Image Quality Assessment, 2004, equation (13).
    """
    radius = SSIM_SIZE // 2
    offsets = torch.arange(-radius, radius + 1, dtype=a_N1YX.dtype, device=a_N1YX.device)
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    products = torch.cat([a_N1YX, b_N1YX, a_N1YX**2, b_N1YX**2, a_N1YX * b_N1YX], dim=1)
    mode = "reflect" if min(a_N1YX.shape[2:]) > radius else "replicate"
    padded = F.pad(products, [radius] * 4, mode=mode)
    rows = F.conv2d(padded, window[:, None].expand(5, 1, -1, 1), groups=5)
    means = F.conv2d(rows, window.expand(5, 1, 1, -1), groups=5)
    a, b, aa, bb, ab = means.split(1, dim=1)
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
    similarity: Tensor = luminance * (2 * (ab - a * b) + c2) / (aa - a**2 + bb - b**2 + c2)
    return similarity
