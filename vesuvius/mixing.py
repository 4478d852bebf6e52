"""Two samples mixed into one: mixup (a weighted sum) and cutmix (a rectangle of the other)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

MIXED = ("x", "label", "valid")

Sample = Mapping[str, Tensor]


def mixup(sample: Sample, other: Sample, weight: float) -> dict[str, Tensor]:
    """Return weight * sample + (1 - weight) * other, voxels and label alike.

    The label is then a probability. A pixel is valid where it is in both.

    Args:
        sample: Of `InkPatches`.
        other: Another one, of the same task.
        weight: Of `sample`, 0..1.
    """
    mixed = {name: weight * sample[name] + (1 - weight) * other[name] for name in ("x", "label")}
    return dict(sample) | mixed | {"valid": sample["valid"] * other["valid"]}


def cutmix(
    sample: Sample, other: Sample, share: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return a sample with a random rectangle, all layers, out of another one.

    Args:
        sample: Of `InkPatches`; not changed in place.
        other: Another one, of the same task.
        share: About how much of the area the rectangle has, 0..1; it has the patch's proportions.
        rng: Its position comes from it.
    """
    height, width = sample["label"].shape[-2:]
    rows, columns = (round(side * share**0.5) for side in (height, width))
    y = int(rng.integers(0, height - rows, endpoint=True))
    x = int(rng.integers(0, width - columns, endpoint=True))
    mixed = {name: sample[name].clone() for name in MIXED}
    for name, tensor in mixed.items():
        inside = (..., slice(y, y + rows), slice(x, x + columns))
        tensor[inside] = other[name][inside]
    return dict(sample) | mixed
