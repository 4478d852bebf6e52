"""Training: from prepared volumes and a recipe to a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from core.config import to_dict
from core.inference import choose_device
from core.plan import plan, summary
from core.run_folder import RunFolder
from core.terminal import note
from core.training import FitResult, fit
from core.unet3d import TaskConditioned
from vesuvius.dataset import InkPatches
from vesuvius.folds import (
    Piece,
    check_disjoint,
    folds_json,
    hold_out_fragment,
    hold_out_stripe,
    hold_out_stripes,
    note_shares,
    train_whole,
)
from vesuvius.ink_loss import InkLoss
from vesuvius.inkmap import Window, seen_window
from vesuvius.networks.pretrained import open_pretrained, origin
from vesuvius.networks.registry import build_network, load_pretrained, model_name
from vesuvius.orientation import note_training_orders
from vesuvius.prepared import PreparedVolume, open_prepared
from vesuvius.recipes import RECIPES, InkRecipe, ValidationConfig, WindowConfig
from vesuvius.task_patches import (
    Points,
    check_network,
    count_patches,
    note_unknown,
    points_files,
    sample_targets,
    task_sources,
    tasks_of,
)
from vesuvius.tasks import INFRARED, TaskConfig, Tasks
from vesuvius.validation import Validator
from vesuvius.voxel_size import native, note_voxel_sizes

FOLDS = "folds.json"


@dataclass(frozen=True)
class Train:
    """Train an ink model on the prepared volumes of a folder, validating on pieces held out.

    Args:
        data: Folder of prepared volumes (`<name>.vol`), all of them with ink labels.
        out: Run folder to write: checkpoints, metrics, previews, the resolved configuration.
        resume: Continue the run in `out` exactly; give all other options as before.
        wandb: Project of Weights & Biases to log to beside TensorBoard; none unless given, and
            free to change when a run is resumed.
        pretrained: Run of `vesuvius pretrain` whose encoder to start from.
        recipe: What to train; the options below override the recipe's choices.
    """

    data: Path
    out: Path
    # without subcommands the recipe decides which network it is, and its options are shown
    recipe: Annotated[InkRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    resume: bool = False
    wandb: str | None = None
    pretrained: Path | None = None

    def __call__(self) -> FitResult:
        """Run the training."""
        result = train(self.data, self.out, self.recipe, self.resume, self.wandb, self.pretrained)
        note(f"best F0.5 {result.best_score:.3f}, of epoch {result.best_epoch}: {result.best_path}")
        return result


TrainCommand = tyro.extras.subcommand_type_from_defaults(
    {
        name: Train(data=tyro.MISSING, out=tyro.MISSING, recipe=recipe())
        for name, recipe in RECIPES.items()
    },
    descriptions={
        name: (recipe.__doc__ or "").splitlines()[0].removeprefix("Return ")
        for name, recipe in RECIPES.items()
    },
    prefix_names=False,
)


def train(
    data: Path,
    out: Path,
    recipe: InkRecipe,
    resume: bool = False,
    wandb: str | None = None,
    pretrained: Path | None = None,
) -> FitResult:
    """Train a recipe on every prepared volume of a folder.

    Args:
        data: Folder of prepared volumes.
        out: Run folder.
        recipe: What to train.
        resume: Whether to continue the run in `out`.
        wandb: Project of Weights & Biases to log to; None for none.
        pretrained: Run of `vesuvius pretrain` whose encoder to start from; None for random weights.

    Raises:
        FileNotFoundError: If `pretrained` is no run.
        ValueError: If the volumes and the recipe do not fit together, or `out` holds a run.
    """
    start = open_pretrained(pretrained) if pretrained else None
    volumes = open_volumes(data)
    recipe.tasks.check_fragments(list(volumes))
    pieces = choose_pieces(volumes, recipe.validation, recipe.tasks)
    note_narrow_gap(recipe.validation.gap, recipe.sampling.patch_size)
    note_shares({name: volume.papyrus_mask for name, volume in volumes.items()}, pieces)
    windows = choose_windows(volumes, recipe.window)
    note_training_orders(volumes, windows)
    note_voxel_sizes(volumes)
    seed = recipe.training.seed
    points = sample_targets(volumes, pieces, recipe.sampling, recipe.tasks, seed)
    tasks = tasks_of(recipe.tasks, points)
    dataset = make_dataset(recipe, volumes, points, windows, tasks)
    loss = InkLoss(recipe.loss, tasks.index(INFRARED) if INFRARED in tasks.names else None)
    validator = Validator(volumes, pieces, windows, recipe.validation, tasks)
    torch.manual_seed(seed)
    model = build_network(recipe.network, recipe.window.num_layers, len(tasks.names))
    check_network(model, tasks)
    note_unknown(pieces, tasks)
    if not (resume and RunFolder(out).has_checkpoint):
        load_pretrained(model, recipe, start)
    _note_plan(model, recipe)
    return fit(
        model,
        dataset,
        loss,
        validator,
        recipe.training,
        out,
        describe(recipe, volumes, windows, pieces, points, tasks)
        | origin(start, volumes, pieces, recipe.validation.gap),
        resume,
        {**points_files(points), FOLDS: folds_json(pieces, recipe.validation.gap)},
        wandb,
    )


def _note_plan(model: TaskConditioned, recipe: InkRecipe) -> None:
    """Tell which way the mixtures of a network will take, if it has any."""
    batch_size, patch = recipe.training.batch_size, recipe.sampling.patch_size
    shape = (batch_size, 1, recipe.window.num_layers, patch, patch)
    tasks = [index % model.num_tasks for index in range(batch_size)]
    layers = plan(model, shape, tasks, choose_device("auto").type)
    if layers:
        note(summary(layers))


def open_volumes(data: Path) -> dict[str, PreparedVolume]:
    """Return the prepared volumes of a folder by name.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it holds none, or they differ in their layers.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data.absolute()}; make it with `vesuvius prepare`")
    # `prepare` works in a hidden folder, which a killed one leaves behind
    paths = [path for path in sorted(data.glob("*.vol")) if not path.name.startswith(".")]
    volumes = {volume.name: volume for volume in map(open_prepared, paths)}
    if not volumes:
        raise ValueError(
            f"{data} holds no prepared volume (<name>.vol); make them with "
            f"`vesuvius prepare FRAGMENT... --out {data}`"
        )
    depths = {name: depth(volume) for name, volume in native(volumes).items()}
    if len(set(depths.values())) > 1:
        found = ", ".join(f"{name} {number}" for name, number in depths.items())
        raise ValueError(
            f"volumes of {data} differ in their number of layers ({found}); check for missing or "
            "extra layers and prepare them again, or train on those that agree"
        )
    return volumes


def depth(volume: PreparedVolume) -> int:
    """Return the number of layers of a volume."""
    return volume.volume.shape[2]


def choose_windows(
    volumes: Mapping[str, PreparedVolume], config: WindowConfig
) -> dict[str, Window]:
    """Return what the network sees of each volume, and say so.

    Raises:
        ValueError: If a volume that is to be read in reverse does not exist, or one does not fit.
    """
    unknown = sorted(set(config.reversed) - set(volumes))
    if unknown:
        raise ValueError(
            f"window.reversed names {', '.join(unknown)}, the volumes are {', '.join(volumes)}; "
            "name some of them"
        )
    windows = {
        name: Window.of(volume.statistics, config, name in config.reversed)
        for name, volume in volumes.items()
    }
    for name, window in windows.items():
        order = ", reversed" if window.is_reversed else ""
        layers = f"layers {window.z_start}..{window.z_stop - 1} of {depth(volumes[name])}"
        note(f"{name}: {layers}{order}")
    return windows


def choose_pieces(
    volumes: Mapping[str, PreparedVolume],
    config: ValidationConfig,
    tasks: TaskConfig = TaskConfig(),  # noqa: B008 - frozen
) -> list[Piece]:
    """Return the training and validation pieces, checked to be apart.

    Beside the task of ink, fragments without ink label are trained on whole for the infrared one.

    Raises:
        ValueError: If the held-out fragment does not exist, or nothing is left to train on.
    """
    masks = {name: volume.papyrus_mask for name, volume in volumes.items()}
    unscored = []
    if tasks.kind == "ink-infrared":
        unlabelled = [name for name, volume in volumes.items() if volume.ink_label is None]
        unscored = [train_whole(name, masks.pop(name))
                    for name in unlabelled if name != config.fragment]  # fmt: skip
    if config.num_stripes:
        pieces = hold_out_stripe(
            masks, config.fragment, config.num_stripes, config.stripe, config.gap
        )
    elif config.fragment is not None:
        pieces = hold_out_fragment(masks, config.fragment)
    else:
        pieces = [
            piece
            for name, mask in masks.items()
            for piece in hold_out_stripes(name, mask, config.fraction, config.gap)
        ]
    check_disjoint(pieces, config.gap)
    return pieces + unscored


def note_narrow_gap(gap: int, patch_size: int) -> None:
    """Say so if a gap is narrower than a patch and its halo, which is taken as a patch more."""
    if gap < 2 * patch_size:
        note(
            f"validation.gap {gap} is less than a patch and its halo ({2 * patch_size} px); "
            "training may see what lies beside the validation pieces, and scores be too good"
        )


def make_dataset(
    recipe: InkRecipe,
    volumes: Mapping[str, PreparedVolume],
    points: Points,
    windows: Mapping[str, Window],
    tasks: Tasks,
) -> InkPatches:
    """Return the patches that a recipe trains on."""
    return InkPatches(
        task_sources(volumes, points, windows, tasks),
        recipe.sampling.patch_size,
        recipe.training.seed,
        recipe.augment,
        recipe.window.z_shift,
        recipe.labels,
    )


def describe(
    recipe: InkRecipe,
    volumes: Mapping[str, PreparedVolume],
    windows: Mapping[str, Window],
    pieces: Sequence[Piece],
    points: Points,
    tasks: Tasks,
) -> dict[str, Any]:
    """Return what a checkpoint must say about itself to be used and traced."""
    return {
        "model": model_name(recipe.network),
        "recipe": to_dict(recipe),
        "tasks": list(tasks.names),
        "task_patches": count_patches(points, tasks),
        "num_layers": max(map(depth, native(volumes).values())),
        "windows": {name: seen_window(window, volumes[name]) for name, window in windows.items()},
        "pieces": [asdict(piece) for piece in pieces],
        "points_sha256": hashlib.sha256(
            "".join(points_files(points).values()).encode()
        ).hexdigest(),
        "data": {name: volume.info["fingerprint"] for name, volume in volumes.items()},
        "data_sha256": {name: volume.sha256() for name, volume in volumes.items()},
    }
