"""The demo of cells end to end, cut down to seconds."""

from __future__ import annotations

import re

import pytest

from core.files import read_json
from ssp.budget import BUDGETS, Budget
from ssp.demo import demo
from tests.ssp.cells import tiny_recipe


def test_the_demo_ends_with_its_page_and_continues_where_it_stopped(tmp_path, monkeypatch):
    recipe = tiny_recipe(epochs=1)
    monkeypatch.setitem(BUDGETS, "tiny", Budget(2, 1, recipe.patches, recipe.training, 1))
    monkeypatch.setattr("ssp.demo.TASKS", ("dna", "tom20"))
    monkeypatch.setattr("ssp.demo.SIZE", (8, 32, 32))
    monkeypatch.setattr("ssp.demo.IMAGES", 4)
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr("ssp.demo.evaluate", lambda *_, **__: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):  # noqa: PT011 (stopped on purpose)
            demo(out)
    trained = (out / "model" / "checkpoints" / "best.safetensors").stat().st_mtime_ns
    demo(out)
    assert (out / "model" / "checkpoints" / "best.safetensors").stat().st_mtime_ns == trained
    assert {path.name for path in out.iterdir()} == {
        "cells", "data", "model", "scores", "fluorescence", "times.json", "report.html",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert len(re.findall("data:image/png;base64,", page)) == 2 + 1 + 1  # tests, all of one, curve
    scores = read_json(out / "scores" / "scores.json")
    assert f"{scores['tasks']['All']['pearson']:.3f}" in page
    for name in ("dna", "tom20"):
        assert (out / "fluorescence" / f"{name}.ome.tif").is_file()
