"""Small cells of two structures, prepared, and small recipes for them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

from core.training import TrainingConfig
from ssp.networks.backbone import Backbone
from ssp.prepare import prepare
from ssp.recipes import RECIPES, CellRecipe, PatchConfig

TASKS = ("dna", "tom20")
SHAPE = (6, 20, 24)
SPLITS = ("train", "train", "val", "test")


def write_cells(folder: Path, tasks=TASKS, shape=SHAPE, is_map=False, splits=SPLITS) -> Path:
    """Write stacks in which one structure is where the signal is bright, the other where dark."""
    folder.mkdir(parents=True)
    rows = []
    for number, split in enumerate(splits):
        for index, task in enumerate(tasks):
            rng = np.random.default_rng([number, index])
            signal = gaussian_filter(rng.normal(size=shape), 1.5)
            signal /= signal.std()
            target = np.maximum(signal * (-1) ** index, 0)
            target = target.max(0) if is_map else target
            paths = [folder / f"{task}-{number}-{kind}.tif" for kind in ("signal", "target")]
            for path, voxels, scale in zip(paths, (signal, target), (500, 200), strict=True):
                stored = (1000 + 100 * index + scale * voxels).astype(np.uint16)
                axes = "ZYX"[-stored.ndim :]
                sizes = {f"PhysicalSize{axis}": 0.29 for axis in axes}
                tifffile.imwrite(path, stored, ome=True, metadata={"axes": axes, **sizes})
            rows.append([*(path.name for path in paths), task, split])
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path_signal", "path_target", "task", "split"])
        writer.writerows(rows)
    return folder


def prepared(folder: Path, **options) -> Path:
    """Write and prepare cells; the options are those of `write_cells`."""
    write_cells(folder / "cells", **options)
    prepare((folder / "cells",), out=folder / "data")
    return folder / "data"


def tiny_recipe(method: str = "repmode", **training) -> CellRecipe:
    """Return a recipe of a small network and a few steps."""
    recipe = RECIPES[method]
    return CellRecipe(
        replace(recipe.network, backbone=Backbone(base_channels=2, num_stages=1)),
        PatchConfig(size=(4, 16, 16), passes_per_epoch=2),
        TrainingConfig(**{
            "epochs": 2, "batch_size": 2, "learning_rate": 3e-3, "weight_decay": 0.0,
            "final_lr_factor": 1.0, "clip_norm": 0.0, "precision": "no", **training,
        }),
    )  # fmt: skip
