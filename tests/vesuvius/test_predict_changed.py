"""A half-done prediction whose input, checkpoint or options have changed is not gone on with."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import tifffile

from core.checkpoint import WEIGHTS, load, save
from core.inference import Journal
from vesuvius.ensemble import EnsembleConfig
from vesuvius.predict import predict

OPTIONS = {"tile_size": 48, "stride": 24, "device": "cpu"}
WAYS = {
    "alone": {},
    "averaged": {"averaged": EnsembleConfig(tta_z_shift=1)},
    "shards": {"shard": "1/2"},
}


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def source(fragments, tmp_path_factory):
    """A small fragment that may be changed."""
    path = tmp_path_factory.mktemp("changed") / "a"
    (path / "surface_volume").mkdir(parents=True)
    for layer in (fragments["a"] / "surface_volume").iterdir():
        tifffile.imwrite(path / "surface_volume" / layer.name, tifffile.imread(layer)[:72, :48])
    cv2.imwrite(str(path / "mask.png"), np.full((72, 48), 255, np.uint8))
    return path


@pytest.fixture(scope="module", params=WAYS)
def half_done(request, run, source, tmp_path_factory):
    """A prediction of which one tile row is committed, and the options that it was begun with."""
    out, options = tmp_path_factory.mktemp("half") / "out", OPTIONS | WAYS[request.param]
    inner = Journal.commit

    def commit_and_die(self, *arguments):
        inner(self, *arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", commit_and_die)
        with pytest.raises(Killed):
            predict(run, source, out=out, **options)
    return out, options


def refused(run, source, half_done, **changed) -> str:
    """Return the one line that refuses to go on; nothing in the folder has changed then."""
    out, options = half_done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"(of|to) a prediction with (an)?other") as error:
        predict(run, source, out=out, **options | changed)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("name", ["surface_volume/00.tif", "surface_volume/07.tif", "mask.png"])
def test_a_changed_layer_or_mask_is_noticed(run, source, half_done, name):
    """Even a layer outside the window: where the window lies depends on it."""
    file = source / name
    kept, stat = file.read_bytes(), file.stat()
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    pixels[40, 20] ^= 1 << 7
    try:
        cv2.imwrite(str(file), pixels) if name == "mask.png" else tifffile.imwrite(file, pixels)
        assert "delete" in refused(run, source, half_done)
    finally:
        file.write_bytes(kept)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_changed_checkpoint_is_noticed(run, source, half_done, tmp_path):
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    changed = tensors | {name: tensors[name] * (1 + 1e-6)}
    save(tmp_path / "best.safetensors", WEIGHTS, changed, meta)
    assert "delete" in refused(tmp_path / "best.safetensors", source, half_done)


@pytest.mark.parametrize(
    "option",
    [
        {"stride": 48},
        {"tile_size": 24},
        {"z_start": 2},
        {"batch_size": 3},
        {"reverse_layers": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_changed_option_is_noticed(run, source, half_done, option):
    assert "delete" in refused(run, source, half_done, **option)


def test_a_layer_that_changes_while_it_is_predicted_is_noticed(run, source, tmp_path, monkeypatch):
    layer = source / "surface_volume" / "07.tif"
    stat, inner = layer.stat(), Journal.commit

    def commit_and_touch(self, *arguments):
        inner(self, *arguments)
        os.utime(layer, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "commit", commit_and_touch)
            with pytest.raises(ValueError, match=r"a was changed while it was predicted; delete "):
                predict(run, source, out=tmp_path / "out", **OPTIONS)
        assert not (tmp_path / "out" / "prob.tif").exists()
        with pytest.raises(ValueError, match="belongs to a prediction with another model, input"):
            predict(run, source, out=tmp_path / "out", **OPTIONS)
    finally:
        os.utime(layer, ns=(stat.st_atime_ns, stat.st_mtime_ns))
