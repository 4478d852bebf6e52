"""Random changes of training patches that the paper's protocol does without: for few images.

Shape legend: C one channel, Z planes, Y rows, X columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of patches beside flips; none by default, as in the paper.

    Args:
        quarter_turns: Whether signal and target are turned in their planes by 0 to 3 quarters.
        jitter: Of the signal's contrast and brightness: standard deviation of the logarithm of a
            factor and of an offset, in standard deviations of the image.
        noise: Largest standard deviation of noise added to the signal, likewise; that of a patch
            is drawn evenly from 0 to this.
        gain: Signal and target are multiplied by one factor, whose logarithm is drawn evenly from
            minus to plus that of this: so a network learns that twice the contrast in transmitted
            light means twice the fluorescence, and follows to brighter cells than it has seen.

    Raises:
        ValueError: If a size is out of range.
    """

    quarter_turns: bool = False
    jitter: float = 0.0
    noise: float = 0.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        for name in ("jitter", "noise"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"patches.augment.{name} is {value}; give 0 (none) or more")
        if not 1 <= self.gain < math.inf:
            raise ValueError(f"patches.augment.gain is {self.gain}; give 1 (none) or more")

    def change_signal(self, x: Tensor, is_inside: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a signal (C, Z, Y, X) with other contrast, brightness and noise.

        Args:
            x: Z-scored signal.
            is_inside: 1 inside the image, else 0; what is outside stays as it is.
            rng: Draws nothing from it if nothing is to change.
        """
        if not (self.jitter or self.noise):
            return x
        changed = x
        if self.jitter:
            factor, offset = self.jitter * rng.standard_normal(2)
            changed = changed * math.exp(factor) + offset
        if self.noise:
            deviation = self.noise * rng.random()
            grain = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
            changed = changed + deviation * grain
        return torch.where(is_inside > 0, changed, x)

    def draw_turns(self, rng: np.random.Generator) -> int:
        """Return by how many quarters a patch is turned, drawing nothing if it never is."""
        return int(rng.integers(4)) if self.quarter_turns else 0

    def draw_gain(self, rng: np.random.Generator) -> float:
        """Return the factor of a patch, drawing nothing if it is always 1."""
        return self.gain ** rng.uniform(-1, 1) if self.gain > 1 else 1.0
