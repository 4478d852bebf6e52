"""A simulation that was stopped continues with what is missing, to the same bits."""

from __future__ import annotations

import pytest

from vesuvius.layers import read_layer
from vesuvius.phantom import Phantom
from vesuvius.simulate import simulate
from vesuvius.texture import FibreTexture

SIZE = (80, 96)
LAYERS = 16
OPTIONS = {"size": SIZE, "layers": LAYERS}


@pytest.fixture(autouse=True, scope="module")
def _small_texture():
    """Spare the time that the real tile of fibres takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FibreTexture, "PERIOD", 256)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a"
    simulate(path, **OPTIONS, seed=5)
    return path


def failing_below(monkeypatch, y_limit):
    """Let the voxels from a row on fail, and return a list of the bands that were made."""
    made = []

    def read_or_fail(self, y_start, y_stop):
        if y_start >= y_limit:
            raise OSError(28, "No space left on device")
        made.append(y_start)
        return read(self, y_start, y_stop)

    read = Phantom.read
    monkeypatch.setattr(Phantom, "read", read_or_fail)
    return made


def same_files(one, other):
    names = [sorted(path.relative_to(root) for path in root.rglob("*")) for root in (one, other)]
    assert names[0] == names[1]
    files = [name for name in names[0] if (one / name).is_file()]
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_a_stopped_simulation_continues_with_the_bands_that_are_missing(
    folder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        first = failing_below(patch, 64)
        with pytest.raises(OSError, match="No space left") as caught:
            simulate(tmp_path / "a", **OPTIONS, seed=5)
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".a.partial"]
    rest = failing_below(monkeypatch, 1000)
    simulate(tmp_path / "a", **OPTIONS, seed=5)
    assert sorted(first + rest) == list(range(0, SIZE[0], 32))
    assert first
    same_files(tmp_path / "a", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_band_that_is_not_what_was_written_is_made_again(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing_below(patch, 64)
        with pytest.raises(OSError, match="No space left"):
            simulate(tmp_path / "a", **OPTIONS, seed=5)
    layer = tmp_path / ".a.partial" / "surface_volume" / "07.tif"
    content, place = layer.read_bytes(), read_layer(layer).offset + 30
    layer.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    made = failing_below(monkeypatch, 1000)
    simulate(tmp_path / "a", **OPTIONS, seed=5)
    assert 0 in made
    assert 32 not in made
    same_files(tmp_path / "a", folder)


def test_what_was_begun_with_another_seed_is_not_blended(folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing_below(patch, 64)
        with pytest.raises(OSError, match="No space left"):
            simulate(tmp_path / "a", **OPTIONS, seed=6)
    simulate(tmp_path / "a", **OPTIONS, seed=5)
    assert "a: what was begun was of other input or settings" in capsys.readouterr().err
    same_files(tmp_path / "a", folder)
