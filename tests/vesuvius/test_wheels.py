"""Wheels hold what is installed here, install with nothing else, and are the same each time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from importlib.metadata import distribution, requires, version
from pathlib import Path

import pytest

from core.terminal import DISTRIBUTION
from vesuvius import wheels
from vesuvius.kaggle_image import HAS, LACKS, PLATFORM, PYTHON_VERSION
from vesuvius.wheels import download, gather, pack_installed, pack_project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A folder with all wheels of a package."""
    folder = tmp_path_factory.mktemp("wheels")
    gather(LACKS, folder, PYTHON_VERSION, PLATFORM)
    return folder


def test_every_wheel_is_there_and_runs_on_any_python(house):
    names = {path.name for path in house.iterdir()}
    stems = [f"{name}-{version(name)}" for name in LACKS]
    stems += [f"{DISTRIBUTION.replace('-', '_')}-{version(DISTRIBUTION)}"]
    assert names == {f"{stem}-py3-none-any.whl" for stem in stems}


def test_the_list_of_a_wheel_names_each_of_its_files_with_its_hash(house):
    for path in house.iterdir():
        with zipfile.ZipFile(path) as archive:
            (record,) = [name for name in archive.namelist() if name.endswith("/RECORD")]
            rows = {
                row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(record).decode()))
            }
            assert rows.keys() == set(archive.namelist())
            for name in rows.keys() - {record}:
                content = archive.read(name)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
                assert rows[name] == [f"sha256={digest.rstrip('=')}", str(len(content))]


def test_the_wheel_of_the_project_is_its_code_and_no_more(house):
    (path,) = house.glob("repmode_vesuvius-*.whl")
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if "dist-info" not in name}
    expected = {
        source.relative_to(REPOSITORY).as_posix(): source.read_bytes()
        for package in ("core", "vesuvius")
        for source in (REPOSITORY / package).rglob("*")
        if source.is_file() and source.suffix != ".pyc"
    }
    assert found == expected


def test_equal_files_give_equal_wheels(house, tmp_path):
    again = pack_project(tmp_path)
    assert again.read_bytes() == (house / again.name).read_bytes()


def test_what_is_compiled_or_absent_is_not_packed(tmp_path):
    assert not pack_installed("numpy", tmp_path)
    assert not pack_installed("no-such-distribution", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_file_that_was_changed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "_digest", lambda content: "another")
    with pytest.raises(
        ValueError, match=r"typeguard.* is not the file that was installed; install"
    ):
        pack_installed("typeguard", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_project_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(ValueError, match="is not installed, so its wheel has no version"):
        pack_project(tmp_path)


def test_what_the_image_lacks_asks_for_nothing_that_it_lacks_too():
    known = {name.lower().replace("-", "_") for name in (*HAS, *LACKS)}
    for name in LACKS:
        needed = [text for text in requires(name) or [] if "extra ==" not in text]
        names = {text.split(";")[0].strip().lower().replace("-", "_") for text in needed}
        bare = {name.rstrip("0123456789.,<>=!~ ").strip() for name in names}
        assert bare - {"eval_type_backport"} <= known  # that one is for older Pythons


def write_compiled_wheel(folder: Path, tag: str) -> Path:
    folder.mkdir()
    path = folder / f"compiled-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "compiled-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: compiled\nVersion: 1.0\n",
        )
        archive.writestr("compiled-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr("compiled-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """A folder that is all pip can reach."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "reached")}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path / "reached"


def test_what_is_compiled_is_downloaded_for_the_python_of_kaggle(offline, tmp_path):
    wanted = write_compiled_wheel(offline, "cp312-cp312-manylinux_2_17_x86_64")
    download(["compiled"], tmp_path / "out", PYTHON_VERSION, PLATFORM)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [wanted.name]


def test_a_wheel_for_another_python_is_none_and_the_error_says_what_to_do(offline, tmp_path):
    write_compiled_wheel(offline, "cp310-cp310-manylinux_2_17_x86_64")
    with pytest.raises(
        RuntimeError, match=r"cannot download compiled for Python 3.12 .*FIND_LINKS"
    ):
        download(["compiled"], tmp_path / "out", PYTHON_VERSION, PLATFORM)


def test_an_installed_version_is_the_one_that_is_downloaded():
    assert wheels._pinned("numpy") == f"numpy=={distribution('numpy').version}"


def test_a_platform_takes_the_wheels_of_those_before_it():
    known = wheels.tags("manylinux_2_28_x86_64")
    assert known[0] == "manylinux_2_28_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64"} < set(known)
    assert "manylinux2014_x86_64" not in wheels.tags("manylinux_2_12_x86_64")
    with pytest.raises(ValueError, match="platform 'win32' is not known"):
        wheels.tags("win32")
