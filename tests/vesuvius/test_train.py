"""Training of ink models: from prepared volumes to a run folder, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.checkpoint import WEIGHTS, load
from core.metrics import ProbabilityHistogram
from core.training import FitResult
from tests.vesuvius.conftest import NUM_LAYERS, tiny_recipe, write_fragment
from vesuvius.folds import Piece
from vesuvius.inkmap import load_model
from vesuvius.prepare import prepare
from vesuvius.recipes import RECIPES, LossConfig, ValidationConfig, WindowConfig
from vesuvius.sampling import points_csv, sample_fragments
from vesuvius.train import Train, note_narrow_gap, open_volumes, train


def test_run_folder_holds_what_a_user_expects(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {
        "config.json", "metrics.jsonl", "provenance.json",
        "checkpoints/best.safetensors", "checkpoints/last.safetensors",
        "previews/epoch_001_1.png", "previews/epoch_002_2.png",
    } <= names  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train"]["loss"] < rows[0]["train"]["loss"]
    preview = cv2.imread(str(run / "previews" / "epoch_002_1.png"), cv2.IMREAD_GRAYSCALE)
    assert preview.max() == 255


def stored_pieces(run: Path) -> list[Piece]:
    config = json.loads((run / "config.json").read_text())
    return [Piece(**piece) for piece in config["description"]["pieces"]]


def test_no_patch_comes_near_a_validation_piece(run, prepared, tmp_path, monkeypatch):
    held_out = {p.fragment: p for p in stored_pieces(run) if p.role == "validation"}
    assert set(held_out) == {"1", "2"}
    trained = []

    def fit(model, dataset, *_):
        trained.append(dataset)

    monkeypatch.setattr("vesuvius.train.fit", fit)
    recipe = tiny_recipe()
    train(prepared, tmp_path / "run", recipe)
    gap, size = recipe.validation.gap, recipe.sampling.patch_size
    for source in trained[0].sources:
        piece = held_out[source.volume.name]
        y, x = source.points.T
        distance = np.maximum(piece.y_start - (y + size), piece.x_start - (x + size))
        assert len(source.points)
        assert (distance >= gap).all()


def test_checkpoint_describes_itself(run):
    _, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    assert meta["description"]["tasks"] == ["ink"]
    model = load_model(run)
    assert model.recipe == tiny_recipe()
    assert model.num_layers == NUM_LAYERS
    assert 0 < model.threshold < 1


def test_threshold_is_that_of_the_best_epoch(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["validation"]["f05"])
    assert load_model(run).threshold == best["validation"]["threshold"]
    assert ProbabilityHistogram().best_threshold()[1] == 0


def test_whole_fragment_can_be_held_out(prepared, tmp_path):
    recipe = tiny_recipe()
    recipe = replace(
        recipe,
        validation=replace(recipe.validation, fragment="2"),
        training=replace(recipe.training, epochs=1, warmup_epochs=0),
    )
    train(prepared, tmp_path / "run", recipe)
    roles = {piece.fragment: piece.role for piece in stored_pieces(tmp_path / "run")}
    assert roles == {"1": "train", "2": "validation"}


def test_what_is_not_labelled_is_neither_learned_nor_scored(tmp_path, monkeypatch):
    """Two fragments that differ in their label where it does not count give the same run."""
    results = []
    for name, wrong in (("kept", 0), ("wrong", 255)):
        root = tmp_path / name
        folder = write_fragment(root / "1", 0)
        label = cv2.imread(str(folder / "inklabels.png"), cv2.IMREAD_GRAYSCALE)
        area = np.full_like(label, 255)
        area[40:70, :] = 0
        label[40:70, 20:140] = wrong
        cv2.imwrite(str(folder / "inklabels.png"), label)
        cv2.imwrite(str(folder / "labelled_area.png"), area)
        prepare((folder,), out=root)
        recipe = tiny_recipe()
        once = replace(recipe.training, epochs=1, warmup_epochs=0)
        result = train(root, root / "run", replace(recipe, training=once))
        row = json.loads((root / "run" / "metrics.jsonl").read_text())
        results.append((result.best_score, row["train"], row["validation"]))
    assert results[0] == results[1]


def test_the_windows_of_training_are_kept_with_their_order(prepared, tmp_path, capsys):
    recipe = tiny_recipe()
    window = replace(recipe.window, reversed=("2",))
    once = replace(recipe.training, epochs=1, warmup_epochs=0)
    train(prepared, tmp_path / "run", replace(recipe, window=window, training=once))
    windows = load_model(tmp_path / "run").windows
    assert {name: seen["is_reversed"] for name, seen in windows.items()} == {"1": False, "2": True}
    assert windows["1"]["sheet_place"] == windows["2"]["sheet_place"] == 4
    said = capsys.readouterr().err
    assert re.search(r"^2: layers 4\.\.11 of 14, reversed$", said, re.M)
    wrong = replace(recipe, window=replace(window, reversed=("2", "x")))
    with pytest.raises(ValueError, match=r"window\.reversed names x, the volumes are 1, 2"):
        train(prepared, tmp_path / "other", wrong)


def test_a_stripe_can_be_held_out_and_is_written_down(prepared, tmp_path, capsys):
    recipe = tiny_recipe()
    validation = replace(recipe.validation, fragment="2", num_stripes=2, stripe=1)
    once = replace(recipe.training, epochs=1, warmup_epochs=0)
    train(prepared, tmp_path / "run", replace(recipe, validation=validation, training=once))
    stored = json.loads((tmp_path / "run" / "folds.json").read_text())
    pieces = [Piece(**piece) for piece in stored["pieces"]]
    assert pieces == stored_pieces(tmp_path / "run")
    assert [(p.fragment, p.role) for p in pieces] == [
        ("1", "train"), ("2", "train"), ("2", "validation"),
    ]  # fmt: skip
    assert stored["gap"] == 16
    said = capsys.readouterr().err
    assert "validation.gap 16 is less than a patch and its halo (64 px)" in said
    assert "1: of its papyrus 100% is trained on, 0% held out, 0% lost" in said


def test_the_command_says_where_the_best_model_is(monkeypatch, tmp_path, capsys):
    result = FitResult(0.5, 3, tmp_path / "best.safetensors", epochs=4, steps=9)
    monkeypatch.setattr("vesuvius.train.train", lambda *_: result)
    assert Train(tmp_path, tmp_path / "run", tiny_recipe())() is result
    assert capsys.readouterr().err == f"best F0.5 0.500, of epoch 3: {result.best_path}\n"


def test_the_gap_of_every_recipe_is_wide_enough(capsys):
    for make in RECIPES.values():
        note_narrow_gap(make().validation.gap, make().sampling.patch_size)
    assert not capsys.readouterr().err


def test_bad_data_is_named_before_anything_is_written(prepared, fragments, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; make it with"):
        train(tmp_path / "none", out, tiny_recipe())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no prepared volume"):
        train(tmp_path / "empty", out, tiny_recipe())
    recipe = tiny_recipe()
    with pytest.raises(ValueError, match="40 layers are wanted but the volume has 14"):
        train(prepared, out, replace(recipe, window=replace(recipe.window, num_layers=40)))
    held_out = replace(recipe, validation=replace(recipe.validation, fragment="9"))
    with pytest.raises(ValueError, match="cannot hold out '9'"):
        train(prepared, out, held_out)
    assert not out.exists()


def changed_copy(fragment: Path, target: Path) -> Path:
    shutil.copytree(fragment, target)
    return target


def test_volumes_of_different_depth_are_refused(fragments, prepared, tmp_path):
    shallow = changed_copy(fragments["1"], tmp_path / "3")
    (shallow / "surface_volume" / f"{NUM_LAYERS - 1:02}.tif").unlink()
    data = shutil.copytree(prepared, tmp_path / "data")
    prepare((shallow,), out=tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "3.vol", data / "3.vol")
    with pytest.raises(ValueError, match=r"differ in their number of layers \(1 14, 2 14, 3 13\)"):
        train(tmp_path / "data", tmp_path / "run", tiny_recipe())


def test_training_without_ink_is_refused(fragments, tmp_path):
    bare = changed_copy(fragments["1"], tmp_path / "bare")
    cv2.imwrite(str(bare / "inklabels.png"), np.zeros((128, 144), np.uint8))
    prepare((bare,), out=tmp_path / "data")
    with pytest.raises(ValueError, match="no ink in the training label of bare"):
        train(tmp_path / "data", tmp_path / "run", tiny_recipe())
    unlabelled = changed_copy(fragments["1"], tmp_path / "unlabelled")
    (unlabelled / "inklabels.png").unlink()
    prepare((unlabelled,), out=tmp_path / "data2")
    with pytest.raises(ValueError, match="no ink label"):
        train(tmp_path / "data2", tmp_path / "run", tiny_recipe())
    assert not (tmp_path / "run").exists()


def test_what_a_killed_prepare_leaves_behind_does_not_block_training(prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    (data / ".3.partial.vol").mkdir()
    assert set(open_volumes(data)) == {"1", "2"}


def test_held_out_pieces_that_cannot_be_scored_are_refused(fragments, prepared, tmp_path):
    recipe = tiny_recipe()
    recipe = replace(recipe, validation=replace(recipe.validation, fragment="bare"))
    bare = changed_copy(fragments["1"], tmp_path / "bare")
    (bare / "inklabels.png").unlink()
    data = shutil.copytree(prepared, tmp_path / "data")
    prepare((bare,), out=data)
    with pytest.raises(ValueError, match=r"piece of bare .* has no ink label and cannot be scored"):
        train(data, tmp_path / "run", recipe)
    cv2.imwrite(str(bare / "inklabels.png"), np.zeros((128, 144), np.uint8))
    data = shutil.copytree(prepared, tmp_path / "data2")
    prepare((bare,), out=data)
    with pytest.raises(ValueError, match="no ink in validation piece of bare"):
        train(data, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (partial(WindowConfig, num_layers=0), "window.num_layers is 0; it is at least 1"),
        (partial(WindowConfig, z_shift=-1), "window.z_shift is -1; it is at least 0"),
        (partial(WindowConfig, z_start=-2), "window.z_start is -2; it is at least 0"),
        (partial(WindowConfig, percentiles=(9.0, 9.0)), "window.percentiles (9.0, 9.0) are not"),
        (partial(LossConfig, smoothing=0.7), "smoothing is 0.7, allowed"),
        (partial(LossConfig, dice_weight=-2), "weight of dice is -2, allowed"),
        (partial(ValidationConfig, gap=-100), "validation.gap is -100; it is at least 0"),
        (partial(ValidationConfig, num_stripes=1), "cannot be held out; take 2 or more stripes"),
        (partial(ValidationConfig, num_stripes=2, stripe=2), "stripe 2 of validation.num_stripes"),
        (partial(ValidationConfig, stripe=1), "stripe 1 of validation.num_stripes 0"),
        (partial(ValidationConfig, fraction=1.0), "validation.fraction is 1.0"),
        (partial(ValidationConfig, stride=200), "stride 200 is above validation.tile_size 128"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(config, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        config()


def test_resume_with_a_changed_recipe_is_refused(run, prepared):
    recipe = tiny_recipe()
    changed = replace(recipe, sampling=replace(recipe.sampling, num_void=5))
    with pytest.raises(ValueError, match=r"num_void was 4, now 5"):
        train(prepared, run, changed, resume=True)
    with pytest.raises(ValueError, match="--resume or choose another --out"):
        train(prepared, run, recipe)


@pytest.mark.parametrize("name", ["volume.npy", "ink_label.npy", "papyrus_mask.npy"])
def test_data_changed_under_a_half_done_run_are_noticed(run, prepared, tmp_path, name):
    """One voxel or pixel in the last row of one volume, time of the file untouched."""
    data = shutil.copytree(prepared, tmp_path / "data")
    train(data, run, tiny_recipe(), resume=True)  # a copy is as good
    path = data / "2.vol" / name
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=r"resumed with another .*description\.data_sha256\.2 was"):
        train(data, run, tiny_recipe(), resume=True)


def test_the_points_of_a_run_are_kept_and_follow_from_the_seed(run, prepared, tmp_path):
    stored = (run / "points.csv").read_text()
    recipe = tiny_recipe()
    rows = [line.split(",") for line in stored.splitlines()]
    assert rows[0] == ["fragment", "y", "x"]
    config = json.loads((run / "config.json").read_text())
    assert len(rows) - 1 == config["samples_per_epoch"]
    assert config["description"]["points_sha256"] == hashlib.sha256(stored.encode()).hexdigest()
    volumes = open_volumes(prepared)
    points = sample_fragments(volumes, stored_pieces(run), recipe.sampling, recipe.training.seed)
    assert points_csv(points) == stored
    other = sample_fragments(volumes, stored_pieces(run), recipe.sampling, seed=99)
    assert points_csv(other) != stored
