"""Loss with a mask of valid pixels.

Axes: N batch, Y rows, X columns. Ignored pixels (valid = 0) are replaced before any arithmetic, so
that whatever they hold, NaN and infinity included, changes neither value nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiceBCELoss(nn.Module):
    """Weighted sum of Dice loss and binary cross-entropy with smoothed labels.

    Both come from segmentation_models_pytorch; its cross-entropy divides by all pixels, ignored or
    not, so the mean over the valid ones is taken here. Dice is computed over the batch as a whole
    and is 0, without gradient, for a batch that holds no positive pixel.

    Args:
        smoothing: Labels 0 and 1 become `smoothing` and `1 - smoothing` in the cross-entropy.
        dice_weight: Share of Dice in 0..1; the cross-entropy has the rest.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, smoothing: float = 0.25, dice_weight: float = 0.5) -> None:
        super().__init__()
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"smoothing is {smoothing}, allowed is 0 <= smoothing < 0.5")
        if not 0 <= dice_weight <= 1:
            raise ValueError(f"dice_weight is {dice_weight}, allowed is 0..1")
        from core.torchvision_guard import ensure_torchvision

        ensure_torchvision()
        from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

        self.dice_weight = dice_weight
        self.dice = DiceLoss("binary", from_logits=True, ignore_index=-1)
        self.bce = SoftBCEWithLogitsLoss(
            reduction="none", smooth_factor=smoothing, ignore_index=None
        )

    def forward(
        self, logits_N1YX: Tensor, label_N1YX: Tensor, valid_N1YX: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            logits_N1YX: Float, any range.
            label_N1YX: 0 or 1, any dtype.
            valid_N1YX: Nonzero where a pixel counts, any dtype; all do if None.

        Returns:
            The scalar loss, 0 with zero gradient if no pixel is valid, and the detached parts
            `dice` and `bce` before weighting.

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
        dice = self.dice(logits, torch.where(is_valid, label, -1))
        bce = torch.where(is_valid, self.bce(logits, label), 0).sum() / is_valid.sum().clamp_min(1)
        loss = self.dice_weight * dice + (1 - self.dice_weight) * bce
        return loss, {"dice": dice.detach(), "bce": bce.detach()}
