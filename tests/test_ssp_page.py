"""docs/ssp.md shows the tables that are stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = (REPOSITORY / "docs" / "ssp.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_the_tables_of_the_paper_are_what_is_stored(name):
    record = json.loads((RESULTS / f"ssp_{name}.json").read_text(encoding="utf-8"))
    for block in record["markdown"].strip().split("\n\n"):
        assert block in PAGE
    for line in record["lines"]:
        assert line in PAGE


@pytest.mark.parametrize("name", ["figure6", "figure7"])
def test_the_figures_are_shown(name):
    assert f"images/ssp_{name}.png" in PAGE
    assert (REPOSITORY / "docs" / "images" / f"ssp_{name}.png").is_file()


def test_the_scores_of_the_real_field_are_those_stored():
    record = json.loads((RESULTS / "phase_to_fluorescence.json").read_text(encoding="utf-8"))
    told = record["markdown"].splitlines()
    assert [line for line in told if line.replace("**", "") not in PAGE.replace("**", "")] == []
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    r = [f"{value:.2f}" for value in record["mean_map"].values()]
    assert "with r {}, {} and {} (mean map of four runs".format(*r) in readme
