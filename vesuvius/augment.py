"""Random changes to training patches, through albumentations with the layers as channels.

A patch is uint8 (Y, X, Z): albumentations sees an image of Z channels, which is several times
faster than its volumes, and uint8 several times faster than float32.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vesuvius.layer_changes import move_run, reverse_layers
from vesuvius.warp import OUTSIDE, warp

HALF = 0.5  # probability of the changes that are given by their strength
NOISE_STD = (0.0125, 0.0275)  # of the noise of `noise_or_blur`: 3 to 7 of 0..255


@dataclass(frozen=True)
class AugmentConfig:
    """What is changed, and how much; 0 switches a change off.

    What comes from outside a patch, and what a hole covers, does not count in the loss. Shifts of
    the window along z are an option of the window.

    Args:
        flip: Probability of a mirror image, drawn on its own for y and x.
        rotate90: Probability of a turn by a random multiple of 90 degrees.
        brightness_contrast: Greatest change of brightness and of contrast, as a fraction of the
            full range; in half of the patches.
        noise: Greatest standard deviation of Gaussian noise, as a fraction of the full range; in
            half of the patches.
        layer_dropout: Greatest number of layers blanked; in half of the patches.
        shift_scale_rotate: Probability of a shift, a zoom and a turn together.
        max_shift: Greatest shift, as a fraction of the patch.
        max_scale: Greatest zoom in or out: 0.15 zooms by 0.85 to 1.15.
        max_rotation: Greatest turn either way, in degrees.
        noise_or_blur: Probability of one of Gaussian noise, Gaussian blur and motion blur.
        grid_distortion: Probability of moving the nodes of a grid of 5 x 5 cells.
        max_distortion: How far they move, as a fraction of a cell.
        coarse_dropout: Probability of a blank rectangle, all layers deep.
        max_hole: Its greatest height and width, as a fraction of the patch.
        z_reverse: Probability of reversing the order of the layers.
        z_run: Probability of keeping only a random run of layers, at a random depth.
        least_run: Least share of the layers in that run.
        mixup: Probability of a weighted sum with another patch, labels too.
        cutmix: Probability of a rectangle out of another patch, label too.
        mix_alpha: Both parameters of the beta distribution of that weight or area.
    """

    flip: float = 0.5
    rotate90: float = 0.5
    brightness_contrast: float = 0.15
    noise: float = 0.0
    layer_dropout: int = 0
    shift_scale_rotate: float = 0.0
    max_shift: float = 0.15
    max_scale: float = 0.15
    max_rotation: float = 360.0
    noise_or_blur: float = 0.0
    grid_distortion: float = 0.0
    max_distortion: float = 0.3
    coarse_dropout: float = 0.0
    max_hole: float = 0.3
    z_reverse: float = 0.0
    z_run: float = 0.0
    least_run: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_alpha: float = 1.0

    def __post_init__(self) -> None:
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it lies in 0..1")
        for name in ("max_scale", "max_distortion"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it is 0 up to below 1")
        for name in ("max_hole", "least_run"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it is above 0, up to 1")
        if self.layer_dropout < 0:
            raise ValueError(f"augment.layer_dropout is {self.layer_dropout}; it is at least 0")
        if not 0 <= self.max_rotation <= 360:
            raise ValueError(f"augment.max_rotation is {self.max_rotation}; it lies in 0..360")
        if not 0 < self.mix_alpha < float("inf"):
            raise ValueError(f"augment.mix_alpha is {self.mix_alpha}; it is above 0")
        if self.mixup + self.cutmix > 1:
            raise ValueError(
                f"augment.mixup {self.mixup} and augment.cutmix {self.cutmix} exclude each other "
                "in a patch; together they are at most 1"
            )


_FRACTIONS = (
    "flip",
    "rotate90",
    "brightness_contrast",
    "noise",
    "shift_scale_rotate",
    "max_shift",
    "noise_or_blur",
    "grid_distortion",
    "coarse_dropout",
    "z_reverse",
    "z_run",
    "mixup",
    "cutmix",
)

SEED_AUGMENTATION = AugmentConfig(
    flip=0.5,
    rotate90=0.5,
    brightness_contrast=0.15,
    shift_scale_rotate=0.55,
    noise_or_blur=0.5,
    grid_distortion=0.5,
    coarse_dropout=0.5,
)


class Augmentation:
    """The changes of a config to one patch, ready to be applied; mixing two is not among them.

    Args:
        config: What to change.
        fill: Intensity of blanked layers, holes and what lies outside, 0..255.
        is_grey: Whether the first of the maps is a photograph and no label.
    """

    def __init__(self, config: AugmentConfig, fill: int, is_grey: bool = False) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network
        import albumentations as A

        self._config = config
        self._fill = fill
        self._is_grey = is_grey
        self._compose = A.Compose(_steps(config, fill))
        self._warps = A.Compose(_warps(config))

    def __reduce__(self) -> tuple[type[Augmentation], tuple[AugmentConfig, int, bool]]:
        return Augmentation, (self._config, self._fill, self._is_grey)

    def __call__(
        self, patch_YXZ: NDArray[np.uint8], maps_YXC: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a changed patch, and its maps moved alike.

        Args:
            patch_YXZ: Voxels; not changed in place.
            maps_YXC: Label and masks stacked; what moves the voxels moves them, and they are 0
                outside the patch and in holes.
            rng: All randomness comes from it.

        Returns:
            Patch and maps, same shapes and types.
        """
        # Not set_random_seed: it gives each step its own generator with the same seed, so that
        # both flips always happen together and half of the orientations never occur.
        draws = random.Random(int(rng.integers(2**63)))
        self._compose.set_random_state(rng, draws)
        self._warps.set_random_state(rng, draws)
        patch_YXZ = self._change_layers(patch_YXZ, rng)
        if self._warps.transforms:
            patch_YXZ, maps_YXC = warp(patch_YXZ, maps_YXC, self._moved, self._fill, self._is_grey)
        changed = self._compose(image=patch_YXZ, mask=maps_YXC)
        return changed["image"], changed["mask"]

    def _change_layers(
        self, patch_YXZ: NDArray[np.uint8], rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Return a patch changed along z."""
        if self._config.z_reverse and rng.random() < self._config.z_reverse:
            patch_YXZ = reverse_layers(patch_YXZ)
        if self._config.z_run and rng.random() < self._config.z_run:
            patch_YXZ = move_run(patch_YXZ, self._config.least_run, self._fill, rng)
        return patch_YXZ

    def _moved(self, coordinates_YX2: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._warps(image=coordinates_YX2)["image"]


def _steps(config: AugmentConfig, fill: int) -> list[Any]:
    """Return the changes that albumentations makes to the layers themselves."""
    import albumentations as A

    limit, layers = config.brightness_contrast, config.layer_dropout
    hole = min(0.1, config.max_hole), config.max_hole
    one_of = [A.GaussNoise(std_range=NOISE_STD), A.GaussianBlur(), A.MotionBlur()]
    steps = {
        "flip": [A.HorizontalFlip(p=config.flip), A.VerticalFlip(p=config.flip)],
        "rotate90": [A.RandomRotate90(p=config.rotate90)],
        "brightness_contrast": [A.RandomBrightnessContrast(limit, limit, p=HALF)],
        "noise": [A.GaussNoise(std_range=(0, config.noise), p=HALF)],
        "noise_or_blur": [A.OneOf(one_of, p=config.noise_or_blur)],
        "layer_dropout": [A.ChannelDropout((1, max(layers, 1)), fill=fill, p=HALF)],
        "coarse_dropout": [
            A.CoarseDropout((1, 1), hole, hole, fill, fill_mask=0, p=config.coarse_dropout)
        ],
    }
    return [step for name in steps if getattr(config, name) > 0 for step in steps[name]]


def _warps(config: AugmentConfig) -> list[Any]:
    """Return the changes that are made to a picture of coordinates."""
    import albumentations as A

    shift, zoom = config.max_shift, config.max_scale
    steps = {
        "shift_scale_rotate": A.Affine(
            scale=(1 - zoom, 1 + zoom),
            translate_percent=(-shift, shift),
            rotate=(-config.max_rotation, config.max_rotation),
            keep_ratio=True,
            fill=OUTSIDE,
            p=config.shift_scale_rotate,
        ),
        "grid_distortion": A.GridDistortion(
            distort_limit=config.max_distortion,
            border_mode=cv2.BORDER_CONSTANT,
            fill=OUTSIDE,
            p=config.grid_distortion,
        ),
    }
    return [step for name, step in steps.items() if getattr(config, name) > 0]
