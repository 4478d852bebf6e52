"""The held-out pieces of a run are mapped and scored as its validation did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.vesuvius.conftest import tiny_recipe, write_fragment
from vesuvius.held_out import scored_held_out
from vesuvius.inkmap import load_model, window_reader
from vesuvius.prepare import prepare
from vesuvius.scored import ScoredMap
from vesuvius.scores import Counts
from vesuvius.train import train


def scored_as_validated(run: Path, data: Path, out: Path) -> list[ScoredMap]:
    """Return the held-out maps of a run, whose scores are those of its best epoch."""
    maps = scored_held_out(run, data, out)
    together = sum((Counts(one).histogram for one in maps[1:]), Counts(maps[0]).histogram)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((epoch["validation"] for epoch in epochs), key=lambda found: found["f05"])
    assert together.best_threshold() == pytest.approx((best["threshold"], best["f05"]), abs=1e-9)
    assert together.average_precision() == pytest.approx(best["average_precision"], abs=1e-9)
    assert load_model(run).threshold == together.best_threshold()[0]
    return maps


def test_pieces_score_as_in_validation(run, prepared, tmp_path, capsys):
    maps = scored_as_validated(run, prepared, tmp_path / "maps")
    assert [scored.name for scored in maps] == ["1", "2"]
    assert "validation piece of 1 (rows" in capsys.readouterr().err


@pytest.mark.parametrize("is_reversed", [False, True])
def test_so_do_pieces_read_in_reverse_and_labelled_in_part(is_reversed, tmp_path, monkeypatch):
    folder = write_fragment(tmp_path / "1", 0)
    area = np.full((128, 144), 255, np.uint8)
    area[:, 120:128] = 0
    cv2.imwrite(str(folder / "labelled_area.png"), area)
    prepare((folder,), out=tmp_path / "data")
    recipe = tiny_recipe()
    order = replace(recipe.window, reversed=("1",) if is_reversed else ())
    once = replace(recipe.training, epochs=1, warmup_epochs=0)
    train(tmp_path / "data", tmp_path / "run", replace(recipe, window=order, training=once))
    windows = []
    monkeypatch.setattr(
        "vesuvius.held_out.window_reader",
        lambda volume, window, piece: (
            windows.append(window) or window_reader(volume, window, piece)
        ),
    )
    (scored,) = scored_as_validated(tmp_path / "run", tmp_path / "data", tmp_path / "maps")
    assert [window.is_reversed for window in windows] == [is_reversed]
    first = 120 - scored.piece.x_start
    assert scored.valid[:, :first].all()
    assert not scored.valid[:, first : first + 8].any()
