"""Prepared volumes hold the voxels of their fragment, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import tracemalloc
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from vesuvius import prepare as prepare_module
from vesuvius.fragment import fingerprint, open_fragment
from vesuvius.layers import TiffLayers
from vesuvius.prepare import prepare, prepare_fragment
from vesuvius.prepared import LayersInnermost, open_prepared
from vesuvius.statistics import layer_histograms

SHAPE = (7, 53, 41)


def write_fragment(folder: Path, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Write a fragment in Kaggle layout and return its voxels, uint16 (Z, Y, X)."""
    (folder / "surface_volume").mkdir(parents=True)
    voxels = np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint16)
    for number, layer in enumerate(voxels):
        tifffile.imwrite(folder / "surface_volume" / f"{number:02d}.tif", layer)
    for name, image in (("mask", np.tri(*shape[1:])), ("inklabels", np.eye(*shape[1:]))):
        Image.fromarray(image.astype(np.uint8) * 255).save(folder / f"{name}.png")
    return voxels


@pytest.fixture
def fragment(tmp_path: Path) -> Path:
    write_fragment(tmp_path / "1")
    return tmp_path / "1"


def test_a_prepared_volume_holds_the_fragment_with_layers_innermost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = write_fragment(tmp_path / "1")
    monkeypatch.setattr(prepare_module, "BAND_BYTES", 5 * SHAPE[0] * SHAPE[2])  # 11 bands
    path = prepare_fragment(tmp_path / "1", tmp_path / "out")
    assert path == tmp_path / "out" / "1.vol"
    store = open_prepared(path)
    assert (store.name, store.path) == ("1", path)
    assert store.volume.dtype == np.uint8
    np.testing.assert_array_equal(store.volume, (voxels >> 8).transpose(1, 2, 0))
    np.testing.assert_array_equal(store.papyrus_mask, np.tri(*SHAPE[1:], dtype=bool))
    np.testing.assert_array_equal(store.ink_label, np.eye(*SHAPE[1:], dtype=bool))
    assert sorted(os.listdir(tmp_path / "out")) == ["1.vol"]


def test_what_is_stored_beside_the_voxels_describes_them(fragment: Path, tmp_path: Path) -> None:
    store = open_prepared(prepare_fragment(fragment, tmp_path))
    source = open_fragment(fragment)
    layers = source.volume.read(0, *SHAPE[:1], 0, SHAPE[1])
    assert store.info["layer_sha256"] == [hashlib.sha256(layer).hexdigest() for layer in layers]
    assert store.info["fingerprint"] == fingerprint(source)
    assert store.info["source"] == str(fragment.resolve())
    assert store.info["shape"] == [*SHAPE[1:], SHAPE[0]]
    histograms = layer_histograms(source.volume, source.papyrus_mask)
    np.testing.assert_array_equal(store.statistics.histograms, histograms)
    assert store.info["sheet_depth"] == store.statistics.sheet_depth
    masked = layers[:, source.papyrus_mask]
    np.testing.assert_allclose(
        (store.info["mean"], store.info["std"]), (masked.mean(), masked.std())
    )
    np.testing.assert_allclose(store.info["z_profile"], masked.mean(axis=1), atol=1e-3)


def test_a_fragment_without_a_label_has_none(fragment: Path, tmp_path: Path) -> None:
    (fragment / "inklabels.png").unlink()
    path = prepare_fragment(fragment, tmp_path)
    assert open_prepared(path).ink_label is None
    assert not (path / "ink_label.npy").exists()


def test_memory_does_not_grow_with_the_fragment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fragment(tmp_path / "1", (16, 2048, 256))  # 8 MiB of uint8 voxels
    monkeypatch.setattr(prepare_module, "BAND_BYTES", 2**18)
    tracemalloc.start()
    prepare_fragment(tmp_path / "1", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # bands of 256 KiB, and mask and label of 512 KiB each


def test_a_finished_volume_is_recognised_and_skipped(
    fragment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare((fragment,), out=tmp_path / "out")
    before = (tmp_path / "out" / "1.vol" / "volume.npy").stat()
    capsys.readouterr()
    prepare((fragment,), out=tmp_path / "out")
    assert (tmp_path / "out" / "1.vol" / "volume.npy").stat() == before
    assert capsys.readouterr().err.count("1.vol is already prepared") == 1


def test_a_changed_fragment_is_not_taken_for_the_stored_one(fragment: Path, tmp_path: Path) -> None:
    prepare((fragment,), out=tmp_path / "out")
    os.utime(fragment / "mask.png", ns=(0, 1))
    with pytest.raises(ValueError, match=r"1\.vol was prepared from other files .*delete it or"):
        prepare((fragment,), out=tmp_path / "out")


def stop_in_row(
    fragment: Path, out: Path, row: int, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> list[int]:
    """Prepare until a row is to be read, and return where the bands begin that were read."""
    starts: list[int] = []

    def read(volume: TiffLayers, z_start: int, z_stop: int, y_start: int, y_stop: int) -> object:
        if y_stop > row:
            raise error
        starts.append(y_start)
        return whole_read(volume, z_start, z_stop, y_start, y_stop)

    whole_read = TiffLayers.read
    with monkeypatch.context() as context:
        context.setattr(TiffLayers, "read", read)
        with pytest.raises(type(error)) if row < SHAPE[1] else contextlib.nullcontext():
            prepare_fragment(fragment, out)
    return starts


def same_files(one: Path, other: Path) -> bool:
    names = [sorted(os.listdir(path)) for path in (one, other)]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_stopped_work_continues_with_the_bands_that_are_missing(
    fragment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = prepare_fragment(fragment, tmp_path / "whole")
    monkeypatch.setattr(prepare_module, "BAND_BYTES", 5 * SHAPE[0] * SHAPE[2])
    first = stop_in_row(fragment, tmp_path / "out", 27, monkeypatch, error)
    assert os.listdir(tmp_path / "out") == [".1.partial.vol"]
    rest = stop_in_row(fragment, tmp_path / "out", 1000, monkeypatch, error)
    assert [first, rest] == [list(range(0, 25, 5)), list(range(25, SHAPE[1], 5))]
    assert same_files(whole, tmp_path / "out" / "1.vol")
    assert os.listdir(tmp_path / "out") == ["1.vol"]


def test_a_band_that_is_not_what_was_written_is_read_again(
    fragment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_fragment(fragment, tmp_path / "whole")
    monkeypatch.setattr(prepare_module, "BAND_BYTES", 5 * SHAPE[0] * SHAPE[2])
    stop_in_row(fragment, tmp_path / "out", 27, monkeypatch, KeyboardInterrupt())
    volume = tmp_path / "out" / ".1.partial.vol" / "volume.npy"
    content = volume.read_bytes()
    place = 128 + 12 * SHAPE[0] * SHAPE[2]
    volume.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    rest = stop_in_row(fragment, tmp_path / "out", 1000, monkeypatch, KeyboardInterrupt())
    assert rest == [10, *range(25, SHAPE[1], 5)]
    assert same_files(whole, tmp_path / "out" / "1.vol")


def test_a_fragment_changed_while_half_of_it_is_prepared_is_not_blended(
    fragment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prepare_module, "BAND_BYTES", 5 * SHAPE[0] * SHAPE[2])
    stop_in_row(fragment, tmp_path / "out", 27, monkeypatch, KeyboardInterrupt())
    tifffile.imwrite(fragment / "surface_volume" / "03.tif", np.full(SHAPE[1:], 7 << 8, np.uint16))
    capsys.readouterr()
    prepare((fragment,), out=tmp_path / "out")
    assert "1.vol: what was begun was of other input" in capsys.readouterr().err
    assert same_files(prepare_fragment(fragment, tmp_path / "whole"), tmp_path / "out" / "1.vol")


def test_a_fragment_changed_by_the_time_it_is_prepared_is_refused(
    fragment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_and_change(*arguments: object) -> np.ndarray:
        os.utime(fragment / "surface_volume" / "00.tif", ns=(0, 1))
        return layer_histograms(*arguments)

    with monkeypatch.context() as context:
        context.setattr(prepare_module, "layer_histograms", count_and_change)
        with pytest.raises(ValueError, match="1 changed while it was prepared; prepare it again"):
            prepare((fragment,), out=tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [".1.partial.vol"]
    prepare((fragment,), out=tmp_path / "out")
    assert same_files(prepare_fragment(fragment, tmp_path / "whole"), tmp_path / "out" / "1.vol")


def test_a_layer_cut_off_after_it_was_opened_is_named(fragment: Path, tmp_path: Path) -> None:
    opened = open_fragment(fragment)
    layer = fragment / "surface_volume" / "02.tif"
    os.truncate(layer, layer.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"02\.tif cannot be read to row 52: .* copy it again"):
        opened.volume.read(0, SHAPE[0], 40, SHAPE[1])


def test_all_fragments_are_checked_before_the_first_is_converted(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_fragment(tmp_path / name)
    (tmp_path / "2" / "surface_volume" / "03.tif").unlink()
    with pytest.raises(ValueError, match=r"lacks 03\.tif"):
        prepare((tmp_path / "1", tmp_path / "2"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_fragments_are_prepared(tmp_path: Path) -> None:
    voxels = [write_fragment(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    prepare((tmp_path / "1", tmp_path / "2"), out=tmp_path / "out")
    for name, expected in zip("12", voxels, strict=True):
        store = open_prepared(tmp_path / "out" / f"{name}.vol")
        np.testing.assert_array_equal(store.volume, (expected >> 8).transpose(1, 2, 0))


def test_two_fragments_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_fragment(tmp_path / folder / "1")
    with pytest.raises(ValueError, match=r"2 fragments would become .*1\.vol; rename"):
        prepare((tmp_path / "x" / "1", tmp_path / "y" / "1"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_fragment_and_a_prepared_one_are_refused(fragment: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fragment given"):
        prepare((), out=tmp_path)
    path = prepare_fragment(fragment, tmp_path)
    with pytest.raises(ValueError, match=r"1\.vol is a prepared volume already"):
        prepare((path,), out=tmp_path / "out")


def test_fragments_of_different_depth_are_refused_in_one_command(tmp_path: Path) -> None:
    write_fragment(tmp_path / "1")
    write_fragment(tmp_path / "2")
    (tmp_path / "2" / "surface_volume" / "06.tif").unlink()
    with pytest.raises(ValueError, match=r"2 has 6 layers but .*1 has 7; check for .* --out"):
        prepare((tmp_path / "1", tmp_path / "2"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fragment_of_another_depth_than_those_stored_is_refused(
    fragment: Path, tmp_path: Path
) -> None:
    write_fragment(tmp_path / "2", (6, *SHAPE[1:]))
    out = tmp_path / "out"
    prepare((fragment,), out=out)
    with pytest.raises(ValueError, match=r"2 has 6 layers but .*1\.vol has 7; check for missing"):
        prepare((tmp_path / "2",), out=out)
    assert os.listdir(out) == ["1.vol"]


def test_segments_may_have_any_depth_and_half_done_volumes_are_not_looked_at(
    fragment: Path, tmp_path: Path
) -> None:
    write_fragment(tmp_path / "2", (6, *SHAPE[1:]))
    (tmp_path / "2" / "surface_volume").rename(tmp_path / "2" / "layers")
    write_fragment(tmp_path / "3", (5, *SHAPE[1:]))
    half_done = prepare_fragment(tmp_path / "3", tmp_path / "out")
    half_done.rename(half_done.with_name(".3.partial.vol"))
    prepare((fragment, tmp_path / "2"), out=tmp_path / "out")
    assert open_fragment(tmp_path / "out" / "1.vol").source_layout == "kaggle"
    assert open_fragment(tmp_path / "out" / "2.vol").source_layout == "segment"
    assert open_fragment(fragment).source_layout == "kaggle"


def test_a_missing_mask_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fragment(tmp_path / "1")
    (tmp_path / "1" / "surface_volume").rename(tmp_path / "1" / "layers")
    (tmp_path / "1" / "mask.png").unlink()
    prepare((tmp_path / "1",), out=tmp_path / "out")
    assert capsys.readouterr().err.count("no papyrus mask") == 1


def test_bands_of_a_mapped_volume_are_read_without_its_pages_staying(tmp_path: Path) -> None:
    voxels = write_fragment(tmp_path / "1")
    mapped = open_prepared(prepare_fragment(tmp_path / "1", tmp_path)).volume
    bands = LayersInnermost(mapped)
    maps = Path("/proc/self/smaps")
    for z_start, z_stop, y_start, y_stop in ((0, 7, 0, 53), (2, 5, 11, 12), (6, 7, 40, 53)):
        np.testing.assert_array_equal(
            bands.read(z_start, z_stop, y_start, y_stop),
            voxels[z_start:z_stop, y_start:y_stop] >> 8,
        )
    if maps.exists():
        rest = maps.read_text().partition(str(tmp_path / "1.vol" / "volume.npy"))[2]
        assert re.search(r"^Rss: +(\d+) kB", rest, re.MULTILINE)[1] == "0"


def test_a_disk_too_small_is_found_before_anything_is_written(
    fragment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"out has 0\.0 GiB free .*choose another --out"):
        prepare((fragment,), out=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_layers_that_use_little_of_their_range_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        dark = np.random.default_rng(number).integers(0, 600, (9, 8), dtype=np.uint16)
        (tmp_path / "dark").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "dark" / f"{number}.tif", dark)
    prepare((tmp_path / "dark",), out=tmp_path / "out")
    assert "dark: intensities hardly differ" in capsys.readouterr().err


def test_a_prepared_volume_pickles_as_its_path(tmp_path: Path) -> None:
    write_fragment(tmp_path / "1", (8, 200, 200))
    store = open_prepared(prepare_fragment(tmp_path / "1", tmp_path))
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).volume, store.volume)


def test_a_damaged_or_foreign_volume_is_refused(fragment: Path, tmp_path: Path) -> None:
    path = prepare_fragment(fragment, tmp_path)
    volume = (path / "volume.npy").read_bytes()
    for damaged in (volume[:-1], volume[:50], b""):
        (path / "volume.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"volume\.npy cannot be read .*prepare the fragment"):
            open_prepared(path)
    np.save(path / "volume.npy", np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"volume\.npy is uint8 \(2, 3, 4\), expected uint8"):
        open_prepared(path)
    (path / "volume.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"volume\.npy"):
        open_prepared(path)
    info = json.loads((path / "volume.json").read_text())
    (path / "volume.json").write_text(json.dumps({**info, "format_version": 99}))
    with pytest.raises(ValueError, match="format_version 99, this program reads 1; delete it"):
        open_prepared(path)


def test_a_partly_labelled_fragment_keeps_where(fragment: Path, tmp_path: Path) -> None:
    area = np.zeros(SHAPE[1:], np.uint8)
    area[10:30] = 255
    Image.fromarray(area).save(fragment / "labelled_area.png")
    path = prepare_fragment(fragment, tmp_path / "out")
    store = open_prepared(path)
    np.testing.assert_array_equal(store.labelled_papyrus, store.papyrus_mask & (area > 0))
    stored = pickle.loads(pickle.dumps(store)).labelled_papyrus
    np.testing.assert_array_equal(stored, store.labelled_papyrus)
    np.testing.assert_array_equal(open_fragment(path).labelled_area, store.labelled_papyrus)
    without = open_prepared(path, with_label=False)
    assert without.labelled_papyrus is without.papyrus_mask
    blind = open_fragment(path, with_label=False)
    assert blind.labelled_area is None
    assert not [file for file in blind.files if "label" in file.name]


def test_a_fragment_is_labelled_everywhere_unless_it_says_otherwise(
    fragment: Path, tmp_path: Path
) -> None:
    assert open_fragment(fragment).labelled_area is None
    store = open_prepared(prepare_fragment(fragment, tmp_path / "out"))
    assert store.labelled_papyrus is store.papyrus_mask


def test_a_bad_labelled_area_is_refused(fragment: Path) -> None:
    area = np.zeros(SHAPE[1:], np.uint8)
    Image.fromarray(area).save(fragment / "labelled_area.png")
    with pytest.raises(ValueError, match=r"labelled_area\.png is all black, so nothing is"):
        open_fragment(fragment)
    Image.fromarray(area[:-1] + np.uint8(255)).save(fragment / "labelled_area.png")
    with pytest.raises(ValueError, match=r"labelled_area\.png is 52 x 41 but the layers are 53"):
        open_fragment(fragment)
    open_fragment(fragment, with_label=False)
