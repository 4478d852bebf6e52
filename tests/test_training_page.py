"""docs/training.md says of every recipe what is stored, and what is stored is of the recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vesuvius.recipes import RECIPES

REPOSITORY = Path(__file__).parents[1]
STORED = json.loads((REPOSITORY / "benchmarks/results/recipes_memory.json").read_text())


def page_row(stored: dict[str, Any]) -> str:
    """Return the row of the page's table."""
    gb = [stored["with_factor_gb"][f"{p}{r}"] for p in ("float32", "bf16") for r in WAYS]
    fitting = [stored["batch_that_fits_12_gb"][f"bf16{r}"] for r in WAYS]
    cells = [
        f"`{stored['recipe']}`",
        f"{stored['parameters'] / 1e6:.1f}",
        "x".join(map(str, stored["patch"])),
        stored["batch_size"],
        *("-" if value is None else f"{value:.1f}" for value in gb),
        *("-" if value is None else value for value in fitting),
        f"{stored['multiply_adds'] / 1e9:.1f}",
        f"{stored['samples_per_fragment_at_most']:,}",
        stored["epochs"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


WAYS = ("", ", recomputed")


def test_the_table_is_what_is_stored():
    lines = (REPOSITORY / "docs" / "training.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `") and "| `--" not in line]
    assert rows == [page_row(stored) for stored in STORED["recipes"]]
    assert f"factor {STORED['factor']:.2f}" in " ".join(lines)


@pytest.mark.parametrize("stored", STORED["recipes"], ids=lambda stored: stored["recipe"])
def test_what_is_stored_is_of_the_recipe_as_it_is(stored):
    recipe = RECIPES[stored["recipe"]]()
    sampling, training = recipe.sampling, recipe.training
    assert stored["patch"] == [recipe.window.num_layers, *[sampling.patch_size] * 2]
    assert (stored["batch_size"], stored["epochs"]) == (training.batch_size, training.epochs)
    counts = sampling.num_void, sampling.num_edges, sampling.num_raw, sampling.num_grid
    in_buckets = sampling.num_buckets * sampling.bucket_cap
    assert stored["samples_per_fragment_at_most"] == in_buckets + sum(counts)
