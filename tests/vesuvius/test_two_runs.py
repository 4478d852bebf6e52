"""Two runs on one output: the second is refused in one line and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssp.cli import main as ssp_main
from tests.core.test_lock import held_elsewhere
from tests.vesuvius.test_train_processes import OPTIONS
from vesuvius.cli import main

SIMULATION = ("--size", "96", "128", "--layers", "16")


def files(folder: Path) -> Iterator[tuple[str, int]]:
    return ((str(path), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")))


@pytest.fixture
def commands(fragments, prepared, run, tmp_path):
    """Arguments of each command, and the folder and the name in it that it holds."""
    out = tmp_path / "out"
    return {
        "simulate": (("simulate", out / "a", *SIMULATION), out, "a"),
        "prepare": (("prepare", fragments["1"], "--out", out), out, "1.vol"),
        "train": (("train", "small", "--data", prepared, "--out", out, *OPTIONS), out, ""),
        "predict": (("predict", run, fragments["a"], "--out", out), out, ""),
        "analyze": (("analyze", fragments["1"], "--out", out), out, ""),
        "evaluate": (("evaluate", run, "--data", prepared, "--out", out), out, ""),
        "control": (("control", run, "--data", prepared, "--out", out), out, ""),
        "compare": (("compare", "--out", out), out, ""),
        "demo": (("demo", "--out", out), out, ""),
        "download": (("kaggle", "download", "--out", out), out, ""),
        "package": (("package", run, "--out", out), out, ""),
        "push": (("kaggle", "push", out), out, ""),
    }


@pytest.mark.parametrize(
    "name",
    ["simulate", "prepare", "train", "predict", "analyze", "evaluate", "control", "compare",
     "demo", "download", "package", "push"],
)  # fmt: skip
def test_a_second_command_is_refused(commands, name, monkeypatch, capsys):
    arguments, folder, held = commands[name]
    with held_elsewhere(folder, held) as other:
        before = list(files(folder))
        monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, arguments)])
        assert main() == 2
        *_, line = capsys.readouterr().err.strip().splitlines()
        said = f"vesuvius: error: {folder / held} is being written by process {other.pid} on "
        assert line.startswith(said)
        assert line.endswith("; wait until that has finished, or choose another folder to write")
        assert list(files(folder)) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "OUT"),
        ("prepare", "none.csv", "--out", "OUT"),
        ("predict", "run", "stack", "--out", "OUT"),
        ("evaluate", "run", "--data", "prepared", "--out", "OUT"),
        ("demo", "--out", "OUT"),
    ],
)
def test_a_second_command_for_cells_is_refused(arguments, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with held_elsewhere(out) as other:
        given = [str(out) if argument == "OUT" else argument for argument in arguments]
        monkeypatch.setattr("sys.argv", ["ssp", *given])
        assert ssp_main() == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"ssp: error: {out} is being written by process {other.pid} on ")


@pytest.mark.parametrize("content", ["", "process 1 on another machine", "\0\0"])
def test_a_lock_that_nobody_holds_stops_nobody(fragments, run, tmp_path, content, monkeypatch):
    """As kill -9 or a power cut leaves it; process 1 is always there."""
    for command, lock in (
        (("prepare", fragments["1"], "--out", tmp_path), tmp_path / ".1.vol.lock"),
        (("predict", run, fragments["a"], "--out", tmp_path / "p"), tmp_path / "p" / ".lock"),
    ):
        lock.parent.mkdir(exist_ok=True)
        lock.write_text(content)
        monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, command)])
        assert main() == 0
        assert not lock.exists()
    names = {"prob.tif", "preview.png", "provenance.json"}
    assert set(os.listdir(tmp_path / "p")) == names


def test_two_fragments_are_prepared_into_one_folder_at_a_time(fragments, tmp_path, monkeypatch):
    with held_elsewhere(tmp_path, "2.vol"):
        command = ["vesuvius", "prepare", str(fragments["1"]), "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", command)
        assert main() == 0
    assert (tmp_path / "1.vol" / "volume.json").exists()
