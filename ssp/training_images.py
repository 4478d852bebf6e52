"""The images of prepared data that a network is trained on and validated with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssp.model import TaskFacts
from ssp.networks.backbone import Target
from ssp.prepared import Image, PreparedData
from ssp.recipes import CellRecipe

TRAIN, VALIDATION = "train", "val"
_TARGETS: dict[Target, str] = {
    "stack": "targets that are stacks",
    "projection": "one map for each stack as target",
    "plane": "targets that are single planes",
}


@dataclass(frozen=True)
class TrainingImages:
    """The images of prepared data that some tasks are trained on and validated with.

    Attributes:
        data: The prepared data.
        tasks: Names of the tasks.
    """

    data: PreparedData
    tasks: tuple[str, ...]

    @cached_property
    def trained(self) -> tuple[Image, ...]:
        """Images to train on."""
        return self.data.select(TRAIN, self.tasks)

    @cached_property
    def validated(self) -> tuple[Image, ...]:
        """Images to validate with."""
        return self.data.select(VALIDATION, self.tasks)

    @property
    def is_map(self) -> bool:
        """Whether the targets are maps."""
        return self.trained[0].is_2d_target

    @cached_property
    def num_layers(self) -> int | None:
        """Z of all signals, where it must be one number: maps are predicted of them."""
        return self.trained[0].signal.shape[0] if self.is_map else None

    @cached_property
    def voxel_size_um(self) -> list[float] | None:
        """Voxel size (Z, Y, X) of the images, None if one does not say it."""
        sizes = [image.signal.voxel_size_um for image in self.trained]
        if None in sizes:
            return None
        return [float(np.median(axis)) for axis in zip(*sizes, strict=True)]

    @property
    def facts(self) -> dict[str, TaskFacts]:
        """What is known of the training targets of each task."""
        found = {}
        for task in self.tasks:
            targets = [image.target for image in self.trained if image.task == task]
            mean, std = (float(np.mean([getattr(t, n) for t in targets])) for n in ("mean", "std"))
            found[task] = TaskFacts(mean, std, len(targets))
        return found

    @property
    def sha256(self) -> str:
        """Return a hash of which images there are and how they were prepared."""
        return images_sha256((*self.trained, *self.validated))

    @property
    def summary(self) -> str:
        """Return how many images there are."""
        return (
            f"{len(self.trained)} images of {len(self.tasks)} tasks to train on, "
            f"{len(self.validated)} to validate with"
        )

    def check(self, recipe: CellRecipe) -> int | None:
        """Refuse images that a recipe cannot be trained on; return what `num_layers` is.

        Raises:
            ValueError: If a task has no image to train on, none has one to validate with, targets
                are not what the network predicts, or maps are to be predicted of stacks that
                differ in their planes.
        """
        counts = Counter(image.task for image in self.trained)
        missing = [task for task in self.tasks if not counts[task]]
        if missing:
            raise ValueError(
                f"{self.data.path} has no training image of {', '.join(missing)}; add images of "
                "it, change the split of `ssp prepare`, or prepare the other tasks alone"
            )
        if not self.validated:
            raise ValueError(
                f"{self.data.path} has no validation image, so the best network cannot be chosen; "
                "mark one as val in the list, or raise --split of `ssp prepare`"
            )
        self._check_target(recipe)
        return self.num_layers

    def _check_target(self, recipe: CellRecipe) -> None:
        """Refuse targets that the network does not predict, and stacks that do not fit it."""
        images = (*self.trained, *self.validated)
        if len({image.is_2d_target for image in images}) > 1:
            raise ValueError(
                f"{self.data.path} has targets that are stacks and others that are single planes; "
                "prepare them apart and train a network for each"
            )
        depths = sorted({image.signal.shape[0] for image in images})
        needed: Target = "stack"
        if self.is_map:
            needed = "plane" if depths == [1] else "projection"
            if len(depths) > 1:
                raise ValueError(
                    f"{self.data.path} has stacks of {', '.join(map(str, depths))} planes, but one "
                    "map is predicted of stacks that agree in their number; prepare them apart"
                )
        found, size = recipe.network.backbone.target, recipe.patches.size
        depth = depths[0] if self.is_map else size[0]
        if (found, size[0]) != (needed, depth):
            raise ValueError(
                f"{self.data.path} has {_TARGETS[needed]} and stacks of {depth} planes, the recipe "
                f"predicts a {found} of {size[0]}; give --network.backbone.target {needed} "
                f"--patches.size {depth} {size[1]} {size[2]}"
            )


def images_sha256(images: Iterable[Image]) -> str:
    """Return a hash of which images these are and how they were prepared."""
    rows = [
        (image.task, image.split, image.name, volume.path.name, volume.shape, volume.mean)
        for image in images
        for volume in (image.signal, image.target)
    ]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
