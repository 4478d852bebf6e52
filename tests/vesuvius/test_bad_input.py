"""Bad input, as a user meets it: one line that names the thing and the remedy, exit code 2."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from tests.vesuvius.conftest import NUM_LAYERS
from vesuvius.cli import main

Break = Callable[[Path], object]


def layer(fragment: Path, number: int = 3) -> Path:
    return fragment / "surface_volume" / f"{number:02}.tif"


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_layers(fragment: Path) -> None:
    for path in (fragment / "surface_volume").iterdir():
        path.unlink()


BROKEN_FRAGMENTS: dict[str, tuple[Break, str]] = {
    "missing layer": (lambda f: layer(f).unlink(), "lacks 03.tif"),
    "missing first layer": (lambda f: layer(f, 0).unlink(), "lacks 00.tif"),
    "extra layer": (lambda f: shutil.copy(layer(f), layer(f).with_name("3.tif")), "twice"),
    "stray layer": (
        lambda f: shutil.copy(layer(f), layer(f).with_name("copy.tif")), "not a numbered layer",
    ),
    "layer of another size": (
        lambda f: tifffile.imwrite(layer(f), np.zeros((9, 9), np.uint16)), "must be alike",
    ),
    "layer of another type": (
        lambda f: tifffile.imwrite(layer(f), np.zeros((128, 144), np.uint8)), "must be alike",
    ),
    "truncated layer": (lambda f: cut_in_half(layer(f)), "truncated"),
    "empty folder": (remove_layers, "holds no TIFF layers"),
    "label of another size": (
        lambda f: cv2.imwrite(str(f / "inklabels.png"), np.full((5, 5), 255, np.uint8)),
        "inklabels.png is 5 x 5",
    ),
    "mask of another size": (
        lambda f: cv2.imwrite(str(f / "mask.png"), np.full((5, 5), 255, np.uint8)),
        "mask.png is 5 x 5",
    ),
    "black mask": (
        lambda f: cv2.imwrite(str(f / "mask.png"), np.zeros((128, 144), np.uint8)), "all black",
    ),
    "mask missing": (lambda f: (f / "mask.png").unlink(), "mask.png not found"),
    "damaged label": (lambda f: (f / "inklabels.png").write_text("text"), "not a readable image"),
}  # fmt: skip


@pytest.fixture
def fails(capsys, monkeypatch):
    """Return a function that runs `vesuvius ARGUMENTS` and checks how it fails."""

    def check(*arguments: object, says: str, code: int = 2) -> str:
        monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, arguments)])
        assert main() == code
        captured = capsys.readouterr()
        *notes, line = captured.err.strip().splitlines()
        assert line.startswith("vesuvius: error: "), captured.err
        assert says in line
        assert "Traceback" not in captured.err
        assert not any("error" in note for note in notes)
        return line

    return check


@pytest.mark.parametrize(
    ("command", "case"),
    [
        (command, case)
        for case in BROKEN_FRAGMENTS
        for command in ("prepare", "predict")
        if command == "prepare" or "label" not in case  # predict reads no label
    ],
)
def test_broken_fragment(command, case, fails, fragments, run, tmp_path):
    damage, says = BROKEN_FRAGMENTS[case]
    fragment = shutil.copytree(fragments["1"], tmp_path / "in" / "1")
    damage(fragment)
    inputs = [fragments["2"], fragment] if command == "prepare" else [run, fragment]
    fails(command, *inputs, "--out", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_layer_missing_or_extra_at_the_end(fails, run, fragments, tmp_path):
    fragment = shutil.copytree(fragments["a"], tmp_path / "a")
    layer(fragment, NUM_LAYERS - 1).unlink()
    fails("predict", run, fragment, "--out", tmp_path / "out", says="has 13 layers")
    for number in (NUM_LAYERS - 1, NUM_LAYERS):
        shutil.copy(layer(fragment), layer(fragment, number))
    fails("predict", run, fragment, "--out", tmp_path / "out", says="has 15 layers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "unknown command 'nonsense'"),
        (["prdict"], "perhaps you meant 'predict'"),
        (["train", "nonsense", "--data", "d", "--out", "o"], "nonsense"),
        (["train", "smal", "--data", "d", "--out", "o"], "no 'smal'; perhaps you meant 'small'"),
        (["simulate", "o", "--size", "220"], "--size takes INT INT, not 220; see"),
        (["train", "small", "--data", "d", "--out", "o", "--network.colour", "3"], "colour"),
        (["train", "small", "--data", "none", "--out", "o"], "make it with"),
        (["train", "small", "--out", "o"], "--data"),
        (["train", "small", "--data", "d", "--out", "o", "--training.epochs", "x"], "epochs"),
        (["train", "small", "--data", "d", "--out", "o", "--training.epochs", "0"], "1 or more"),
        (["predict", "none", "none", "--out", "o"], "no such checkpoint"),
        (["prepare", "none", "--out", "o"], "none not found"),
        (["submit", "none", "--out", "o.csv"], "none does not exist or is empty; give the --out"),
    ],
)
def test_unknown_names_and_options(arguments, says, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(*arguments, says=says)
    assert list(tmp_path.iterdir()) == []


def test_a_fragment_or_a_run_is_no_prediction(fails, fragments, run, tmp_path):
    for folder in (fragments["1"], run):
        says = f"{folder} is no prediction; give the --out of `vesuvius predict`"
        fails("submit", folder, "--out", tmp_path / "s.csv", says=says)


def write_prediction(folder: Path, prob: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "prob.tif", prob.astype(np.float32))
    facts = {"name": folder.name, "threshold": 0.5}
    (folder / "provenance.json").write_text(json.dumps(facts))
    return folder


def test_nan_in_a_prediction(fails, tmp_path):
    prob = np.full((20, 30), 0.3)
    prob[7, 11] = np.nan
    folder = write_prediction(tmp_path / "a", prob)
    fails("submit", folder, "--out", tmp_path / "s.csv", says="nan at row 7, column 11")
    assert not (tmp_path / "s.csv").exists()


def test_ids_other_than_the_sample_submission(fails, tmp_path):
    folder = write_prediction(tmp_path / "a", np.eye(20))
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("Id,Predicted\na,1 1\nb,1 1\n")
    options = ["--out", tmp_path / "s.csv", "--sample", sample]
    fails("submit", folder, *options, says="lack ['b'] and add nothing")
    fails("submit", write_prediction(tmp_path / "c", np.eye(9)), *options, says="add ['c']")
    assert not (tmp_path / "s.csv").exists()


def test_outputs_never_replace_or_join_what_is_not_theirs(
    fails, run, fragments, prepared, tmp_path
):
    folder = write_prediction(tmp_path / "a", np.eye(20))
    (tmp_path / "LICENSE").write_text("text")
    fails("submit", folder, "--out", tmp_path / "LICENSE", says="exists and is no submission")
    assert (tmp_path / "LICENSE").read_text() == "text"
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "page.md").write_text("text")
    fails("predict", run, fragments["a"], "--out", docs, says="holds other files")
    options = ["--validation.gap", "16", "--window.num-layers", "8", "--sampling.patch-size", "32"]
    says = "holds other files"
    fails("train", "small", "--data", prepared, "--out", docs, *options, says=says)
    assert [path.name for path in docs.iterdir()] == ["page.md"]


def test_run_that_is_none_or_has_no_finished_epoch(fails, fragments, run, tmp_path):
    out = ["--out", tmp_path / "out"]
    fails("predict", fragments["a"], run, *out, says="is no run folder")
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    fails("predict", tmp_path / "run", fragments["a"], *out, says="has no finished epoch yet")


def test_batch_size_of_nothing(fails, run, fragments, tmp_path):
    out = tmp_path / "out"
    fails("predict", run, fragments["a"], "--out", out, "--batch-size", 0, says="is below 1")
    assert not out.exists()


@pytest.mark.parametrize("threshold", ["0", "1.5", "-1", "nan"])
def test_threshold_out_of_range(threshold, fails, tmp_path):
    folder = write_prediction(tmp_path / "a", np.full((20, 30), 0.3))
    out = tmp_path / "s.csv"
    fails("submit", folder, "--out", out, "--threshold", threshold, says="above 0 and below 1")


def test_full_disk_leaves_the_earlier_submission(fails, tmp_path, monkeypatch):
    folder = write_prediction(tmp_path / "a", np.eye(20))
    earlier = "Id,Predicted\na,1 1\n"
    (tmp_path / "s.csv").write_text(earlier)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vesuvius.submission.rle.encode", full)
    fails("submit", folder, "--out", tmp_path / "s.csv", says="s.csv: No space left on device")
    assert (tmp_path / "s.csv").read_text() == earlier
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_full_disk_while_predicting_names_the_file_and_keeps_what_is_done(
    fails, run, fragments, tmp_path
):
    out = tmp_path / "out"
    options = ["--out", out, "--tile-size", "48", "--stride", "32", "--device", "cpu"]
    write = Path.open

    def full(path, mode="r", *rest, **options):
        if mode == "r+b" and (out / ".journal").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, mode, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", full)
        says = ".prob.partial.tif: No space left on device"
        fails("predict", run, fragments["a"], *options, says=says)
    assert not (out / "prob.tif").exists()
    assert (out / ".journal").exists()


def test_output_that_cannot_be_written(fails, fragments, run, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    says = f"{blocked} is a file; choose a folder to write into"
    fails("prepare", fragments["1"], "--out", blocked, says=says)
    fails("predict", run, fragments["a"], "--out", blocked, says=says)
    prediction = write_prediction(tmp_path / "a", np.eye(20))
    fails("submit", prediction, "--out", blocked / "s.csv", says="file: ")
    assert blocked.read_text() == "not a folder"


def test_resume_with_a_changed_config(fails, prepared, run):
    fails(
        "train", "small", "--data", prepared, "--out", run, "--resume", "--validation.gap", "16",
        "--window.num-layers", "8", "--sampling.patch-size", "32",
        says="cannot be resumed with another configuration",
    )  # fmt: skip


def test_task_out_of_range_and_checkpoint_of_another_model(fails, run, fragments, tmp_path):
    out = ["--out", tmp_path / "out"]
    fails("predict", run, fragments["a"], *out, "--task", "7", says="no task '7'; it has ink")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something else")
    fails("predict", other, fragments["a"], *out, says="damaged or no checkpoint")
