"""docs/results.md shows the tables that are stored."""

from __future__ import annotations

import json
from pathlib import Path

from vesuvius.comparison import markdown_of

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = (REPOSITORY / "docs" / "results.md").read_text()


def test_the_table_of_recipes_is_what_is_stored():
    record = json.loads((RESULTS / "compare.json").read_text())
    assert markdown_of(record) in PAGE
    for value in record["baselines"].values():
        assert f"{value:.3f}" in PAGE


def test_the_speeds_are_what_is_stored():
    recipes = json.loads((RESULTS / "recipe_steps.json").read_text())["recipes"]
    for name, row in recipes.items():
        line = f"| `{name}` | {row['patches_per_s']:.1f} | {row['map_s_per_mpx']:.1f} |"
        assert line in PAGE.splitlines()


def test_the_scores_of_samples_are_what_is_stored():
    averages = json.loads((RESULTS / "figures.json").read_text())["samples"]["averages"]
    for scores in averages.values():
        found = [scores[key] for key in ("f05", "average_precision", "calibration_error")]
        assert " | ".join(f"{value:.3f}" for value in found) in PAGE
