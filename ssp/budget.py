"""What every run of an experiment may spend: sizes and training, alike for all methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.training import TrainingConfig
from ssp.networks.registry import NetworkConfig
from ssp.prepare import prepare
from ssp.prepared import RECORD
from ssp.recipes import PAPER, CellRecipe, PatchConfig
from ssp.simulate import simulate

BudgetName = Literal["tiny", "paper"]


@dataclass(frozen=True)
class Budget:
    """Sizes and training of all runs, and the images they are on if none are given.

    Attributes:
        base_channels: Width of the first stage.
        num_stages: Number of halvings.
        patches: Which patches are drawn.
        training: How long, in which steps.
        epochs_alone: Epochs of what is trained on one structure alone.
        simulate_data: Makes prepared data in a folder; None where images must be given.
    """

    base_channels: int
    num_stages: int
    patches: PatchConfig
    training: TrainingConfig
    epochs_alone: int
    simulate_data: Callable[[Path], Path] | None = None

    def recipe(self, network: NetworkConfig, seed: int, is_alone: bool = False) -> CellRecipe:
        """Return how a network is trained within the budget, on all structures or one alone."""
        sizes = {"base_channels": self.base_channels, "num_stages": self.num_stages}
        network = replace(network, backbone=replace(network.backbone, **sizes))
        epochs = self.epochs_alone if is_alone else self.training.epochs
        return CellRecipe(network, self.patches, replace(self.training, seed=seed, epochs=epochs))


def tiny_cells(folder: Path) -> Path:
    """Simulate and prepare eight small images of each structure, once; return the prepared data.

    Voxels of 0.5 um, so that a patch of 12 x 32 x 32 is as high as a cell and wider.
    """
    data, size_um = folder / "data", 0.5
    if not (data / RECORD).exists():
        simulate(folder / "cells", size=(12, 64, 64), images=8, voxel_size=(size_um,) * 3)
        prepare((folder / "cells",), out=data, voxel_size=size_um)
    return data


# 360 steps. Of the rates 1e-3, 3e-3 and 1e-2, tried once each on validation images (not stored),
# RepMode did best at the highest and Multi-Head (Las.) at the middle one; all train at one between.
BUDGETS: dict[BudgetName, Budget] = {
    "tiny": Budget(
        base_channels=8,
        num_stages=2,
        patches=PatchConfig(size=(12, 32, 32), passes_per_epoch=8),
        training=TrainingConfig(
            epochs=3,
            batch_size=4,
            learning_rate=5e-3,
            weight_decay=0.0,
            warmup_epochs=0.3,
            final_lr_factor=0.02,
            ema_decay=0.98,
        ),
        epochs_alone=36,  # 360 steps again, as there are twelve structures
        simulate_data=tiny_cells,
    ),
    "paper": Budget(32, 4, PatchConfig(), PAPER, epochs_alone=PAPER.epochs),
}
