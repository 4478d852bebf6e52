"""Training: from prepared data and a recipe to a run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

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
from ssp.networks.registry import build_network, for_task, model_name
from ssp.prepared import Image, open_data
from ssp.recipes import RECIPES, CellRecipe
from ssp.scores import ALL, ScoredImage, summarize
from ssp.training_images import TrainingImages


@dataclass(frozen=True)
class Train:
    """Train a method on prepared images of all tasks at once.

    By default as in the paper: mean squared error, Adam at 1e-4, batches of 8 mixed patches of
    32 x 128 x 128, one patch of each image in a pass, 1000 passes (50 epochs of 20), the network of
    the lowest validation error kept.

    Args:
        data: Folder of `ssp prepare`.
        out: Run folder to write: checkpoints, metrics, previews, the resolved configuration.
        task: Names of the tasks to train; all of the data by default.
        resume: Continue the run in `out` exactly; give all other options as before.
        wandb: Project of Weights & Biases to log to beside TensorBoard; none unless given, and
            free to change when a run is resumed.
        recipe: What to train; the options below override the recipe's choices.
    """

    data: Path
    out: Path
    # without subcommands the recipe decides which network it is, and its options are shown
    recipe: Annotated[CellRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    task: tuple[str, ...] = ()
    resume: bool = False
    wandb: str | None = None

    def __call__(self) -> FitResult:
        """Run the training."""
        return train(self.data, self.out, self.recipe, self.task, self.resume, self.wandb)


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


def train(
    data: Path,
    out: Path,
    recipe: CellRecipe,
    tasks: Sequence[str] = (),
    resume: bool = False,
    wandb: str | None = None,
) -> FitResult:
    """Train a recipe on tasks of prepared data.

    Args:
        data: Folder of `ssp prepare`.
        out: Run folder.
        recipe: What to train.
        tasks: Names of the tasks; all that the data have if none is named.
        resume: Whether to continue the run in `out`.
        wandb: Project of Weights & Biases to log to; None for none.

    Raises:
        FileNotFoundError: If there are no prepared data.
        ValueError: If data and recipe do not fit together, or `out` holds a run.
    """
    prepared = open_data(data)
    wanted = tuple(sorted({*tasks})) or prepared.tasks
    images = TrainingImages(prepared, wanted)
    num_layers = images.check(recipe)
    torch.manual_seed(recipe.training.seed)
    model = build_network(recipe.network, len(wanted), num_layers)
    note(images.summary)
    return fit_images(model, images, recipe, out, wanted, resume, wandb)


def fit_images(
    model: TaskConditioned,
    images: TrainingImages,
    recipe: CellRecipe,
    out: Path,
    tasks: Sequence[str],
    resume: bool = False,
    wandb: str | None = None,
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
        wandb: Project of Weights & Biases to log to; None for none.
        **facts: In place of or beside what the checkpoint says about itself.
    """
    drawn = recipe.patches
    patches = CellPatches(
        images.trained, tasks, drawn.size, recipe.training.seed, drawn.flips, drawn.augment
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
    result = fit(
        model,
        Passes(patches, drawn.passes_per_epoch),
        cell_loss,
        Validator(images.validated, tasks, recipe, images.num_layers),
        recipe.training,
        out,
        description,
        resume,
        wandb=wandb,
    )
    error = -result.best_score
    note(f"lowest validation MSE {error:.4f}, of epoch {result.best_epoch}: {result.best_path}")
    return result


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
    """Return the mean squared error of a batch inside its images.

    Channels that a network returns in training behind its prediction are compared with the label
    as the prediction is, and count alike.
    """
    x = batch["x"]
    if x.device.type == "cpu":  # faster there: benchmarks/memory_layout.py
        x = x.to(memory_format=torch.channels_last_3d)
    predicted = model(x, batch["task"]).float()
    label, valid = (batch[name].expand_as(predicted) for name in ("label", "valid"))
    return squared_error(predicted, label, valid), {}


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
