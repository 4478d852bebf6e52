"""Recipes: each method's complete configuration of a training run, the paper's protocol.

Reference: Zhou et al., RepMode, CVPR 2023, section 4.1, "Implementation details".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.training import TrainingConfig
from ssp.augment import Augmentation
from ssp.networks.registry import METHODS, NetworkConfig

PATCH_SIZE = (32, 128, 128)
PASSES = 1000
PASSES_PER_EPOCH = 20


@dataclass(frozen=True)
class PatchConfig:
    """Which patches are drawn of the training images.

    Args:
        size: Z, Y and X of a patch in voxels; also of the tiles that whole images are predicted
            in, half a tile apart. Images of 2D targets are taken with all their planes.
        flips: Whether each axis, but Z where maps are predicted, is reversed with probability
            a half.
        passes_per_epoch: Patches of each image in an epoch; a validation follows each epoch.
        augment: Further random changes, which help where there are few images.
    """

    size: tuple[int, int, int] = PATCH_SIZE
    flips: bool = True
    passes_per_epoch: int = PASSES_PER_EPOCH
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"patches.size {self.size} must be at least 1 along each axis")
        if self.passes_per_epoch < 1:
            raise ValueError(f"patches.passes_per_epoch is {self.passes_per_epoch}; give 1 or more")


@dataclass(frozen=True)
class CellRecipe:
    """Everything that decides what a training run does, but for where its data is."""

    network: NetworkConfig
    patches: PatchConfig = field(default_factory=PatchConfig)
    training: TrainingConfig = field(default_factory=lambda: PAPER)


# Adam is AdamW without weight decay. An epoch is 20 passes, after which the paper validates.
PAPER = TrainingConfig(
    epochs=PASSES // PASSES_PER_EPOCH,
    batch_size=8,
    learning_rate=1e-4,
    weight_decay=0.0,
    final_lr_factor=1.0,
    clip_norm=0.0,
)


RECIPES: dict[str, CellRecipe] = {name: CellRecipe(network) for name, network in METHODS.items()}
