"""A checkpoint of an ink recipe with random weights: what it costs is what a trained one costs."""

from __future__ import annotations

from pathlib import Path

import torch

from core.checkpoint import WEIGHTS, save
from core.config import to_dict
from vesuvius.networks.registry import build_network, model_name
from vesuvius.recipes import InkRecipe

NUM_LAYERS = 65
SEEN = {
    "sheet_place": 8,
    "is_reversed": False,
    "layer_order": "unknown",
    "voxel_size_um": None,
}


def write_untrained(path: Path, recipe: InkRecipe, num_layers: int = NUM_LAYERS) -> Path:
    """Write a checkpoint that `vesuvius predict` takes for a run, and return its path.

    Args:
        path: The file, `NAME.safetensors`.
        recipe: What it might have been trained with.
        num_layers: Layers of the volumes it might have been trained on.
    """
    torch.manual_seed(0)
    network = build_network(recipe.network, recipe.window.num_layers, 1)
    description = {
        "model": model_name(recipe.network),
        "recipe": to_dict(recipe),
        "num_layers": num_layers,
        "tasks": ["ink"],
        "windows": {"1": SEEN},
    }
    validation = {"score": 0.0, "meta": {"threshold": 0.5}}
    meta = {"description": description, "validation": validation}
    save(path, WEIGHTS, network.state_dict(), meta)
    return path
