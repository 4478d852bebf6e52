from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.run_folder import RunFolder, RunLog

CONFIG = {"training": {"epochs": 3, "lr": 0.05}, "description": {"tasks": ["ink"]}, "samples": 11}


def row(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    train, found = {"loss": loss}, {"mse": math.nan}
    return {"epoch": epoch, "step": 3 * epoch, "train": train, "score": 0.1, "validation": found}


def log_epochs(path: Path, first: int, last: int, loss: float = 0.5, more_steps: int = 0) -> None:
    """Log whole epochs of 3 steps, and some steps of the epoch after them."""
    with RunLog(path, first - 1, 3 * (first - 1), num_samples=100) as log:
        for epoch in range(first, last + 1):
            for step in range(3 * epoch - 2, 3 * epoch + 1):
                log.add_step({"loss": loss}, step, num_samples=4)
            log.add_epoch(row(epoch, loss), {})
        for step in range(3 * last + 1, 3 * last + 1 + more_steps):
            log.add_step({"loss": loss}, step, num_samples=4)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_after_the_checkpoint_are_cut_off_even_half_a_line(tmp_path: Path) -> None:
    log_epochs(tmp_path, 1, 3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "st')
    log_epochs(tmp_path, 3, 4, loss=0.25)
    found = [(line["epoch"], line["train"]["loss"]) for line in rows(tmp_path)]
    assert found == [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.25)]
    assert rows(tmp_path)[0]["validation"] == {"mse": None}


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    log_epochs(tmp_path, 1, 2, more_steps=2)
    log_epochs(tmp_path, 3, 3, loss=0.25)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert losses == [(step, 0.5 if step <= 6 else 0.25) for step in range(1, 10)]
    assert [event.step for event in events.Scalars("validation/score")] == [3, 6, 9]


def test_previews_are_pictures_in_the_folder_and_in_tensorboard(tmp_path: Path) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    colour = np.stack([grey, 2 * grey, 3 * grey], axis=2)
    with RunLog(tmp_path, 0, 0, num_samples=1) as log:
        log.add_epoch(row(1), {"grey": grey, "colour": colour})
    for name, image in (("grey", grey), ("colour", colour)):
        with Image.open(tmp_path / "previews" / f"epoch_001_{name}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), image)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"previews/grey", "previews/colour"} <= set(events.Tags()["images"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epochs": 4, "lr": 0.05}}, r": training\.epochs was 3, now 4; use that"),
        ({"description": {"tasks": ["ink", "ir"]}}, r"tasks was \['ink'\], now \['ink', 'ir'\]"),
        ({"description": {}}, r"description\.tasks was \['ink'\], now 'not set'; descr"),
        ({"new": None}, r"new was 'not set', now None"),
        (
            {"training": {}, "description": {}, "samples": 12},
            r"training\.epochs was 3, now 'not set'; .* and 3 more; use",
        ),
    ],
)
def test_the_first_changed_settings_are_named_with_both_values(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.check_unchanged(CONFIG, CONFIG)
    with pytest.raises(ValueError, match=message) as error:
        folder.check_unchanged(CONFIG, {**CONFIG, **changes})
    assert "\n" not in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)
