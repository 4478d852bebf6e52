"""What goes to Weights & Biases, seen by a stand-in for the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from core.run_folder import RunLog
from core.training import fit
from tests.core.test_training import (
    CONFIG,
    Lines,
    Stop,
    assert_same_run,
    make_model,
    squared_error,
    stopping_at,
    train,
    validate,
)


class Remote:
    """A run of the stand-in: what it was made with and what was logged to it."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[tuple[int, str, Any]] = []
        self.failure: type[BaseException] | None = None
        self.is_finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged += [(step, name, value) for name, value in values.items()]

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.failure, self.is_finished = kind, True


@pytest.fixture
def remotes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Remote]]:
    """Put a stand-in in the place of the package and return the runs that it starts."""
    started: list[Remote] = []

    def init(**options: Any) -> Remote:
        started.append(Remote(**options))
        return started[-1]

    package = ModuleType("wandb")
    package.__spec__ = ModuleSpec("wandb", None)  # accelerate asks for it
    package.init, package.Image = init, lambda image: ("picture", image.shape)
    monkeypatch.setitem(sys.modules, "wandb", package)
    yield started
    assert all(remote.is_finished for remote in started)


def test_it_is_told_what_tensorboard_is(remotes: list[Remote], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, wandb="ink")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    expected = [
        (event.step, tag, pytest.approx(event.value, rel=1e-6, nan_ok=True))
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]
    numbers = [entry for entry in remotes[0].logged if not isinstance(entry[2], tuple)]
    assert sorted(numbers, key=lambda entry: (entry[1], entry[0])) == sorted(
        expected, key=lambda entry: (entry[1], entry[0])
    )
    assert {name for _, name, _ in numbers} > {"step/loss", "train/loss", "validation/score"}
    pictures = [entry for entry in remotes[0].logged if isinstance(entry[2], tuple)]
    assert {name for _, name, _ in pictures} == set(events.Tags()["images"])
    assert (9, "previews/colour", ("picture", (4, 5, 3))) in pictures
    steps = [step for step, _, _ in remotes[0].logged]
    assert steps == sorted(steps)  # as W&B demands


def test_it_is_told_what_the_run_is(remotes: list[Remote], tmp_path: Path) -> None:
    train(tmp_path / "night", replace(CONFIG, epochs=1), wandb="ink")
    options = remotes[0].options
    assert (options["project"], options["name"]) == ("ink", "night")
    assert (options["dir"], options["resume"]) == (str(tmp_path / "night"), "allow")
    assert options["config"]["training"]["learning_rate"] == 0.05
    assert options["config"]["description"]["recipe"] == "tiny"


def test_a_resumed_run_is_the_same_run_and_may_change_where_it_logs(
    remotes: list[Remote], tmp_path: Path
) -> None:
    train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", wandb="ink", loss_fn=stopping_at(5, squared_error))
    assert remotes[0].failure is Stop
    with pytest.raises(Stop):
        train(tmp_path / "stopped", resume=True, loss_fn=stopping_at(3, squared_error))
    train(tmp_path / "stopped", resume=True, wandb="another")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert [remote.options["project"] for remote in remotes] == ["ink", "another"]
    assert remotes[0].options["id"] == remotes[1].options["id"]
    train(tmp_path / "other", replace(CONFIG, epochs=1), wandb="ink")
    assert remotes[2].options["id"] != remotes[0].options["id"]


def test_nothing_is_logged_unless_it_is_asked_for(remotes: list[Remote], tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, epochs=1))
    with RunLog(tmp_path, 1, 3, num_samples=1) as log:
        log.add_step({"loss": np.float32(1)}, 4, 1)
    assert remotes == []
    assert not (tmp_path / "wandb.json").exists()


def test_without_the_package_it_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    arguments = (make_model(), Lines(), squared_error, validate, CONFIG, tmp_path / "run", {})
    with pytest.raises(ValueError, match=r"^wandb project 'ink' .*`pip install wandb`") as error:
        fit(*arguments, wandb="ink")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="wandb is given no project; name one"):
        fit(*arguments, wandb=" ")
    assert not (tmp_path / "run").exists()
