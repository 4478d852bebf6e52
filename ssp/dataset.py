"""Training patches out of prepared data.

Shape legend: C one channel, Z planes, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssp.augment import Augmentation
from ssp.prepared import Image

PATCH_SIZE = (32, 128, 128)
FLIP_PROBABILITY = 0.5


class CellPatches(Dataset[dict[str, Tensor]]):
    """One random patch of each image per epoch; `dataset[(epoch, index)]` depends on nothing else.

    An image smaller than a patch is followed by zeros, the mean of all images, where `valid` is 0.

    Args:
        images: Where patches come from, with 3D targets all or 2D targets all.
        task_names: Names of the tasks in the order of their indices.
        patch_size: Size of a patch (Z, Y, X), in voxels.
        seed: All randomness follows from it, the epoch and the index.
        flips: Whether patches are flipped at random along each axis, independently; along Z only
            where the target is a stack, as planes above and below the focus do not look alike.
        augment: Further random changes; none by default.

    Raises:
        ValueError: If an image is of an unknown task, has a 2D target and more planes than a patch,
            2D and 3D targets are mixed, or patches that are no squares are to be turned.
    """

    def __init__(
        self,
        images: Sequence[Image],
        task_names: Sequence[str],
        patch_size: tuple[int, int, int] = PATCH_SIZE,
        seed: int = 0,
        flips: bool = True,
        augment: Augmentation = Augmentation(),  # noqa: B008 - frozen
    ) -> None:
        self.images = tuple(images)
        self.task_names = tuple(task_names)
        self.patch_size = tuple(patch_size)
        self.seed = seed
        self.flips = flips
        self.augment = augment
        if augment.quarter_turns and patch_size[1] != patch_size[2]:
            raise ValueError(
                f"patches of {patch_size[1]} x {patch_size[2]} (Y x X) cannot be turned; give "
                "--patches.size the same Y and X, or no quarter turns"
            )
        if len({image.is_2d_target for image in self.images}) > 1:
            raise ValueError(
                "some targets are stacks and others single planes; train them in runs of their own"
            )
        for image in self.images:
            self._check(image)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Return one patch.

        Args:
            key: Epoch, and index from 0 to `len(self) - 1`.

        Returns:
            `x` float32 (1, Z, Y, X), `task` int64 (), and float32 (1, Z, Y, X), or (1, Y, X) of a
            2D target: `label`, and `valid`, 1 inside the image and else 0.
        """
        epoch, index = key
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        image = self.images[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        place = self._draw(image, rng)
        axes_of_target = place[1:] if image.is_2d_target else place
        size_of_target = self.patch_size[1:] if image.is_2d_target else self.patch_size
        label, valid = _cut(image.target.open(), axes_of_target, size_of_target)
        x, is_inside = _cut(image.signal.open(), place, self.patch_size)
        x = self.augment.change_signal(x, is_inside, rng)
        sample = self.augment.deform({"x": x, "label": label, "valid": valid}, rng)
        if turns := self.augment.draw_turns(rng):
            sample = {name: torch.rot90(value, turns, (-2, -1)) for name, value in sample.items()}
        return {**sample, "task": torch.tensor(self.task_names.index(image.task))}

    def _draw(self, image: Image, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
        """Return start, stop and whether to flip, for each axis of the signal."""
        place = []
        may_flip = (not image.is_2d_target, True, True)
        for length, size, may in zip(image.signal.shape, self.patch_size, may_flip, strict=True):
            start = int(rng.integers(max(length - size, 0) + 1))
            is_flipped = self.flips and may and rng.random() < FLIP_PROBABILITY
            place.append((start, min(start + size, length), is_flipped))
        return place

    def _check(self, image: Image) -> None:
        """Raise ValueError if an image cannot be used."""
        if image.task not in self.task_names:
            raise ValueError(
                f"{image.name} is of task {image.task!r}; known are {', '.join(self.task_names)}"
            )
        num_planes = image.signal.shape[0]
        if image.is_2d_target and num_planes > self.patch_size[0]:
            raise ValueError(
                f"{image.name} has {num_planes} planes but a patch {self.patch_size[0]}; a 2D "
                f"target needs all planes of its signal: choose a patch of {num_planes} or more"
            )


def _cut(
    voxels: np.ndarray, place: Sequence[tuple[int, int, bool]], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return a patch, flipped and then filled up with zeros, and where it is image: float32."""
    inside = tuple(slice(stop - start) for start, stop, _ in place)
    part = voxels[tuple(slice(start, stop) for start, stop, _ in place)]
    part = part[tuple(slice(None, None, -1 if flip else 1) for *_, flip in place)]
    patch, valid = torch.zeros(1, *size), torch.zeros(1, *size)
    patch[0][inside] = torch.from_numpy(np.array(part))  # half to single precision
    valid[0][inside] = 1
    return patch, valid
