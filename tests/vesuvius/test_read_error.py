"""A layer that cannot be read is named in one line, and what is finished stays as it is."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import tifffile

from vesuvius import prepare as prepare_module
from vesuvius.cli import main
from vesuvius.layers import TiffLayers

BAND_ROWS = 32


def replace_by_folder(layer: Path) -> None:
    layer.unlink()
    layer.mkdir()


def cut(layer: Path) -> None:
    os.truncate(layer, layer.stat().st_size // 2)


@pytest.fixture
def half_read(monkeypatch):
    """Return a function that has a layer damaged once some rows were read."""

    def prepare_damage(layer: Path, y_start: int) -> None:
        read = TiffLayers.read

        def read_and_damage(volume, z_start, z_stop, start, stop):
            if start >= y_start:
                cut(layer)
            return read(volume, z_start, z_stop, start, stop)

        monkeypatch.setattr(TiffLayers, "read", read_and_damage)

    return prepare_damage


def vesuvius(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, arguments)])
    return main()


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["prepare", "predict"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (replace_by_folder, "Is a directory; name a file, not a folder"),
        (cut, "is truncated"),
    ],
)
def test_a_layer_that_cannot_be_opened(
    command, damage, says, fragments, run, tmp_path, monkeypatch, capsys
):
    fragment = shutil.copytree(fragments["1"], tmp_path / "1")
    layer = fragment / "surface_volume" / "05.tif"
    damage(layer)
    inputs = [fragment] if command == "prepare" else [run, fragment]
    assert vesuvius(monkeypatch, command, *inputs, "--out", tmp_path / "out") == 2
    line = last_line(capsys)
    assert line.startswith(f"vesuvius: error: {layer}")
    assert says in line
    assert not (tmp_path / "out").exists()


def test_a_layer_on_a_disk_that_fails(fragments, tmp_path, monkeypatch, capsys):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("vesuvius.layers.tifffile.TiffFile", fail)
    assert vesuvius(monkeypatch, "prepare", fragments["1"], "--out", tmp_path / "out") == 2
    layer = fragments["1"] / "surface_volume" / "00.tif"
    says = "Input/output error; check its disk or network, or take another copy"
    assert last_line(capsys) == f"vesuvius: error: {layer}: {says}"


def test_a_layer_that_fails_half_way_is_named_and_prepared_once_it_is_whole(
    fragments, tmp_path, monkeypatch, capsys, half_read
):
    monkeypatch.setattr(prepare_module, "BAND_BYTES", BAND_ROWS * 144 * 14)
    fragment = shutil.copytree(fragments["1"], tmp_path / "in" / "1")
    layer = fragment / "surface_volume" / "05.tif"
    whole = layer.read_bytes()
    out = tmp_path / "out"
    assert vesuvius(monkeypatch, "prepare", fragments["2"], "--out", out) == 0
    before = {path.name: path.read_bytes() for path in (out / "2.vol").iterdir()}
    with pytest.MonkeyPatch.context():
        half_read(layer, 2 * BAND_ROWS)
        assert vesuvius(monkeypatch, "prepare", fragment, fragments["2"], "--out", out) == 2
    line = last_line(capsys)
    assert line.startswith(f"vesuvius: error: {layer} cannot be read to row 95: it was cut off")
    assert {path.name: path.read_bytes() for path in (out / "2.vol").iterdir()} == before
    assert sorted(os.listdir(out)) == [".1.partial.vol", "2.vol"]
    layer.write_bytes(whole)
    monkeypatch.undo()
    assert vesuvius(monkeypatch, "prepare", fragment, fragments["2"], "--out", out) == 0
    assert "1.vol: what was begun was of other input" in capsys.readouterr().err
    assert vesuvius(monkeypatch, "prepare", fragment, "--out", tmp_path / "again") == 0
    for path in (tmp_path / "again" / "1.vol").iterdir():
        assert path.read_bytes() == (out / "1.vol" / path.name).read_bytes()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_layer_that_fails_under_a_prediction_leaves_the_rows_that_are_done(
    compression, fragments, run, tmp_path, monkeypatch, capsys, half_read
):
    fragment = shutil.copytree(fragments["1"], tmp_path / "1")
    layers = sorted((fragment / "surface_volume").iterdir())
    for path in layers:
        tifffile.imwrite(path, tifffile.imread(path), compression=compression, rowsperstrip=8)
    out = tmp_path / "out"
    command = ("predict", run, fragment, "--out", out, "--tile-size", "48", "--stride", "32")
    half_read(layers[6], 112)
    assert vesuvius(monkeypatch, *command) == 2
    assert last_line(capsys).startswith(f"vesuvius: error: {layers[6]} ")
    assert not (out / "prob.tif").exists()
