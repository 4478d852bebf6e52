"""Random changes of training patches that the paper's protocol does without: for few images.

Shape legend: C one channel, Z planes, Y rows, X columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

_ROUNDING = 1e-3  # of the weights of an interpolation, which add up to 1


@dataclass(frozen=True)
class Augmentation:
    """Random changes of patches beside flips; none by default, as in the paper.

    Args:
        quarter_turns: Whether signal and target are turned in their planes by 0 to 3 quarters.
        spin: Whether they are turned in their planes by any angle. This, `zoom` and `stretch` act
            about the middle of the patch and interpolate linearly, what `noise` added included;
            where they show what is outside the patch, the signal is 0 and the target does not
            count.
        zoom: Signal and target are enlarged in their planes by a factor whose logarithm is drawn
            evenly from minus to plus that of this: for cells of other sizes.
        stretch: Likewise, but longer along X as they get shorter along Y, or the reverse: for
            cells of other shapes.
        jitter: Of the signal's contrast and brightness: standard deviation of the logarithm of a
            factor and of an offset, in standard deviations of the image.
        noise: Largest standard deviation of noise added to the signal, likewise; that of a patch
            is drawn evenly from 0 to this.

    Raises:
        ValueError: If a size is out of range.
    """

    quarter_turns: bool = False
    spin: bool = False
    zoom: float = 1.0
    stretch: float = 1.0
    jitter: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "noise"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"patches.augment.{name} is {value}; give 0 (none) or more")
        for name in ("zoom", "stretch"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise ValueError(f"patches.augment.{name} is {value}; give 1 (none) or more")

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

    def deform(self, sample: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a patch turned, enlarged and stretched in its planes, about its middle.

        Args:
            sample: `x` (1, Z, Y, X), and (1, Z, Y, X) or (1, Y, X): `label`, and `valid`, 1 where
                it counts and else 0. What comes from outside is 0, and does not count.
            rng: Draws nothing from it if nothing is to change.
        """
        if not (self.spin or self.zoom > 1 or self.stretch > 1):
            return sample
        angle = rng.uniform(-math.pi, math.pi) if self.spin else 0.0
        zoom, stretch = _draw_factor(self.zoom, rng), _draw_factor(self.stretch, rng)
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        source = turned @ np.diag([stretch, 1 / stretch]) / zoom  # of a pixel (X, Y) of the result
        return {name: _warp(value, source, name == "valid") for name, value in sample.items()}

    def draw_turns(self, rng: np.random.Generator) -> int:
        """Return by how many quarters a patch is turned, drawing nothing if it never is."""
        return int(rng.integers(4)) if self.quarter_turns else 0


def _draw_factor(largest: float, rng: np.random.Generator) -> float:
    """Return a factor from 1 / `largest` to `largest`, drawing nothing if there is but 1."""
    return largest ** rng.uniform(-1, 1) if largest > 1 else 1.0


def _warp(planes: Tensor, source: np.ndarray, is_mask: bool) -> Tensor:
    """Return planes (1, ..., Y, X) whose pixels are taken from elsewhere, 0 outside.

    Args:
        planes: The planes.
        source: (2, 2), from the place of a pixel (X, Y) to where it is taken from, both in pixels
            from the middle.
        is_mask: Whether values stay 0 or 1; 1 where all that is interpolated is 1.
    """
    half = np.array([planes.shape[-1], planes.shape[-2]]) / 2  # of the span -1..1 of grid_sample
    theta = np.hstack([source * half / half[:, None], np.zeros((2, 1))])
    flat = planes.reshape(1, -1, *planes.shape[-2:])
    grid = affine_grid(torch.tensor(theta[None], dtype=flat.dtype), list(flat.shape), False)
    warped = grid_sample(flat, grid, align_corners=False).reshape(planes.shape)
    return (warped > 1 - _ROUNDING).to(planes.dtype) if is_mask else warped
