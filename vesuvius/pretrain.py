"""Pretraining: the encoder of a recipe learns from papyrus without labels, as masked autoencoder.

Whatever is held out of training is held out here too, so that later scores stay honest: the same
options choose the same pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from core.config import to_dict
from core.masked_autoencoder import MaskConfig, VolumeAutoencoder
from core.terminal import note
from core.training import FitResult, TrainingConfig, fit
from core.unet3d import TaskConditioned
from vesuvius.corners import grid_corners
from vesuvius.dataset import PatchSource
from vesuvius.folds import Piece, folds_json
from vesuvius.inkmap import Window
from vesuvius.masked_patches import HiddenLoss, HiddenValidator, MaskedPatches
from vesuvius.networks.pretrained import AUTOENCODER, encoder_of
from vesuvius.networks.registry import NetworkConfig, build_network
from vesuvius.orientation import note_training_orders
from vesuvius.prepared import PreparedVolume
from vesuvius.recipes import RECIPES, InkRecipe, ValidationConfig, WindowConfig, check_least
from vesuvius.sampling import check_fits, points_csv
from vesuvius.train import (
    FOLDS,
    choose_pieces,
    choose_windows,
    note_narrow_gap,
    open_volumes,
)
from vesuvius.voxel_size import note_voxel_sizes

POINTS = "points.csv"


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that decides what a pretraining does, but for where its data is.

    Args:
        network: The network whose encoder is pretrained; the rest of it has no part.
        window: What it sees of a volume.
        mask: What is hidden from it.
        validation: What is held out, and the tiles it is looked at in.
        training: Settings of the loop.
        patch_size: Rows and columns of a patch, in pixels.
        num_patches: Most patches of each training piece, out of every position whose centre is
            papyrus.
    """

    network: NetworkConfig
    window: WindowConfig
    validation: ValidationConfig
    training: TrainingConfig
    patch_size: int
    num_patches: int
    mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        check_least("pretraining", patch_size=(self.patch_size, 1))
        check_least("pretraining", num_patches=(self.num_patches, 1))


def pretraining_of(recipe: InkRecipe) -> PretrainingRecipe:
    """Return the pretraining of a recipe: as many patches and epochs as its training has."""
    return PretrainingRecipe(
        recipe.network,
        recipe.window,
        recipe.validation,
        recipe.training,
        recipe.sampling.patch_size,
        recipe.sampling.most_patches,
    )


@dataclass(frozen=True)
class Pretrain:
    """Pretrain the encoder of a recipe on prepared volumes, which need no labels.

    Blocks of each patch are hidden, and the network learns to say what they hold. Give the run to
    `vesuvius train RECIPE --pretrained RUN`.

    Args:
        data: Folder of prepared volumes (`<name>.vol`).
        out: Run folder to write: checkpoints, metrics, previews, the resolved configuration.
        resume: Continue the run in `out` exactly; give all other options as before.
        recipe: What to pretrain; the options below override the recipe's choices.
    """

    data: Path
    out: Path
    recipe: Annotated[PretrainingRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    resume: bool = False

    def __call__(self) -> FitResult:
        """Run the pretraining."""
        return pretrain(self.data, self.out, self.recipe, self.resume)


PretrainCommand = tyro.extras.subcommand_type_from_defaults(
    {
        name: Pretrain(data=tyro.MISSING, out=tyro.MISSING, recipe=pretraining_of(recipe()))
        for name, recipe in RECIPES.items()
    },
    descriptions={name: f"the encoder of `vesuvius train {name}`" for name in RECIPES},
    prefix_names=False,
)


def pretrain(data: Path, out: Path, recipe: PretrainingRecipe, resume: bool = False) -> FitResult:
    """Pretrain an encoder on every prepared volume of a folder.

    Args:
        data: Folder of prepared volumes.
        out: Run folder.
        recipe: What to pretrain.
        resume: Whether to continue the run in `out`.

    Raises:
        ValueError: If the network has no encoder of RepMode, the volumes and the recipe do not fit
            together, or `out` holds a run.
    """
    seed = recipe.training.seed
    torch.manual_seed(seed)
    model = build_autoencoder(recipe)
    volumes = open_volumes(data)
    pieces = choose_pieces(volumes, recipe.validation)
    note_narrow_gap(recipe.validation.gap, recipe.patch_size)
    windows = choose_windows(volumes, recipe.window)
    note_training_orders(volumes, windows)
    note_voxel_sizes(volumes)
    points = papyrus_points(volumes, pieces, recipe)
    note(f"{sum(map(len, points.values()))} patches from {len(points)} fragments")
    sources = [make_source(volumes[name], points[name], windows[name]) for name in points]
    dataset = MaskedPatches(sources, recipe.patch_size, seed, recipe.mask, recipe.window.z_shift)
    held_out = {
        piece.fragment: held_out_patches(volumes[piece.fragment], piece, windows, recipe)
        for piece in pieces
        if piece.role == "validation"
    }
    return fit(
        model,
        dataset,
        HiddenLoss(recipe.mask),
        HiddenValidator(held_out, recipe.mask),
        recipe.training,
        out,
        describe(recipe, volumes, windows, pieces, points),
        resume,
        {POINTS: points_csv(points), FOLDS: folds_json(pieces, recipe.validation.gap)},
    )


def build_autoencoder(recipe: PretrainingRecipe) -> TaskConditioned:
    """Return the encoder of a recipe's network, of one task, with a light decoder behind it.

    Raises:
        ValueError: If its encoder is none that can be pretrained.
    """
    network = recipe.network
    encoder = encoder_of(build_network(network, recipe.window.num_layers, 1))
    autoencoder = VolumeAutoencoder(encoder, network.base_channels, network.num_stages)
    return TaskConditioned(autoencoder, 1)


def papyrus_points(
    volumes: Mapping[str, PreparedVolume], pieces: Sequence[Piece], recipe: PretrainingRecipe
) -> dict[str, NDArray[np.int32]]:
    """Return the corners (N, 2) of the patches of each fragment that has training pieces.

    Raises:
        ValueError: If a piece is smaller than a patch.
    """
    train = [piece for piece in pieces if piece.role == "train"]
    corners: dict[str, list[NDArray[np.int32]]] = {piece.fragment: [] for piece in train}
    for number, piece in enumerate(train):
        check_fits(piece, recipe.patch_size)
        rng = np.random.default_rng([recipe.training.seed, number])
        mask = volumes[piece.fragment].papyrus_mask[piece.slices]
        drawn = grid_corners(mask, recipe.patch_size, 1, recipe.num_patches, rng)
        corners[piece.fragment].append(_in_fragment(drawn, piece))
    return {name: np.concatenate(parts) for name, parts in corners.items()}


def held_out_patches(
    volume: PreparedVolume, piece: Piece, windows: Mapping[str, Window], recipe: PretrainingRecipe
) -> MaskedPatches:
    """Return the tiles of a held-out piece whose centre is papyrus, as large as the piece allows.

    The same blocks are hidden in all epochs and with all seeds.
    """
    mask = volume.papyrus_mask[piece.slices]
    size = min(recipe.validation.tile_size, *mask.shape)
    step = min(recipe.validation.stride, size)
    corners = grid_corners(mask, size, step, mask.size, np.random.default_rng(0))
    source = make_source(volume, _in_fragment(corners, piece), windows[piece.fragment])
    return MaskedPatches([source], size, 0, recipe.mask)


def make_source(volume: PreparedVolume, points: NDArray[np.int32], window: Window) -> PatchSource:
    """Return where patches of one volume come from."""
    return PatchSource(volume, points, **asdict(window))


def _in_fragment(corners: NDArray[np.int64], piece: Piece) -> NDArray[np.int32]:
    """Return corners counted in the whole fragment instead of a piece of it."""
    return np.add(corners, (piece.y_start, piece.x_start)).astype(np.int32)


def describe(
    recipe: PretrainingRecipe,
    volumes: Mapping[str, PreparedVolume],
    windows: Mapping[str, Window],
    pieces: Sequence[Piece],
    points: Mapping[str, NDArray[np.int32]],
) -> dict[str, Any]:
    """Return what a checkpoint must say about itself to be used and traced."""
    return {
        "model": AUTOENCODER,
        "recipe": to_dict(recipe),
        "windows": {name: asdict(window) for name, window in windows.items()},
        "pieces": [asdict(piece) for piece in pieces],
        "points_sha256": hashlib.sha256(points_csv(points).encode()).hexdigest(),
        "data": {name: volume.info["fingerprint"] for name, volume in volumes.items()},
        "data_sha256": {name: volume.sha256() for name, volume in volumes.items()},
    }
