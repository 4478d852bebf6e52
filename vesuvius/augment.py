"""Random changes to training patches, through albumentations with the layers as channels.

A patch is uint8 (Y, X, Z): albumentations sees an image of Z channels, which is several times
faster than its volumes, and uint8 several times faster than float32.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

HALF = 0.5  # probability of the changes that are given by their strength


@dataclass(frozen=True)
class AugmentConfig:
    """What is changed, and how much; 0 switches a change off.

    Args:
        flip: Probability of a mirror image, drawn on its own for y and x.
        rotate90: Probability of a turn by a random multiple of 90 degrees.
        brightness_contrast: Greatest change of brightness and of contrast, as a fraction of the
            full range; in half of the patches.
        noise: Greatest standard deviation of Gaussian noise, as a fraction of the full range; in
            half of the patches.
        layer_dropout: Greatest number of layers blanked; in half of the patches.
    """

    flip: float = 0.5
    rotate90: float = 0.5
    brightness_contrast: float = 0.15
    noise: float = 0.0
    layer_dropout: int = 0

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(
                    f"augment.{field.name} is {getattr(self, field.name)}; it lies in 0..1"
                )
        if self.layer_dropout < 0:
            raise ValueError(f"augment.layer_dropout is {self.layer_dropout}; it is at least 0")


class Augmentation:
    """The changes of a config, ready to be applied.

    Args:
        config: What to change.
        fill: Intensity of blanked layers, 0..255.
    """

    def __init__(self, config: AugmentConfig, fill: int) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network
        import albumentations as A

        self._made_from = config, fill
        limit, layers = config.brightness_contrast, config.layer_dropout
        steps = {
            "flip": [A.HorizontalFlip(p=config.flip), A.VerticalFlip(p=config.flip)],
            "rotate90": [A.RandomRotate90(p=config.rotate90)],
            "brightness_contrast": [A.RandomBrightnessContrast(limit, limit, p=HALF)],
            "noise": [A.GaussNoise(std_range=(0, config.noise), p=HALF)],
            "layer_dropout": [A.ChannelDropout((1, max(layers, 1)), fill=fill, p=HALF)],
        }
        is_on = {name: getattr(config, name) > 0 for name in steps}
        self._compose = A.Compose([step for name in steps if is_on[name] for step in steps[name]])

    def __reduce__(self) -> tuple[type[Augmentation], tuple[AugmentConfig, int]]:
        return Augmentation, self._made_from

    def __call__(
        self, patch_YXZ: NDArray[np.uint8], maps_YXC: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a changed patch, and its maps moved alike.

        Args:
            patch_YXZ: Voxels; not changed in place.
            maps_YXC: Label and masks stacked; flips and turns move them, nothing else changes them.
            rng: All randomness comes from it.

        Returns:
            Patch and maps, same shapes and types.
        """
        # Not set_random_seed: it gives each step its own generator with the same seed, so that
        # both flips always happen together and half of the orientations never occur.
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self._compose(image=patch_YXZ, mask=maps_YXC)
        return changed["image"], changed["mask"]
