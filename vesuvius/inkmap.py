"""Maps of ink: a trained network run over a volume, as validation and prediction both need it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.checkpoint import WEIGHTS, load, load_weights, save
from core.config import from_dict, to_dict
from core.deploy import specialize
from core.inference import Predict, Read
from core.provenance import file_hash
from core.terminal import note
from core.uncertainty import Member, predictor
from core.unet3d import TaskConditioned
from vesuvius.folds import Piece
from vesuvius.fragment import VolumeReader
from vesuvius.networks.registry import MODELS, build_network, model_name
from vesuvius.orientation import Order, order_of
from vesuvius.prepared import PreparedVolume
from vesuvius.recipes import InkRecipe, WindowConfig, nearest
from vesuvius.statistics import VolumeStatistics, intensity_scale, z_window
from vesuvius.tasks import Tasks
from vesuvius.voxel_size import VoxelSize, common_size

PLACE_SLACK = 2  # layers by which winners shifted the window and lost nothing


@dataclass(frozen=True)
class Window:
    """The layers a model sees of one volume, and how their values are normalised.

    Attributes:
        z_start: First layer.
        z_stop: One past the last layer.
        offset: Subtracted from every uint8 value.
        scale: Multiplied after that.
        is_clipped: Whether what is then below 0 becomes 0, and what is above 1 becomes 1.
        is_reversed: Whether the model sees the last of these layers first.
    """

    z_start: int
    z_stop: int
    offset: float
    scale: float
    is_clipped: bool = False
    is_reversed: bool = False

    @classmethod
    def of(
        cls, statistics: VolumeStatistics, config: WindowConfig, is_reversed: bool = False
    ) -> Window:
        """Return the window that a recipe's choice means for one volume.

        A volume that is read in reverse gives the window it would have if its layers were stored
        the other way round.

        Raises:
            ValueError: If the volume has too few layers, or cannot be normalised.
        """
        if is_reversed:
            depth = len(statistics.histograms)
            mirrored = VolumeStatistics(statistics.histograms[::-1])
            start, stop = z_window(mirrored, config.num_layers, config.z_start)
            z_start, z_stop = depth - stop, depth - start
        else:
            z_start, z_stop = z_window(statistics, config.num_layers, config.z_start)
        offset, scale = intensity_scale(
            config.intensity, statistics, z_start, z_stop, config.percentiles
        )
        is_clipped = config.intensity == "percentile"
        return cls(z_start, z_stop, offset, scale, is_clipped, is_reversed)

    def widened(self, reach: int, depth: int) -> Window:
        """Return the window with so many layers more at either end, normalised alike.

        Args:
            reach: How many.
            depth: Layers of the volume.

        Raises:
            ValueError: If the volume has no such layers.
        """
        most = min(self.z_start, depth - self.z_stop)
        if reach > most:
            raise ValueError(
                f"tta_z_shift {reach} moves the window of layers {self.z_start}..{self.z_stop - 1} "
                f"out of the volume of {depth}; choose at most {most}, or another --z-start"
            )
        return replace(self, z_start=self.z_start - reach, z_stop=self.z_stop + reach)

    def place_of(self, layer: int) -> int:
        """Return where a layer lies in what the model sees; below 0 or beyond it if it does not."""
        return self.z_stop - 1 - layer if self.is_reversed else layer - self.z_start


@dataclass(frozen=True, eq=False)
class InkModel:
    """A trained ink model, read from its checkpoint.

    Attributes:
        network: The task-gated network, weights loaded, on the CPU.
        recipe: What it was trained with.
        num_layers: Layers of the volumes it was trained on.
        windows: What it saw of each fragment in training, by name, as `seen_window` tells.
        threshold: Probability from which a pixel is ink, fitted on the validation pieces.
        sha256: Hash of the checkpoint file.
        tasks: What it learned.
        score: F0.5 on the validation pieces.
    """

    network: TaskConditioned
    recipe: InkRecipe
    num_layers: int
    threshold: float
    sha256: str
    windows: dict[str, dict[str, Any]]
    tasks: Tasks
    score: float

    def facts(self) -> dict[str, Any]:
        """Return what identifies the model: its checkpoint, recipe and score, JSON values."""
        recipe, changes = nearest(self.recipe)
        return {
            "checkpoint_sha256": self.sha256,
            "recipe": recipe,
            "changes": changes,
            "cv_score": self.score,
        }

    def saw_reversed(self, name: str) -> bool:
        """Tell whether training read a fragment of that name from the last layer to the first."""
        return bool(self.windows.get(name, {}).get("is_reversed"))

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """(Z, Y, X) of what it was trained on, None if unknown or not the same everywhere."""
        sizes = [seen.get("voxel_size_um") for seen in self.windows.values()]
        return common_size([tuple(size) if size else None for size in sizes])


def load_model(run: Path) -> InkModel:
    """Return the best model of a run folder, or of a checkpoint file.

    Raises:
        FileNotFoundError: If there is no such run, or it has no checkpoint yet.
        ValueError: If the checkpoint is damaged or of another model or version.
    """
    path = run / "checkpoints" / "best.safetensors" if run.is_dir() else run
    if run.is_dir() and not path.exists():
        if (run / "config.json").exists():
            raise FileNotFoundError(
                f"{run} has no finished epoch yet; wait, or continue it with `vesuvius train ... "
                "--resume`"
            )
        raise FileNotFoundError(
            f"{run} is no run folder: it has no checkpoints/best.safetensors; give the --out of "
            "`vesuvius train` first and the fragment after it"
        )
    tensors, meta = load(path, WEIGHTS)
    description = meta["description"]
    if description.get("model") not in MODELS:
        raise ValueError(
            f"{path} holds a model of {description.get('model')!r}; `vesuvius` reads "
            f"{', '.join(MODELS)}: give a run of `vesuvius train`"
        )
    recipe = from_dict(InkRecipe, description["recipe"], where=str(path))
    network = build_network(recipe.network, recipe.window.num_layers, len(description["tasks"]))
    if description.get("is_plain"):
        network = _plain(network, (0,))
    load_weights(network, tensors, path)
    validation = meta["validation"]
    return InkModel(
        network,
        recipe,
        description["num_layers"],
        validation["meta"]["threshold"],
        file_hash(path),
        description["windows"],
        Tasks(tuple(description["tasks"]), recipe.tasks),
        validation["score"],
    )


def save_plain(model: InkModel, task: str, path: Path) -> None:
    """Write the plain network that a model is for one task as a checkpoint `load_model` reads.

    It predicts the same to the last bit and is a fraction of the size, but has no experts left to
    draw Monte Carlo samples from.

    Args:
        model: A trained model.
        task: Name of the task, or "unknown" for the mean gate.
        path: File to write; an existing one is replaced.
    """
    description = {
        "model": model_name(model.recipe.network),
        "recipe": to_dict(model.recipe),
        "tasks": [task],
        "num_layers": model.num_layers,
        "windows": model.windows,
        "is_plain": True,
    }
    validation = {"score": model.score, "meta": {"threshold": model.threshold}}
    weights = _plain(model.network, model.tasks.gates(task)).state_dict()
    save(path, WEIGHTS, weights, {"description": description, "validation": validation})


def _plain(network: TaskConditioned, gates: tuple[int, ...]) -> TaskConditioned:
    """Return a network without experts: the one that a network is for the mean of some gates."""
    return TaskConditioned(specialize(network, gates), 1)


def seen_window(window: Window, volume: PreparedVolume) -> dict[str, Any]:
    """Return what a checkpoint keeps of how its model saw a training fragment.

    The order of the layers is an estimate of how they reached the model.
    """
    return asdict(window) | {
        "sheet_place": window.place_of(volume.statistics.sheet_depth),
        "layer_order": order_of(volume).seen(window.is_reversed),
        "voxel_size_um": volume.info["voxel_size_um"],
    }


def note_other_window(
    name: str, window: Window, statistics: VolumeStatistics, model: InkModel
) -> None:
    """Say so if a model is about to see a fragment otherwise than those it was trained on.

    Args:
        name: Of the fragment.
        window: What the model is about to see.
        statistics: Of the fragment.
        model: The model.
    """
    places = [seen["sheet_place"] for seen in model.windows.values()]
    place = window.place_of(statistics.sheet_depth)
    slack = max(PLACE_SLACK, model.recipe.window.z_shift)
    if not min(places) - slack <= place <= max(places) + slack:
        note(
            f"{name}: its sheet lies at layer {place} of the window, in training it lay at "
            f"{min(places)}..{max(places)}; check --z-start and whether the layers are complete"
        )
    seen = model.windows.get(name)
    if seen and seen["is_reversed"] != window.is_reversed:
        order = {True: "from the last layer to the first", False: "as stored"}
        note(
            f"{name}: its layers are read {order[window.is_reversed]}, in training a fragment of "
            f"this name was read {order[seen['is_reversed']]}; check --reverse-layers"
        )


def note_other_order(name: str, order: Order, model: InkModel) -> None:
    """Say so if a model is about to see layers in another order than all it was trained on.

    Args:
        name: Of the fragment.
        order: Of its layers, as the model is about to see them.
        model: The model.
    """
    known = {seen.get("layer_order", "unknown") for seen in model.windows.values()} - {"unknown"}
    if order != "unknown" and known and order not in known:
        note(
            f"{name}: its layers seem to reach the model {order}, in training they came "
            f"{', '.join(known)}; if so, turn them around: with --reverse-layers, or without it if "
            "it is given"
        )


def ink_probability(
    network: nn.Module,
    tiles_NZYX: Tensor,
    offset: Tensor | float,
    scale: Tensor | float,
    is_clipped: bool,
) -> Tensor:
    """Return probabilities (N, 1, Y, X) of tiles (N, Z, Y, X) in 0..255.

    Args:
        network: Normalised volumes (N, 1, Z, Y, X) to logits (N, 1, Y, X).
        tiles_NZYX: The voxels of the window's layers.
        offset: Subtracted from every value.
        scale: Multiplied after that.
        is_clipped: Whether what is then outside 0..1 becomes 0 or 1.
    """
    x = (tiles_NZYX[:, None].float() - offset) * scale
    if is_clipped:
        x = x.clamp(0, 1)
    return torch.sigmoid(network(x).float())


class InkProbability(nn.Module):
    """A plain ink network with its normalisation before and its sigmoid after it.

    Args:
        network: Normalised volumes (N, 1, Z, Y, X) to logits (N, 1, Y, X).
        window: The normalisation.
    """

    def __init__(self, network: nn.Module, window: Window) -> None:
        super().__init__()
        self.network = network
        self.window = window

    def forward(self, tiles_NZYX: Tensor) -> Tensor:
        """Return probabilities (N, 1, Y, X) of tiles (N, Z, Y, X) in 0..255."""
        window = self.window
        return ink_probability(
            self.network, tiles_NZYX, window.offset, window.scale, window.is_clipped
        )


def ink_predictor(network: nn.Module, window: Window, device: torch.device | str) -> Predict:
    """Return the function from uint8 tiles (N, Z, Y, X) to ink probabilities (N, 1, Y, X)."""
    return predictor([Member(InkProbability(network, window))], device)


def window_reader(volume: VolumeReader, window: Window, piece: Piece | None = None) -> Read:
    """Return the function from a range of rows to the window's voxels, uint8 (Z, rows, X).

    Args:
        volume: The voxels.
        window: Which layers.
        piece: Rectangle that rows and columns are counted in; None for the whole volume.
    """
    y, x = (piece.y_start, piece.slices[1]) if piece else (0, slice(None))

    def read(start: int, stop: int) -> np.ndarray:
        layers = volume.read(window.z_start, window.z_stop, y + start, y + stop)[:, :, x]
        return np.ascontiguousarray(layers[::-1]) if window.is_reversed else layers

    return read
