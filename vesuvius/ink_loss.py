"""The loss of a batch of patches, whichever tasks they are of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.losses import LossWeights, MapLoss
from vesuvius.recipes import LossConfig


class InkLoss:
    """The loss of a batch inside the papyrus mask.

    Patches of the infrared task are compared with a photograph, whose greys Dice would drive to
    black and white and smoothing would flatten: theirs is the cross-entropy, least where the
    probability is the grey. Each of the two losses counts as much as it has patches.

    Args:
        config: The loss of ink.
        infrared_task: Index of the infrared task, if there is one.
    """

    def __init__(self, config: LossConfig, infrared_task: int | None = None) -> None:
        self._loss = config.make()
        self._infrared_task = infrared_task
        self._infrared_loss = MapLoss(LossWeights(dice=0, bce=1), smoothing=0)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts, each 0 in a batch without patches of its task."""
        x = batch["x"]
        if x.device.type == "cpu":  # faster there: benchmarks/memory_layout.py
            x = x.to(memory_format=torch.channels_last_3d)
        logits, label, valid = model(x, batch["task"]), batch["label"], batch["valid"]
        if self._infrared_task is None:
            loss: tuple[Tensor, dict[str, Tensor]] = self._loss(logits, label, valid)
            return loss
        is_infrared = batch["task"] == self._infrared_task
        share = is_infrared.float().mean()
        of_infrared = is_infrared[:, None, None, None]
        ink, parts = self._loss(logits, label, valid * ~of_infrared)
        infrared, _ = self._infrared_loss(logits, label, valid * of_infrared)
        total = (1 - share) * ink + share * infrared
        return total, {**parts, "infrared": infrared.detach()}
