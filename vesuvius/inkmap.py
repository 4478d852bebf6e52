"""Maps of ink: a trained network run over a volume, as validation and prediction both need it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.checkpoint import WEIGHTS, load, load_weights
from core.config import from_dict
from core.inference import Predict, Read
from core.provenance import file_hash
from core.uncertainty import Member, predictor
from core.unet3d import TaskConditioned
from vesuvius.folds import Piece
from vesuvius.fragment import VolumeReader
from vesuvius.networks.registry import MODELS, build_network
from vesuvius.recipes import InkRecipe, WindowConfig
from vesuvius.statistics import VolumeStatistics, intensity_scale, z_window

TASKS = ("ink",)
INK_TASK = 0


@dataclass(frozen=True)
class Window:
    """The layers a model sees of one volume, and how their values are normalised.

    Attributes:
        z_start: First layer.
        z_stop: One past the last layer.
        offset: Subtracted from every uint8 value.
        scale: Multiplied after that.
    """

    z_start: int
    z_stop: int
    offset: float
    scale: float

    @classmethod
    def of(cls, statistics: VolumeStatistics, config: WindowConfig) -> Window:
        """Return the window that a recipe's choice means for one volume.

        Raises:
            ValueError: If the volume has too few layers, or cannot be normalised.
        """
        z_start, z_stop = z_window(statistics, config.num_layers, config.z_start)
        offset, scale = intensity_scale(config.intensity, statistics, z_start, z_stop)
        return cls(z_start, z_stop, offset, scale)


@dataclass(frozen=True, eq=False)
class InkModel:
    """A trained ink model, read from its checkpoint.

    Attributes:
        network: The task-gated network, weights loaded, on the CPU.
        recipe: What it was trained with.
        num_layers: Layers of the volumes it was trained on.
        threshold: Probability from which a pixel is ink, fitted on the validation pieces.
        sha256: Hash of the checkpoint file.
    """

    network: TaskConditioned
    recipe: InkRecipe
    num_layers: int
    threshold: float
    sha256: str


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
    load_weights(network, tensors, path)
    threshold = meta["validation"]["meta"]["threshold"]
    return InkModel(network, recipe, description["num_layers"], threshold, file_hash(path))


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

    def forward(self, tiles_NZYX: torch.Tensor) -> torch.Tensor:
        """Return probabilities (N, 1, Y, X) of tiles (N, Z, Y, X) in 0..255."""
        x = (tiles_NZYX[:, None] - self.window.offset) * self.window.scale
        return torch.sigmoid(self.network(x).float())


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
        return volume.read(window.z_start, window.z_stop, y + start, y + stop)[:, :, x]

    return read
