"""Random changes along z: the layers of a patch reversed, or moved as a run to another depth.

A patch is (Y, X, Z). A run of layers at another depth is what one winner called the fourth
augmentation: the network may not rely on the sheet lying where it did in training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def reverse_layers(patch_YXZ: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a patch whose last layer comes first."""
    return np.ascontiguousarray(patch_YXZ[..., ::-1])


def move_run(
    patch_YXZ: NDArray[np.uint8], least_share: float, fill: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a patch that keeps a random run of its layers, at a random depth, and no other.

    Of 8 layers and with a share of 0.5, a run of 4..8 layers is drawn. One of 5 starts at one of
    0..3 and comes to lie, drawn anew, at one of 0..3: say layers 3..7 at 1..5, and 0, 6 and 7
    blank.

    Args:
        patch_YXZ: Voxels; not changed in place.
        least_share: Least share of the layers in the run, above 0 and at most 1.
        fill: Intensity of all other layers, 0..255.
        rng: All randomness comes from it.
    """
    depth = patch_YXZ.shape[2]
    length = int(rng.integers(max(1, round(least_share * depth)), depth, endpoint=True))
    start, target = rng.integers(0, depth - length, size=2, endpoint=True).tolist()
    moved = np.full_like(patch_YXZ, fill)
    moved[..., target : target + length] = patch_YXZ[..., start : start + length]
    return moved
