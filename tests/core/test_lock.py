"""A folder has one writer, and no writer's death keeps others out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.lock import holds, locked, names_in
from tests.processes import REPOSITORY

HOLD = (
    "import sys; from core.lock import locked\n"
    "with locked(sys.argv[1], sys.argv[2]):\n    print('held', flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def held_elsewhere(folder: Path, name: str = "") -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a folder until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def hold(folder: Path, name: str = "") -> None:
    with locked(folder, name):
        pass


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run") as other:
        said = f"run is being written by process {other.pid} on {socket.gethostname()}; wait"
        with pytest.raises(ValueError, match=said):
            hold(tmp_path / "run")
        assert os.listdir(tmp_path / "run") == [".lock"]  # the refused one takes nothing away
        assert names_in(tmp_path / "run") == set()
    hold(tmp_path / "run")


def test_a_kill_lets_go_and_what_it_leaves_blocks_nobody(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run") as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert os.listdir(tmp_path / "run") == [".lock"]
    hold(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


def test_names_are_held_apart(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, "1.vol") as other:
        hold(tmp_path, "2.vol")
        with pytest.raises(ValueError, match=rf"/1\.vol is being written by process {other.pid}"):
            hold(tmp_path, "1.vol")


def test_a_lock_leaves_no_file_and_no_empty_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").read_text().startswith(f"process {os.getpid()}")
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "result").touch()
    assert os.listdir(tmp_path / "new" / "run") == ["result"]
    with pytest.raises(KeyError), locked(tmp_path / "other"):
        raise KeyError
    assert os.listdir(tmp_path) == ["new"]


def test_who_opened_a_lock_that_is_then_removed_takes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes could each hold a file of the same name."""
    taken = []

    def lock_after_removal(file, flags):
        taken.append(os.fstat(file.fileno()).st_ino)
        if len(taken) == 1:
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").touch()
        return lockf(file, flags)

    lockf = fcntl.lockf
    monkeypatch.setattr(fcntl, "lockf", lock_after_removal)
    with locked(tmp_path):
        assert (tmp_path / ".lock").stat().st_ino == taken[-1] != taken[0]


def test_a_file_system_without_locks_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert "run has no file locks; see that no other command writes" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run") == ["result"]


def test_where_nothing_can_be_written_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", fail)
    hold(tmp_path)


def test_a_decorated_function_holds_the_folder_of_its_argument(tmp_path: Path) -> None:
    @holds("out")
    def work(number: int, /, out: Path, *, other: Path = tmp_path) -> int:
        assert (out / ".lock").exists()
        return number + 1

    assert work(1, out=tmp_path / "a") == work(1, tmp_path / "a") == 2
    assert os.listdir(tmp_path) == []
