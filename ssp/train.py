"""Training: from prepared data and a recipe to a run folder."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from core.config import to_dict
from core.terminal import note
from core.training import FitResult, Validation, fit
from core.unet3d import TaskConditioned
from ssp.assess import assess
from ssp.dataset import CellPatches
from ssp.losses import squared_error
from ssp.mapping import Field
from ssp.model import TaskFacts
from ssp.networks.backbone import Target
from ssp.networks.registry import build_network, for_task, model_name
from ssp.prepared import Image, PreparedData, open_data
from ssp.recipes import RECIPES, CellRecipe
from ssp.scores import ALL, ScoredImage, summarize

TRAIN, VALIDATION = "train", "val"
_TARGETS: dict[Target, str] = {
    "stack": "targets that are stacks",
    "projection": "one map for each stack as target",
    "plane": "targets that are single planes",
}


@dataclass(frozen=True)
class Train:
    """Train a method on prepared images of all tasks at once.

    By default as in the paper: mean squared error, Adam at 1e-4, batches of 8 mixed patches of
    32 x 128 x 128, one patch of each image in a pass, 1000 passes (50 epochs of 20), the network of
    the lowest validation error kept.

    Args:
        data: Folder of `ssp prepare`.
        out: Run folder to write: checkpoints, metrics, previews, the resolved configuration.
        resume: Continue the run in `out` exactly; give all other options as before.
        recipe: What to train; the options below override the recipe's choices.
    """

    data: Path
    out: Path
    # without subcommands the recipe decides which network it is, and its options are shown
    recipe: Annotated[CellRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    resume: bool = False

    def __call__(self) -> FitResult:
        """Run the training."""
        return train(self.data, self.out, self.recipe, self.resume)


def summary_of(recipe: CellRecipe) -> str:
    """Return what a method is in one line: the first of its module."""
    return (sys.modules[model_name(recipe.network)].__doc__ or "").splitlines()[0]


TrainCommand = tyro.extras.subcommand_type_from_defaults(
    {
        name: Train(data=tyro.MISSING, out=tyro.MISSING, recipe=recipe)
        for name, recipe in RECIPES.items()
    },
    descriptions={name: summary_of(recipe) for name, recipe in RECIPES.items()},
    prefix_names=False,
)


def train(data: Path, out: Path, recipe: CellRecipe, resume: bool = False) -> FitResult:
    """Train a recipe on all tasks of prepared data.

    Args:
        data: Folder of `ssp prepare`.
        out: Run folder.
        recipe: What to train.
        resume: Whether to continue the run in `out`.

    Raises:
        FileNotFoundError: If there are no prepared data.
        ValueError: If data and recipe do not fit together, or `out` holds a run.
    """
    prepared = open_data(data)
    images = TrainingImages(prepared, prepared.tasks)
    num_layers = images.check(recipe)
    torch.manual_seed(recipe.training.seed)
    model = build_network(recipe.network, len(prepared.tasks), num_layers)
    note(images.summary)
    return fit_images(model, images, recipe, out, prepared.tasks, resume=resume)


def fit_images(
    model: TaskConditioned,
    images: TrainingImages,
    recipe: CellRecipe,
    out: Path,
    tasks: Sequence[str],
    resume: bool = False,
    **facts: Any,
) -> FitResult:
    """Train a network on checked images.

    Args:
        model: The network.
        images: What it is trained on and validated with.
        recipe: How.
        out: Run folder.
        tasks: Names of all tasks that the network knows, in order.
        resume: Whether to continue the run in `out`.
        **facts: In place of or beside what the checkpoint says about itself.
    """
    patches = CellPatches(
        images.trained, tasks, recipe.patches.size, recipe.training.seed, recipe.patches.flips
    )
    description = {
        "model": model_name(recipe.network),
        "recipe": to_dict(recipe),
        "tasks": list(tasks),
        "num_extensions": 0,
        "num_layers": images.num_layers,
        "voxel_size_um": images.voxel_size_um,
        "targets": {task: asdict(known) for task, known in images.facts.items()},
        "images_sha256": images.sha256,
        **facts,
    }
    return fit(
        model,
        Passes(patches, recipe.patches.passes_per_epoch),
        cell_loss,
        Validator(images.validated, tasks, recipe, images.num_layers),
        recipe.training,
        out,
        description,
        resume,
    )


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
        rows = [
            (image.task, image.split, image.name, volume.path.name, volume.shape, volume.mean)
            for image in (*self.trained, *self.validated)
            for volume in (image.signal, image.target)
        ]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

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


class Passes:
    """Several passes over the patches as one epoch.

    Args:
        patches: One patch of each image for each pass.
        number: Passes of an epoch.
    """

    def __init__(self, patches: CellPatches, number: int) -> None:
        self.patches = patches
        self.number = number

    def __len__(self) -> int:
        return len(self.patches) * self.number

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Tensor]:
        """Return one patch: 3 images, 2 passes, epoch 5, index 4 is image 1 of pass 11."""
        epoch, index = epoch_and_index
        number, image = divmod(index, len(self.patches))
        return self.patches[epoch * self.number + number, image]


def cell_loss(
    model: nn.Module, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Mapping[str, float | Tensor]]:
    """Return the mean squared error of a batch inside its images."""
    x = batch["x"]
    if x.device.type == "cpu":  # faster there: benchmarks/memory_layout.py
        x = x.to(memory_format=torch.channels_last_3d)
    return squared_error(model(x, batch["task"]).float(), batch["label"], batch["valid"]), {}


class Validator:
    """Predicts the validation images whole, each by its own task.

    Args:
        images: The images.
        tasks: Names of all tasks, in the order of their indices.
        recipe: Decides tiles and target.
        num_layers: Z of the images, where maps are predicted.
    """

    def __init__(
        self,
        images: Sequence[Image],
        tasks: Sequence[str],
        recipe: CellRecipe,
        num_layers: int | None,
    ) -> None:
        self._images = images
        self._tasks = tasks
        self._recipe = recipe
        self._num_layers = num_layers

    def __call__(self, model: TaskConditioned) -> Validation:
        """Return the score of a model, the error with its sign changed, and a picture per task."""
        device = next(model.parameters()).device
        scored, previews = [], {}
        for task in dict.fromkeys(image.task for image in self._images):
            plain = for_task(model, self._tasks.index(task))
            for image in (image for image in self._images if image.task == task):
                found = assess(plain, image, self._field(image), device)
                scored.append(ScoredImage(image.name, task, found.scores))
                if task not in previews:
                    previews[task] = found.picture()
        means = summarize(scored)
        metrics = dict(means[ALL]) | {f"mse_{name}": means[name]["mse"] for name in previews}
        return Validation(-means[ALL]["mse"], metrics, previews)

    def _field(self, image: Image) -> Field:
        recipe = self._recipe
        target = recipe.network.backbone.target
        return Field(image.signal.shape, recipe.patches.size, target, self._num_layers)
