"""A run that was stopped before its first checkpoint, and two runs in one folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_lock import held_elsewhere
from tests.core.test_training import (
    CONFIG,
    Stop,
    assert_same_run,
    squared_error,
    stopping_at,
    train,
    validate,
)

AT_EPOCHS = replace(CONFIG, checkpoint_every_steps=0)


def stop_at(path: Path, batch: int, **changes: Any) -> None:
    with pytest.raises(Stop):
        train(path, AT_EPOCHS, loss_fn=stopping_at(batch, squared_error), **changes)


def test_a_run_stopped_before_its_first_checkpoint_begins_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "whole", AT_EPOCHS)
    stop_at(tmp_path / "stopped", 3)
    capsys.readouterr()
    stop_at(tmp_path / "stopped", 4, resume=True)
    assert "stopped was stopped before its first checkpoint" in capsys.readouterr().err
    train(tmp_path / "stopped", AT_EPOCHS, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_such_a_run_is_not_resumed_with_another_configuration(tmp_path: Path) -> None:
    stop_at(tmp_path, 3)
    with pytest.raises(ValueError, match="epochs was 3, now 4; use that of"):
        train(tmp_path, replace(AT_EPOCHS, epochs=4), resume=True)


def test_an_epoch_that_was_stopped_before_it_was_saved_is_logged_once(tmp_path: Path) -> None:
    """Validated, logged, best.safetensors written; only the checkpoint is missing."""
    train(tmp_path / "whole", AT_EPOCHS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.training.Run.save", stopping_at(1, lambda run: save(run)))
        with pytest.raises(Stop):
            train(tmp_path / "stopped", AT_EPOCHS)
    train(tmp_path / "stopped", AT_EPOCHS, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def save(run: Any) -> None:
    run.state.save(run.folder.last_path, run.identity)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    with held_elsewhere(tmp_path / "run") as other:
        with pytest.raises(ValueError, match=f"run is being written by process {other.pid} on"):
            train(tmp_path / "run", resume=resume)
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_run_holds_its_folder_while_it_trains_and_not_after(tmp_path: Path) -> None:
    held = []

    def look(model: Any) -> Any:
        held.append((tmp_path / "run" / ".lock").exists())
        return validate(model)

    train(tmp_path / "run", AT_EPOCHS, validate=look)
    assert held == [True] * AT_EPOCHS.epochs
    assert not (tmp_path / "run" / ".lock").exists()


def test_of_several_processes_of_a_run_the_first_alone_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with held_elsewhere(tmp_path / "run"):
        train(tmp_path / "run", replace(AT_EPOCHS, epochs=1))
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
