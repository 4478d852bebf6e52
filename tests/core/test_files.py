"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from core.files import atomic_dir, atomic_path, read_json, save_array, write_json


def test_a_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "prob.tif"
    with atomic_path(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert (partial.parent, partial.suffix) == (path.parent, ".tif")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["prob.tif"]


def fail_half_way(output: AbstractContextManager[Path], error: BaseException) -> None:
    """Raise `error` after part of the output is written."""
    with output as partial:
        (partial / "volume.npy" if partial.is_dir() else partial).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    with pytest.raises(error):
        fail_half_way(atomic_path(path), error())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["submission.csv"]


def test_a_folder_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "one.vol"
    with atomic_dir(path) as partial:
        (partial / "volume.npy").write_text("whole")
        assert not path.exists()
    assert (path / "volume.npy").read_text() == "whole"
    assert os.listdir(path.parent) == ["one.vol"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(atomic_dir(tmp_path / "one.vol"), KeyboardInterrupt())
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_of_a_folder_is_not_taken_over(tmp_path):
    path = tmp_path / "one.vol"
    with atomic_dir(path) as partial:
        killed = partial
    path.rename(killed)
    (killed / "volume.npy").write_text("half")
    with atomic_dir(path):
        pass
    assert os.listdir(path) == []


def test_a_folder_that_exists_is_refused_and_kept(tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(FileExistsError, match="already exists; remove it"), atomic_dir(tmp_path):
        pass
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize("atomic", [atomic_path, atomic_dir])
def test_a_full_disk_names_the_output(tmp_path, atomic):
    path = tmp_path / "output"
    with pytest.raises(OSError, match="No space left") as caught:
        fail_half_way(atomic(path), OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_an_array_is_written_as_numpy_does(tmp_path):
    array = np.arange(60, dtype=np.int64).reshape(5, 12)[:, ::2]
    save_array(tmp_path / "array.npy", array)
    np.save(tmp_path / "by_numpy.npy", array)
    assert (tmp_path / "array.npy").read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_array_on_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as caught:
        save_array("/dev/full", np.zeros(10**6))
    assert caught.value.filename == "/dev/full"


def test_json_survives_a_round_trip(tmp_path):
    obj = {"zeta": [1, 2.5, None], "alpha": {"name": "Ἡράκλειον"}}
    write_json(tmp_path / "info.json", obj)
    assert read_json(tmp_path / "info.json") == obj
    assert list(read_json(tmp_path / "info.json")) == ["zeta", "alpha"]


def test_json_refuses_what_it_cannot_carry(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "info.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    path: Path = tmp_path / "info.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"info\.json is not valid JSON .*; write it again"):
        read_json(path)
