"""Task-incremental learning: one structure more for a trained network.

RepMode gets an expert and a gate more, which alone learn, so that it forgets nothing. What the
paper compares it with is Multi-Head, which gets a decoder (or a last layer) more, all of it
learning: "All Fine-Tuning".

Reference: Zhou et al., RepMode, CVPR 2023, section 4.4 and table 3.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from core.extend import extend as extend_network
from core.terminal import note
from core.training import FitResult
from core.unet3d import TaskConditioned
from ssp.model import CellModel, load_model
from ssp.networks.backbone import Backbone
from ssp.networks.multi_head import MultiHeadConfig
from ssp.networks.registry import build_network
from ssp.networks.repmode import RepModeConfig
from ssp.prepared import open_data
from ssp.recipes import CellRecipe
from ssp.train import fit_images
from ssp.training_images import TrainingImages

SIZE_TOLERANCE = 0.02


def extend(
    run: Path,
    /,
    data: Path,
    task: str,
    out: Path,
    epochs: int | None = None,
    learning_rate: float | None = None,
    resume: bool = False,
) -> FitResult:
    """Teach a trained network one structure more, from images of that structure alone.

    Every mixture of experts of RepMode gets one more expert and the new structure its own gates;
    all else is frozen, so the structures it knows are predicted as before, bit for bit. Multi-Head
    gets a decoder or last layer more and learns as a whole, so it may forget. The new run folder
    is one like any other: it can be evaluated, used to predict, and extended again.

    Args:
        run: Run folder of `ssp train` or `ssp extend`, one of its checkpoints, or an official
            checkpoint (.p).
        data: Folder of `ssp prepare`; of its tasks only the new one is looked at.
        task: Name of the new structure.
        out: Run folder to write.
        epochs: Epochs, of 20 passes by default; as many as the run was trained for by default.
        learning_rate: Of Adam; that of the run by default.
        resume: Continue the run in `out` exactly; give all other options as before.

    Raises:
        FileNotFoundError: If the run or the data do not exist.
        ValueError: If the structure is known already or has no images, the images do not fit, or
            the network is neither RepMode nor Multi-Head.
    """
    model, prepared = load_model(run), open_data(data)
    if task in model.tasks:
        raise ValueError(
            f"{model.path} knows {task} already ({', '.join(model.tasks)}); give another --task, "
            "or train it anew with `ssp train`"
        )
    recipe = _recipe(model, epochs, learning_rate)
    prepared.select("train", (task,))  # refuses a task that the data do not have
    images = TrainingImages(prepared, (task,))
    num_layers = images.check(recipe)
    _check_images(model, images, num_layers)
    torch.manual_seed(recipe.training.seed)
    extended, num_extensions = _grown(model)
    trained = sum(p.numel() for p in extended.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in extended.parameters())
    note(f"{images.summary}; {trained:,} of {whole:,} parameters learn")
    return fit_images(
        extended,
        images,
        recipe,
        out,
        (*model.tasks, task),
        resume,
        num_extensions=num_extensions,
        extended_from=model.sha256,
        targets={name: asdict(known) for name, known in (model.facts | images.facts).items()},
        voxel_size_um=model.voxel_size_um or images.voxel_size_um,
    )


def _recipe(model: CellModel, epochs: int | None, learning_rate: float | None) -> CellRecipe:
    """Return how the new task is trained: as the run was, but for what is given."""
    recipe = model.recipe or official_recipe(model.network)
    given = {"epochs": epochs, "learning_rate": learning_rate}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(recipe, training=replace(recipe.training, **changes))


def _grown(model: CellModel) -> tuple[TaskConditioned, int]:
    """Return the network of one task more, what is new at random, and its `num_extensions`."""
    recipe = model.recipe
    if recipe is None or not isinstance(recipe.network, MultiHeadConfig):
        return extend_network(model.network), model.num_extensions + 1
    wider = build_network(recipe.network, len(model.tasks) + 1, model.num_layers)
    found = wider.load_state_dict(model.network.state_dict(), strict=False)
    assert not found.unexpected_keys
    return wider, model.num_extensions


def official_recipe(network: TaskConditioned) -> CellRecipe:
    """Return the recipe that a network of an official checkpoint was trained with."""
    head = network.network.head
    return CellRecipe(RepModeConfig(Backbone(base_channels=head.kernels[0].shape[1])))


def _check_images(model: CellModel, images: TrainingImages, num_layers: int | None) -> None:
    """Refuse images that are not like those that the model was trained on.

    Raises:
        ValueError: If they have other voxels, or another number of planes where that matters.
    """
    found, wanted = images.voxel_size_um, model.voxel_size_um
    if found and wanted and not np.allclose(found, wanted, rtol=SIZE_TOLERANCE):
        raise ValueError(
            f"{images.data.path} has voxels of {found} um, {model.path} was trained at "
            f"{list(wanted)}; prepare the images with --voxel-size {wanted[0]:g}"
        )
    if num_layers != model.num_layers:
        raise ValueError(
            f"{images.data.path} has stacks of {num_layers} planes, {model.path} takes "
            f"{model.num_layers}; prepare stacks of as many"
        )
