"""The competition's data arrives whole, once, whatever breaks off in between."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
import zipfile

import numpy as np
import pytest

from tests.vesuvius.conftest import write_fragment
from tests.vesuvius.kaggle_service import COMPETITION, zipped
from vesuvius.fragment import open_fragment
from vesuvius.kaggle_client import Bundle
from vesuvius.kaggle_download import download

ARCHIVE = f"{COMPETITION}.zip"
MIB = 2**20


@pytest.fixture
def data(tmp_path_factory):
    """A folder as the competition's data, of one fragment."""
    root = tmp_path_factory.mktemp("competition")
    write_fragment(root / "train" / "1", 0)
    (root / "sample_submission.csv").write_text("Id,Predicted\na,1 1\n")
    return root


@pytest.fixture
def large_data(data):
    """The same with 3 MiB that do not pack, for the client writes 1 MiB at a time."""
    (data / "noise").write_bytes(np.random.default_rng(0).bytes(3 * MIB))
    return data


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "download.json"
    }


def test_the_data_stands_as_prepare_reads_it_and_is_not_fetched_twice(program, data):
    program.kaggle.bundle = zipped(data)
    said = program.run("download")
    out = program.home / "kaggle"
    assert "holds the 17 files" in said
    assert "MiB" in said
    assert files(out) == files(data)  # and no zip
    fetched, original = open_fragment(out / "train" / "1"), open_fragment(data / "train" / "1")
    assert np.array_equal(fetched.volume.read(0, 14, 0, 9), original.volume.read(0, 14, 0, 9))
    calls = len(program.kaggle.calls)
    assert "already" in program.run("download")
    assert len(program.kaggle.calls) == calls


def test_a_killed_download_goes_on_where_it_stopped(program, large_data):
    kaggle = program.kaggle
    kaggle.bundle, kaggle.pace_s = zipped(large_data), 0.05
    archive = program.home / "kaggle" / ARCHIVE
    child = program.start("download")
    deadline_s = time.monotonic() + 60
    while not archive.exists() or not archive.stat().st_size:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    have = archive.stat().st_size
    assert 0 < have < len(kaggle.bundle)
    kaggle.pace_s = 0
    program.run("download")
    assert kaggle.ranges == ["", "", f"bytes={have}-"]  # the second tells the size alone
    assert files(archive.parent) == files(large_data)


def test_a_download_that_breaks_off_goes_on_by_itself(program, large_data):
    program.kaggle.bundle = zipped(large_data)
    program.kaggle.cut_after = MIB + 1000
    program.run("download")
    assert program.kaggle.ranges == ["", f"bytes={MIB}-"]
    assert files(program.home / "kaggle") == files(large_data)


def test_a_complete_zip_is_not_fetched_again_and_what_is_unpacked_stays(program, data):
    program.kaggle.bundle = zipped(data)
    out = program.home / "kaggle"
    (out / "train" / "1").mkdir(parents=True)
    (out / ARCHIVE).write_bytes(program.kaggle.bundle)
    mask = out / "train" / "1" / "mask.png"
    mask.write_bytes((data / "train" / "1" / "mask.png").read_bytes())
    before = mask.stat().st_mtime_ns
    program.run("download")
    assert mask.stat().st_mtime_ns == before
    assert files(out) == files(data)


def test_a_damaged_zip_is_noticed_and_leaves_no_half_file(program, data):
    bundle = bytearray(zipped(data))
    with zipfile.ZipFile(io.BytesIO(bytes(bundle))) as archive:
        member = archive.getinfo("train/1/surface_volume/05.tif")
    middle = member.header_offset + 200
    bundle[middle : middle + 8] = b"\0" * 8
    program.kaggle.bundle = bytes(bundle)
    said = program.run("download", code=2)
    assert "is damaged" in said
    assert "delete it and run the same command again" in said
    out = program.home / "kaggle"
    whole = files(data)
    assert all(whole[name] == content for name, content in files(out).items() if name != ARCHIVE)
    program.kaggle.bundle = zipped(data)
    (out / ARCHIVE).unlink()
    program.run("download")
    assert files(out) == whole


def test_what_is_no_zip_or_lies_outside_is_refused(program, data):
    program.kaggle.bundle = b"no zip"
    assert "is damaged" in program.run("download", code=2)
    with zipfile.ZipFile(program.home / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "text")
    program.kaggle.bundle = (program.home / "evil.zip").read_bytes()
    assert "outside of kaggle" in program.run("download", code=2)
    assert not (program.home / "evil.txt").exists()


def test_a_file_of_the_user_is_not_replaced(program, data):
    program.kaggle.bundle = zipped(data)
    label = program.home / "mine" / "train" / "1" / "inklabels.png"
    label.parent.mkdir(parents=True)
    label.write_text("my own label")
    said = program.run("download", "--out", "mine", code=2)
    assert "inklabels.png exists and is not the file of the competition" in said
    assert label.read_text() == "my own label"


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_fetched(program):
    class Endless(bytes):
        def __len__(self):
            return 10**16

    program.kaggle.bundle = Endless()
    said = program.run("download", code=2)
    assert "GiB are needed" in said
    assert not (program.home / "kaggle").exists()


def test_a_zip_that_is_there_needs_room_for_what_is_not_unpacked_alone(data, tmp_path, monkeypatch):
    class Client:
        def bundle(self, competition):
            return Bundle((tmp_path / ARCHIVE).stat().st_size, None)

        def fetch(self, bundle, path):
            assert path.stat().st_size == bundle.size

    (tmp_path / ARCHIVE).write_bytes(zipped(data))
    whole = files(data)
    largest = max(whole, key=lambda name: len(whole[name]))
    for name in whole.keys() - {largest}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(whole[name])
    free = len(whole[largest])
    assert free < (tmp_path / ARCHIVE).stat().st_size
    monkeypatch.setattr("vesuvius.kaggle_download.KaggleClient", Client)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free - 1))
    with pytest.raises(ValueError, match="are needed"):
        download(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free))
    download(tmp_path)
    assert files(tmp_path) == whole
