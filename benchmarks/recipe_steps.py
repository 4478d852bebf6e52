"""How fast is each recipe of `vesuvius compare`, at the comparison's small size?

A training step on random patches and a map of random voxels, on one thread, the recipes in turn in
every round, so that a busy moment meets all of them. Medians over rounds.

    python benchmarks/recipe_steps.py                   about two minutes on a quiet core
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from machine import machine

from core.deploy import specialize
from core.files import write_json
from core.terminal import progress
from core.training_config import TrainingConfig
from core.unet3d import TaskConditioned
from vesuvius.compare import COMPARED
from vesuvius.ink_loss import InkLoss
from vesuvius.miniature import Budget, miniature
from vesuvius.networks.registry import build_network
from vesuvius.recipes import RECIPES, InkRecipe

RESULT = Path(__file__).parent / "results" / "recipe_steps.json"
ROUNDS = 7
TILE = 128  # px, that of the comparison


def main() -> None:
    """Measure and store."""
    torch.set_num_threads(1)
    recipes = {name: miniature(RECIPES[name](), Budget(), seed=0) for name in COMPARED}
    networks = {
        name: build_network(r.network, r.window.num_layers, 1) for name, r in recipes.items()
    }
    step_s, map_s = defaultdict(list), defaultdict(list)
    with progress("recipes", (ROUNDS + 1) * len(recipes), "steps") as advance:
        for number in range(ROUNDS + 1):
            for name, recipe in recipes.items():
                step, tile = time_step(networks[name], recipe), time_map(networks[name], recipe)
                if number:  # the first round warms up
                    step_s[name].append(step)
                    map_s[name].append(tile)
                advance(1)
    rows = {
        name: {
            "patches_per_s": round(recipe.training.batch_size / statistics.median(step_s[name]), 2),
            "map_s_per_mpx": round(statistics.median(map_s[name]) / TILE**2 * 1e6, 2),
        }
        for name, recipe in recipes.items()
    }
    write_json(RESULT, {"machine": machine(), "rounds": ROUNDS, "recipes": rows})
    for name, row in rows.items():
        print(f"{name:20s} {row['patches_per_s']:7.2f} patches/s {row['map_s_per_mpx']:7.2f} s/Mpx")


def time_step(network: TaskConditioned, recipe: InkRecipe) -> float:
    """Return the seconds of a training step without its optimiser."""
    config: TrainingConfig = recipe.training
    size = recipe.sampling.patch_size
    maps = (config.batch_size, 1, size, size)
    batch = {
        "x": torch.randn(config.batch_size, 1, recipe.window.num_layers, size, size),
        "task": torch.zeros(config.batch_size, dtype=torch.long),
        "label": torch.randint(0, 2, maps).float(),
        "valid": torch.ones(maps),
    }
    loss_fn = InkLoss(recipe.loss)
    network.train()
    started_s = time.perf_counter()
    loss, _ = loss_fn(network, batch)
    loss.backward()
    return time.perf_counter() - started_s


@torch.no_grad()
def time_map(network: TaskConditioned, recipe: InkRecipe) -> float:
    """Return the seconds of a tile by the specialised network."""
    plain = specialize(network, 0)
    x = torch.randn(8, 1, recipe.window.num_layers, TILE, TILE)
    started_s = time.perf_counter()
    plain(x)
    return (time.perf_counter() - started_s) / len(x)


if __name__ == "__main__":
    main()
