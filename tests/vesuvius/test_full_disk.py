"""A disk that is really full: one line, exit code 2, and the same command goes on once it is not.

The disk is a small one in memory, which only root may mount; without it these tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vesuvius.test_train_processes import OPTIONS
from vesuvius.cli import main

KIB = 1024
DISK_KIB = 2048
SIMULATION = ("--size", "96", "128", "--layers", "16")
TILES = ("--tile-size", "48", "--stride", "32", "--device", "cpu")
SAYS = "No space left on device; free some space or write to another disk"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Folder on a disk of its own, which holds an earlier result."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here ({error})")
    try:
        (path / "earlier").write_bytes(b"result")
        yield path
        assert (path / "earlier").read_bytes() == b"result"
    finally:
        subprocess.run(["umount", str(path)], check=True)


def leave(disk: Path, kib: int) -> Path:
    """Fill a disk but for some space, and return the file that does."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    filler.write_bytes(bytes(free - kib * KIB))
    return filler


def vesuvius(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, arguments)])
    return main()


def same_files(one: Path, other: Path) -> bool:
    names = [sorted(path.relative_to(root) for path in root.rglob("*")) for root in (one, other)]
    files = [name for name in names[0] if (one / name).is_file() and name.name != "provenance.json"]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def fail_then_finish(disk, monkeypatch, capsys, kib, *arguments):
    """Run a command on a disk that becomes full, and again when there is space."""
    filler = leave(disk, kib)
    capsys.readouterr()
    assert vesuvius(monkeypatch, *arguments) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"vesuvius: error: {disk}"), line
    assert SAYS in line
    filler.unlink()
    assert vesuvius(monkeypatch, *arguments) == 0


@pytest.mark.parametrize("kib", [0, 8, 40, 200, 380, 400])
def test_a_simulation_on_a_full_disk(disk, tmp_path, monkeypatch, capsys, kib):
    monkeypatch.setattr("vesuvius.texture.FibreTexture.PERIOD", 256)
    monkeypatch.setattr("vesuvius.simulate.check_space", lambda *_: None)  # as if it filled later
    fail_then_finish(disk, monkeypatch, capsys, kib, "simulate", disk / "a", *SIMULATION)
    assert vesuvius(monkeypatch, "simulate", tmp_path / "a", *SIMULATION) == 0
    assert same_files(disk / "a", tmp_path / "a")


@pytest.mark.parametrize("kib", [0, 4, 100, 256, 264, 280, 300])
def test_a_preparation_on_a_full_disk(disk, fragments, tmp_path, monkeypatch, capsys, kib):
    monkeypatch.setattr("vesuvius.prepare.check_space", lambda *_: None)
    command = ("prepare", fragments["1"], "--out")
    fail_then_finish(disk, monkeypatch, capsys, kib, *command, disk / "out")
    assert vesuvius(monkeypatch, *command, tmp_path / "out") == 0
    assert same_files(disk / "out", tmp_path / "out")


@pytest.mark.parametrize("kib", [0, 4, 40, 76, 88, 100])
def test_a_prediction_on_a_full_disk(disk, fragments, run, tmp_path, monkeypatch, capsys, kib):
    command = ("predict", run, fragments["1"], *TILES, "--out")
    fail_then_finish(disk, monkeypatch, capsys, kib, *command, disk / "out")
    assert vesuvius(monkeypatch, *command, tmp_path / "out") == 0
    assert same_files(disk / "out", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kib", [100, 330])
def test_a_training_on_a_full_disk(disk, prepared, tmp_path, monkeypatch, capsys, kib):
    """At the first checkpoint and at a later one."""
    command = ("train", "small", "--data", prepared, *OPTIONS, "--out")
    filler = leave(disk, kib)
    assert vesuvius(monkeypatch, *command, disk / "run") == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"vesuvius: error: {disk}"), line
    assert "No space left on device" in line
    filler.unlink()
    assert vesuvius(monkeypatch, *command, disk / "run", "--resume") == 0
    assert vesuvius(monkeypatch, *command, tmp_path / "run") == 0
    best = Path("checkpoints", "best.safetensors")
    assert (disk / "run" / best).read_bytes() == (tmp_path / "run" / best).read_bytes()


def test_a_finished_prediction_where_nothing_can_be_written_is_known(
    disk, fragments, run, monkeypatch, capsys
):
    command = ("predict", run, fragments["1"], *TILES, "--out", disk / "out")
    assert vesuvius(monkeypatch, *command) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert vesuvius(monkeypatch, *command) == 0
    assert "out is already finished" in capsys.readouterr().err
    assert vesuvius(monkeypatch, *command[:-1], disk / "other") == 2
    assert "Read-only file system; write to another disk" in capsys.readouterr().err
