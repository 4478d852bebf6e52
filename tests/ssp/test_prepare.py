"""From lists of microscope images to prepared data."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import zoom

from ssp import prepare as module
from ssp.lists import SPLITS
from ssp.prepare import prepare
from ssp.prepared import open_data, volume_path
from ssp.readers import open_stack
from ssp.split import draw_split

SIZE_UM = (0.29, 0.145, 0.145)
NAMES = ("TL", "A", "B")


@pytest.fixture
def cells(files, tmp_path):
    """Six OME-TIFFs of three channels, with a list that uses them for two tasks."""
    folder = tmp_path / "cells"
    folder.mkdir()
    lines = ["path_czi,channel_signal,channel_target,task"]
    for i in range(6):
        voxels = files.noise((3, 5, 20, 30), seed=i) // 4 + 1000 * i
        files.write_ome_tiff(
            folder / f"{i}.ome.tif", voxels.astype(np.uint16), "CZYX", SIZE_UM, NAMES
        )
        lines += [f"{i}.ome.tif,TL,{name},{name}" for name in "AB"]
    (folder / "list.csv").write_text("\n".join(lines))
    return folder


def stored(folder):
    """Return name and time of writing of each stored volume."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "volumes").glob("*.npy")}


def test_volumes_are_z_scored_and_resampled_and_told_of(cells, tmp_path):
    prepare((cells,), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    assert data.tasks == ("A", "B")
    assert len(data.images) == 12
    image = next(image for image in data.images if (image.task, image.name) == ("B", "3"))
    voxels = open_stack(cells / "3.ome.tif").read(2)
    expected = (voxels - voxels.mean()) / voxels.std()
    expected = zoom(expected, (1, 0.5, 0.5), order=3, mode="nearest")
    target = image.target.open()
    assert (target.shape, target.dtype) == (image.target.shape, np.float16)
    assert target.shape == (5, 10, 15)
    assert not target.flags.writeable
    np.testing.assert_allclose(target, expected, rtol=1e-3, atol=1e-4)
    assert image.target.voxel_size_um == pytest.approx((0.29, 0.29, 0.29))
    assert image.target.source_voxel_size_um == pytest.approx(SIZE_UM)
    assert image.target.source_shape == (5, 20, 30)
    assert image.target.channel == 2
    assert image.target.source == str(cells / "3.ome.tif")
    assert not image.is_2d_target
    original = image.target.to_original(target)
    expected = zoom(voxels.astype(float), (1, 0.5, 0.5), order=3, mode="nearest")
    np.testing.assert_allclose(original, expected, atol=5e-4 * 16384 * 4)


def test_half_precision_adds_an_error_far_below_that_of_any_prediction(files, tmp_path):
    voxels = files.noise((1, 8, 64, 64))
    voxels[0, 0, 0, 0] = 65535
    folder = tmp_path / "dna"
    for kind in ("signal", "target"):
        (folder / kind).mkdir(parents=True)
        files.write_ome_tiff(folder / kind / "a.tif", voxels, "CZYX", SIZE_UM)
    prepare((tmp_path,), out=tmp_path / "data", factor=(1, 1, 1))
    exact = (voxels[0] - voxels[0].mean()) / voxels[0].std()
    stored = open_data(tmp_path / "data").images[0].target.open()
    assert np.mean((stored - exact) ** 2) < 1e-6  # the paper's errors are about 0.5


def test_a_volume_that_tasks_share_is_stored_once(cells, tmp_path):
    prepare((cells,), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    assert len(stored(tmp_path / "data")) == 6 * 3
    by_task = [{i.name: i.signal.path for i in data.images if i.task == task} for task in "AB"]
    assert by_task[0] == by_task[1]


def test_an_image_is_on_one_side_for_all_tasks_and_split_csv_gives_the_same_again(cells, tmp_path):
    prepare((cells,), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    expected = draw_split([str(i) for i in range(6)], 0.25, 0.1, 42)
    for task in "AB":
        assert {s: sorted(i.name for i in data.select(s, [task])) for s in SPLITS} == {
            s: sorted(names) for s, names in expected.items()
        }
    prepare((tmp_path / "data" / "split.csv",), out=tmp_path / "again", seed=5, split=(0.5, 0.5))
    again = open_data(tmp_path / "again")
    assert {(i.name, i.task, i.split) for i in again.images} == {
        (i.name, i.task, i.split) for i in data.images
    }
    prepare((cells,), out=tmp_path / "other", seed=5)
    other = open_data(tmp_path / "other")
    assert [(i.name, i.split) for i in other.images] != [(i.name, i.split) for i in data.images]


def test_an_interrupted_command_keeps_what_is_finished(cells, tmp_path, monkeypatch):
    out, inner, calls = tmp_path / "data", module.standardize, []

    def fail_at_the_fourth(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return inner(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "standardize", fail_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            prepare((cells,), out=out)
    with pytest.raises(FileNotFoundError, match="holds no finished data"):
        open_data(out)
    before = stored(out)
    assert len(before) == 3
    prepare((cells,), out=out)
    after = stored(out)
    assert {name: after[name] for name in before} == before
    prepare((cells,), out=tmp_path / "whole")
    for path in (out / "volumes").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "whole" / "volumes" / path.name).read_bytes()
    assert (out / "data.json").read_text() == (tmp_path / "whole" / "data.json").read_text()


def test_finished_data_are_left_alone_and_others_refused(cells, tmp_path, capsys):
    out = tmp_path / "data"
    prepare((cells,), out=out)
    before = stored(out)
    prepare((cells,), out=out)
    assert stored(out) == before
    assert "is already prepared" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data was prepared with other images, settings; choose"):
        prepare((cells,), out=out, voxel_size=0.2)
    (out / "data.json").unlink()
    prepare((cells,), out=out, voxel_size=0.2)
    assert open_data(out).images[0].signal.shape == (7, 14, 22)
    assert len(stored(out)) == 18  # those of the other size are gone


def test_the_order_and_the_official_factor_are_options(cells, tmp_path):
    prepare((cells,), out=tmp_path / "1", factor=(1, 0.37241, 0.37241))
    prepare((cells,), out=tmp_path / "2", factor=(1, 0.37241, 0.37241), order="resample-zscore")
    first, second = (open_data(tmp_path / name).images[0].signal for name in "12")
    assert first.shape == second.shape == (5, 7, 11)
    values = second.open().astype(float)
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3
    assert abs(first.open().astype(float).std() - 1) > 0.01
    np.testing.assert_allclose(
        first.to_original(first.open()), second.to_original(second.open()), rtol=0.01
    )


def test_a_target_may_be_one_plane_for_all_planes_of_its_signal(files, tmp_path):
    voxels = files.noise((5, 20, 30))
    for kind, part in (("signal", voxels), ("target", voxels.max(axis=0))):
        (tmp_path / "dna" / kind).mkdir(parents=True)
        axes = "ZYX"[-part.ndim :]
        files.write_ome_tiff(tmp_path / "dna" / kind / "a.tif", part, axes, SIZE_UM)
    prepare((tmp_path,), out=tmp_path / "data")
    image = open_data(tmp_path / "data").images[0]
    assert image.is_2d_target
    assert (image.signal.shape, image.target.shape) == ((5, 10, 15), (10, 15))
    assert image.target.open().shape == (10, 15)


def test_a_single_plane_may_be_the_signal_too(files, tmp_path):
    for kind in ("signal", "target"):
        (tmp_path / "dna" / kind).mkdir(parents=True)
        files.write_ome_tiff(
            tmp_path / "dna" / kind / "a.tif", files.noise((20, 30)), "YX", SIZE_UM
        )
    prepare((tmp_path,), out=tmp_path / "data")
    image = open_data(tmp_path / "data").images[0]
    assert image.is_2d_target
    assert (image.signal.shape, image.target.shape) == ((1, 10, 15), (10, 15))


def test_several_times_of_one_file_are_several_images(files, tmp_path):
    files.write_czi(tmp_path / "a.czi", files.noise((3, 2, 2, 20, 30)), SIZE_UM)
    lines = ["path_czi,channel_signal,channel_target,time", *(f"a.czi,0,1,{t}" for t in range(3))]
    (tmp_path / "dna.csv").write_text("\n".join(lines))
    prepare((tmp_path / "dna.csv",), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    assert data.tasks == ("dna",)
    assert sorted(image.name for image in data.images) == ["a-t0", "a-t1", "a-t2"]
    assert len({image.signal.path for image in data.images}) == 3


def test_the_real_czi_is_prepared(sample_data, tmp_path):
    path = next((sample_data / "two_channel_czi").glob("*.czi"))
    lines = ["path_czi,channel_signal,channel_target,time"]
    lines += [f"{path},LED555,LED470,{time}" for time in range(3)]
    (tmp_path / "spindle.csv").write_text("\n".join(lines))
    prepare((tmp_path / "spindle.csv",), out=tmp_path / "data")
    image = open_data(tmp_path / "data").images[0]
    assert image.signal.shape == image.target.shape == (6, 53, 75)
    values = image.target.open().astype(float)
    assert abs(values.mean()) < 0.02
    assert 0.9 < values.std() < 1.05


def change(files, folder, kind):
    """Spoil one of the images of a list."""
    path = folder / "3.ome.tif"
    voxels = files.noise((3, 5, 20, 30))
    if kind == "nan":
        voxels = voxels.astype(np.float32)
        voxels[2, 1, 2, 3] = np.nan
    if kind == "constant":
        voxels[2] = 7
    if kind == "channel":
        return files.write_ome_tiff(path, voxels, "CZYX", SIZE_UM, ("TL", "A", "C"))
    if kind == "axes":
        return files.write_ome_tiff(path, voxels, "TZYX", SIZE_UM)
    if kind == "damaged":
        return path.write_bytes(path.read_bytes()[:3000])
    return files.write_ome_tiff(path, voxels, "CZYX", None if kind == "size" else SIZE_UM, NAMES)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("channel", r"3\.ome\.tif has 3 channel\(s\), 0 'TL', 1 'A', 2 'C', and there is no 'B'"),
        ("axes", r"3\.ome\.tif holds 3 times and none is chosen; give a time"),
        ("size", r"3\.ome\.tif does not say its voxel size; .*--source-voxel-size Z Y X, or --f"),
        ("nan", r"3\.ome\.tif channel 2 has mean nan .* cannot be z-scored; it needs finite"),
        ("constant", r"3\.ome\.tif channel 2 has mean 7 and standard deviation 0 and cannot"),
        ("damaged", r"3\.ome\.tif cannot be read as TIFF"),
    ],
)
def test_a_bad_image_is_one_line_that_names_it(files, cells, tmp_path, kind, said):
    change(files, cells, kind)
    with pytest.raises(ValueError, match=said) as error:
        prepare((cells,), out=tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data" / "data.json").exists()


def test_a_voxel_size_that_a_file_does_not_say_may_be_given(files, cells, tmp_path):
    change(files, cells, "size")
    prepare((cells,), out=tmp_path / "data", source_voxel_size=SIZE_UM)
    data = open_data(tmp_path / "data")
    assert {image.signal.shape for image in data.images} == {(5, 10, 15)}
    assert data.settings["source_voxel_size"] == list(SIZE_UM)
    prepare((cells,), out=tmp_path / "raw", factor=(1, 1, 1))
    assert open_data(tmp_path / "raw").images[0].signal.shape == (5, 20, 30)


@pytest.mark.parametrize(
    ("shape", "size_um", "said"),
    [
        (
            (5, 20, 31),
            SIZE_UM,
            r"target/a\.tif is 5 x 20 x 31 \(Z x Y x X\) but its signal .* is 5 x",
        ),
        ((4, 20, 30), SIZE_UM, r"target/a\.tif is 4 x 20 x 30 .* as many planes, or one"),
        (
            (5, 20, 30),
            (0.29, 0.1, 0.1),
            r"target/a\.tif has pixels of \(0\.1, 0\.1\) um but its sig",
        ),
    ],
)
def test_a_target_of_another_size_is_refused(files, tmp_path, shape, size_um, said):
    for kind, of, size in (("signal", (5, 20, 30), SIZE_UM), ("target", shape, size_um)):
        (tmp_path / "dna" / kind).mkdir(parents=True)
        files.write_ome_tiff(tmp_path / "dna" / kind / "a.tif", files.noise(of), "ZYX", size)
    with pytest.raises(ValueError, match=said):
        prepare((tmp_path,), out=tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"voxel_size": 0}, "--voxel-size 0 must be above 0"),
        ({"factor": (1, -1, 1)}, "--factor 1 -1 1 must be above 0"),
        ({"factor": (1, 1, 1), "source_voxel_size": (1, 1, 1)}, "both say how to resample"),
        ({"split": (1.0, 0.1)}, r"--split 1\.0 0\.1 must be parts"),
        ({"seed": -1}, "--seed -1 is outside"),
        ({"draw": ("C",)}, "no task C to draw; there are A, B"),
    ],
)
def test_options_out_of_range_are_refused(cells, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        prepare((cells,), out=tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_found_before_the_work(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="GiB free but"):
        prepare((cells,), out=tmp_path / "data")


def test_damaged_data_are_named(cells, tmp_path):
    prepare((cells,), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    path = data.images[0].signal.path
    assert path == volume_path(tmp_path / "data", path.stem)
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"is float64 \(3, 3\), expected float16 \(5, 10, 15\)"):
        data.images[0].signal.open()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        data.images[0].signal.open()
    with pytest.raises(ValueError, match=r"unknown task C; .* has A, B"):
        data.select("train", ["C"])
    record = json.loads((tmp_path / "data" / "data.json").read_text())
    (tmp_path / "data" / "data.json").write_text(json.dumps({**record, "format_version": 0}))
    with pytest.raises(ValueError, match="has format_version 0, this program reads 1"):
        open_data(tmp_path / "data")


def test_the_written_list_says_what_is_where(cells, tmp_path):
    prepare((cells,), out=tmp_path / "data")
    with (tmp_path / "data" / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[0]["path_signal"] == rows[0]["path_target"]
    assert (rows[0]["task"], rows[0]["channel_signal"], rows[0]["split"]) == ("A", "TL", "train")
