"""What does each recipe ask of a card, and which batch fits 12 GB?

Memory is modelled (`core.memory`), not measured: weights, gradients, AdamW's state, average weights
and what the backward pass needs, times the factor by which real steps on a CPU needed more
(results/training_memory.json). With recomputation (`--training.recompute`) blocks keep their inputs
alone. Multiply-adds are those of the convolutions and linear layers of a forward pass.

    python benchmarks/recipes_memory.py                 two minutes on a quiet core
    python benchmarks/recipes_memory.py small i3d       these anew, the others as stored
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from core.convolution import direct_only
from core.files import atomic_path, write_json
from core.gatrep import TaskGroups
from core.memory import step_memory
from core.terminal import note, progress
from vesuvius.networks.registry import NetworkConfig, build_network
from vesuvius.recipes import RECIPES, InkRecipe

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "training.md"
LIMIT = 12 * 10**9  # bytes of a 12 GB card; it has 0.9 GB more, for the driver and the libraries
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
BATCH_STEP = 4  # batches that fit are looked for among its multiples
LARGEST_BATCH = 512


@dataclass(frozen=True)
class Case:
    """A network and its patches; recipes that share them need the same."""

    network: NetworkConfig
    num_layers: int
    patch_size: int

    def shape(self, batch_size: int) -> tuple[int, int, int, int, int]:
        """Return that of a batch (N, C, Z, Y, X)."""
        return (batch_size, 1, self.num_layers, self.patch_size, self.patch_size)

    def build(self) -> Any:
        """Return the network."""
        return build_network(self.network, self.num_layers, 1)


@functools.cache
def peak(case: Case, batch_size: int, precision: str, is_recomputed: bool) -> int | None:
    """Return the bytes of a training step; None if no block can be computed again."""
    shape, tasks = case.shape(batch_size), [0] * batch_size
    try:
        found = step_memory(case.build, shape, tasks, PRECISIONS[precision], is_recomputed)
    except ValueError:
        return None
    return found.peak


@functools.cache
def facts(case: Case) -> dict[str, int]:
    """Return the parameters of the network and the multiply-adds of one patch forward."""
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), direct_only(), torch.no_grad():
        network = case.build().network.train()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        with counter:
            network(torch.empty(case.shape(2)), TaskGroups.of([0, 0]))
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 4}


def fitting_batch(case: Case, precision: str, is_recomputed: bool, room: float) -> int | None:
    """Return a multiple of `BATCH_STEP` near the largest whose step needs at most `room` bytes.

    Bytes grow almost evenly with the batch: two batches tell which one to try.
    """
    few, many = (peak(case, n, precision, is_recomputed) for n in (8, 16))
    if few is None or many is None:
        return None
    estimate = 8 + (room - few) / (many - few) * 8
    batch = min(LARGEST_BATCH, math.floor(estimate) // BATCH_STEP * BATCH_STEP)
    while batch > 0 and (peak(case, batch, precision, is_recomputed) or 0) > room:
        batch -= BATCH_STEP
    return max(batch, 0)


def row(name: str, recipe: InkRecipe, factor: float) -> dict[str, Any]:
    """Return what one recipe needs."""
    case = Case(recipe.network, recipe.window.num_layers, recipe.sampling.patch_size)
    training, found = recipe.training, facts(case)
    average = 4 * found["parameters"] if training.ema_decay else 0
    room = LIMIT / factor - average
    modelled: dict[str, Any] = {}
    for precision in PRECISIONS:
        for is_recomputed in (False, True):
            bytes_ = peak(case, training.batch_size, precision, is_recomputed)
            key = f"{precision}{', recomputed' if is_recomputed else ''}"
            modelled[key] = None if bytes_ is None else round((bytes_ + average) / 2**20)
    fitting = {
        "bf16": fitting_batch(case, "bf16", False, room),
        "bf16, recomputed": fitting_batch(case, "bf16", True, room),
    }
    return {
        "recipe": name,
        **found,
        "patch": list(case.shape(1)[2:]),
        "batch_size": training.batch_size,
        "samples_per_fragment_at_most": recipe.sampling.most_patches,
        "epochs": training.epochs,
        "modelled_mib": modelled,
        "with_factor_gb": {
            key: None if mib is None else round(mib * 2**20 * factor / 1e9, 2)
            for key, mib in modelled.items()
        },
        "batch_that_fits_12_gb": fitting,
    }


def page_row(stored: dict[str, Any]) -> str:
    """Return the row of a recipe in the table of docs/training.md."""
    fitting = stored["batch_that_fits_12_gb"].values()
    cells = [
        f"`{stored['recipe']}`",
        f"{stored['parameters'] / 1e6:.1f}",
        "x".join(map(str, stored["patch"])),
        str(stored["batch_size"]),
        *("-" if gb is None else f"{gb:.1f}" for gb in stored["with_factor_gb"].values()),
        *("-" if batch is None else str(batch) for batch in fitting),
        f"{stored['multiply_adds'] / 1e9:.1f}",
        f"{stored['samples_per_fragment_at_most']:,}",
        str(stored["epochs"]),
    ]
    return f"| {' | '.join(cells)} |"


def write_page(rows: list[dict[str, Any]]) -> None:
    """Replace the rows of the first table of docs/training.md."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| recipe")) + 2
    stop = lines.index("", start)
    lines[start:stop] = map(page_row, rows)
    with atomic_path(PAGE) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Model, print, store and write the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", choices=[[], *RECIPES], help="all if none is named")
    names = parser.parse_args().recipes or list(RECIPES)
    path = RESULTS / "recipes_memory.json"
    stored = json.loads(path.read_text())["recipes"] if path.exists() else []
    rows = {old["recipe"]: old for old in stored if old["recipe"] in RECIPES}
    checks = json.loads((RESULTS / "training_memory.json").read_text())["checks"]
    factor = max(check["measured_to_predicted"] for check in checks)
    with progress("recipes", len(names), "recipes") as advance:
        for name in names:
            rows[name] = row(name, RECIPES[name](), factor)
            note(str(rows[name]))
            result = {
                "what": "memory of a training step, modelled; batches that fit 12 GB",
                "torch": torch.__version__,
                "factor": factor,
                "limit_gb": LIMIT / 1e9,
                "recipes": [rows[name] for name in RECIPES if name in rows],
            }
            write_json(path, result)
            write_page(result["recipes"])
            advance(1)


if __name__ == "__main__":
    main()
