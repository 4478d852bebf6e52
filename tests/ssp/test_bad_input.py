"""What users get wrong, each through the command: one line that says the remedy, exit code 2."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tifffile

from core.terminal import run as run_command
from ssp.cli import COMMANDS
from tests.ssp.cells import SHAPE, prepared, write_cells

# of the run of the fixture
RECIPE = """
    --network.backbone.base-channels 2 --network.backbone.num-stages 1 --patches.size 4 16 16
    --patches.passes-per-epoch 2 --training.epochs 2 --training.batch-size 2
    --training.learning-rate 3e-3 --training.precision no
"""


@pytest.fixture
def command(capsys):
    """Runs a command; returns its exit code and its last line."""

    def run(*arguments) -> tuple[int, str]:
        code = run_command("ssp", "", COMMANDS, list(map(str, arguments)))
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line or "error:" in line for line in lines[:-1])
        return code, lines[-1] if lines else ""

    return run


@pytest.fixture
def cells(tmp_path):
    """A folder of small stacks of two structures and their list."""
    return write_cells(tmp_path / "cells")


def rewrite(path, voxels=None, axes="ZYX", size_um=0.29):
    """Write an image anew, changed."""
    voxels = tifffile.imread(path) if voxels is None else voxels
    sizes = {} if size_um is None else {f"PhysicalSize{axis}": size_um for axis in "ZYX"}
    tifffile.imwrite(path, voxels, ome=True, metadata={"axes": axes, **sizes})


def with_nan(shape):
    """Return voxels of which one is not a number."""
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    voxels[1, 2, 3] = np.nan
    return voxels


IMAGES = {
    "times in place of planes": (
        {"axes": "TYX"},
        "dna-1-signal.tif holds 6 times and none is chosen; give a time",
    ),
    "no voxel size": (
        {"size_um": None},
        "dna-1-signal.tif does not say its voxel size; give it in um with --source-voxel-size",
    ),
    "a voxel that is no number": (
        {"voxels": with_nan(SHAPE)},
        "dna-1-signal.tif channel 0 has mean nan and standard deviation nan and cannot be z-scored",
    ),
    "a constant image": (
        {"voxels": np.full(SHAPE, 7, np.uint16)},
        "has mean 7 and standard deviation 0 and cannot be z-scored; it needs finite values",
    ),
    "a target of another size": (
        {"voxels": np.arange(6 * 20 * 25, dtype=np.uint16).reshape(6, 20, 25)},
        "dna-1-target.tif is 6 x 20 x 24 (Z x Y x X) but its signal",
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_named_with_the_remedy(kind, command, cells, tmp_path):
    changes, said = IMAGES[kind]
    rewrite(cells / "dna-1-signal.tif", **changes)
    code, line = command("prepare", cells, "--out", tmp_path / "data")
    assert code == 2
    assert said in line
    assert not (tmp_path / "data" / "data.json").exists()


def test_axes_that_are_none_are_refused(command, cells, tmp_path):
    for path in cells.glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path))  # says nothing
    code, line = command("prepare", cells, "--out", tmp_path / "data", "--axes", "ZQX")
    assert code == 2
    assert "ZQX" in line
    assert "axes" in line


def test_a_missing_channel_is_refused_with_those_that_exist(command, cells, tmp_path):
    rows = list(csv.DictReader((cells / "list.csv").read_text().splitlines()))
    with (cells / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "channel_signal"])
        writer.writeheader()
        writer.writerows(row | {"channel_signal": "DIC"} for row in rows)
    code, line = command("prepare", cells, "--out", tmp_path / "data")
    assert code == 2
    assert "signal.tif has 1 channel(s)" in line
    assert "there is no 'DIC'; give an index or name" in line


def test_all_missing_files_of_a_list_are_named_at_once(command, cells, tmp_path):
    for name in ("dna-0-signal.tif", "tom20-3-target.tif"):
        (cells / name).unlink()
    code, line = command("prepare", cells, "--out", tmp_path / "data")
    assert code == 2
    assert "2 of 16 images are missing" in line
    assert "dna-0-signal.tif" in line
    assert "tom20-3-target.tif; check the list" in line


def test_a_corrupt_czi_is_named(command, files, run, tmp_path):
    path = files.write_czi(tmp_path / "a.czi", files.noise((1, 2, 3, 40, 30)))
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "dna.csv").write_text("path_czi,channel_signal,channel_target\na.czi,0,1\n")
    for name, source in (("prepare", (tmp_path / "dna.csv",)), ("predict", (run, path))):
        code, line = command(name, *source, "--out", tmp_path / "out")
        assert code == 2
        assert "a.czi cannot be read as CZI" in line
        assert "copy it again" in line


@pytest.mark.parametrize("name", ["predict", "evaluate", "export"])
def test_an_unknown_task_is_answered_with_the_known_ones(name, command, run, cells, data, tmp_path):
    sources = {
        "predict": (cells / "dna-0-signal.tif",),
        "evaluate": ("--data", data),
        "export": (),
    }
    arguments = (name, run, *sources[name], "--task", "golgi", "--out", tmp_path / "out.pt2")
    code, line = command(*arguments)
    assert code == 2
    assert "unknown task golgi" in line
    assert "dna, tom20" in line


def test_a_task_without_training_images_is_named(command, tmp_path):
    data = prepared(tmp_path, splits=("val", "test"))
    code, line = command("train", "repmode", "--data", data, "--out", tmp_path / "run")
    assert code == 2
    assert "has no training image of dna, tom20; add images of it" in line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_tasks_is_neither_scored_nor_resumed(command, run, tmp_path):
    others = prepared(tmp_path / "others", tasks=("zo1",))
    code, line = command("evaluate", run, "--data", others, "--out", tmp_path / "scores")
    assert code == 2
    assert "knows dna, tom20 and" in line
    assert "has zo1; give data of a task that the model knows" in line
    code, line = command(
        "train", "repmode", "--data", others, "--out", run, "--resume", *RECIPE.split()
    )
    assert code == 2
    assert "cannot be resumed with another configuration: description.tasks" in line


def test_an_image_smaller_than_a_patch_works(command, run, tmp_path):
    path = tmp_path / "small.tif"
    rewrite(path, np.random.default_rng(0).integers(0, 4000, (3, 9, 10), dtype=np.uint16))
    code, _ = command("predict", run, path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert tifffile.imread(tmp_path / "out" / "tom20.ome.tif").shape == (3, 9, 10)
