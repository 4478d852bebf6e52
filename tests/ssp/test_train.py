"""Training of cell networks: from prepared data to a run folder, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from core.checkpoint import TRAINING_STATE, load
from core.terminal import run as run_command
from ssp.cli import COMMANDS
from ssp.dataset import CellPatches
from ssp.model import TaskFacts, load_model
from ssp.networks.registry import METHODS
from ssp.prepared import open_data
from ssp.train import Passes, cell_loss, train
from ssp.training_images import TrainingImages
from tests.ssp.cells import TASKS, prepared, tiny_recipe


def test_a_run_folder_holds_what_a_user_expects(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {
        "config.json", "metrics.jsonl", "provenance.json",
        "checkpoints/best.safetensors", "checkpoints/last.safetensors",
        "previews/epoch_001_dna.png", "previews/epoch_002_tom20.png",
    } <= names  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        found = row["validation"]
        assert row["score"] == -found["mse"]
        assert found["mse"] == pytest.approx((found["mse_dna"] + found["mse_tom20"]) / 2)
    preview = cv2.imread(str(run / "previews" / "epoch_002_dna.png"), cv2.IMREAD_GRAYSCALE)
    assert preview.shape == (20, 3 * 24 + 2 * 8)  # signal, target and prediction
    assert np.ptp(preview[:, :24]) > 200


def test_the_model_of_a_run_knows_what_it_was_trained_on(run, data):
    model = load_model(run)
    assert model.tasks == TASKS
    assert model.recipe == tiny_recipe()
    assert model.tile == (4, 16, 16)
    assert model.voxel_size_um == pytest.approx((0.29, 0.29, 0.29))
    targets = [image.target for image in open_data(data).select("train", ("dna",))]
    means = [np.mean([t.mean for t in targets]), np.mean([t.std for t in targets])]
    assert model.facts["dna"] == TaskFacts(*means, len(targets))


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(run, data, tmp_path):
    class Stopped(Exception):
        pass

    calls = []

    def stop(model, batch):
        calls.append(batch)
        if len(calls) == 6:  # in the second epoch of 4 steps
            raise Stopped
        return cell_loss(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssp.train.cell_loss", stop)
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", tiny_recipe())
    train(data, tmp_path / "run", tiny_recipe(), resume=True)
    (whole, _), (resumed, _) = (
        load(path / "checkpoints" / "last.safetensors", TRAINING_STATE)
        for path in (run, tmp_path / "run")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_passes_draw_each_image_once_and_anew(data):
    prepared_data = open_data(data)
    patches = CellPatches(prepared_data.select("train"), TASKS, (4, 16, 16))
    passes = Passes(patches, 3)
    assert len(passes) == 3 * len(patches)
    drawn = [passes[1, index] for index in range(len(passes))]
    for number in range(3):
        for index in range(len(patches)):
            found, wanted = drawn[number * len(patches) + index], patches[3 + number, index]
            assert torch.equal(found["x"], wanted["x"])
    assert not torch.equal(drawn[0]["x"], drawn[len(patches)]["x"])


def test_voxels_beyond_an_image_do_not_count_in_the_loss():
    target = torch.zeros(1, 1, 2, 2, 2)
    valid = torch.zeros_like(target)
    valid[0, 0, 0, 0, 0] = 1
    batch = {"x": target + 3.0, "task": torch.zeros(1), "label": target, "valid": valid}
    loss, _ = cell_loss(lambda x, task: torch.where(valid > 0, x, 100.0), batch)
    assert loss == 9


@pytest.mark.parametrize("method", [name for name in METHODS if name != "repmode"])
def test_every_method_trains(method, data, tmp_path):
    recipe = tiny_recipe(method, epochs=1)
    recipe = replace(recipe, patches=replace(recipe.patches, passes_per_epoch=1))
    train(data, tmp_path / "run", recipe)
    assert load_model(tmp_path / "run").recipe == recipe


def test_an_image_smaller_than_a_patch_is_trained_on(data, tmp_path):
    recipe = tiny_recipe(epochs=1)
    recipe = replace(recipe, patches=replace(recipe.patches, size=(8, 32, 32), passes_per_epoch=1))
    result = train(data, tmp_path / "run", recipe)
    assert result.steps == 2


def test_a_map_is_trained_on_whole_stacks_once_the_network_is_told(tmp_path):
    data = prepared(tmp_path, is_map=True)
    recipe = tiny_recipe(epochs=1)
    with pytest.raises(ValueError, match=r"projection --patches\.size 6 16 16"):
        train(data, tmp_path / "run", recipe)
    backbone = replace(recipe.network.backbone, target="projection")
    recipe = replace(
        recipe,
        network=replace(recipe.network, backbone=backbone),
        patches=replace(recipe.patches, size=(6, 16, 16)),
    )
    train(data, tmp_path / "run", recipe)
    model = load_model(tmp_path / "run")
    assert (model.target, model.num_layers) == ("projection", 6)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("val", "val", "test"), "no training image of dna, tom20; add images of it"),
        (("train", "train", "test"), "no validation image, so the best network cannot"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(splits, message, tmp_path):
    data = prepared(tmp_path, splits=splits)
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run", tiny_recipe())
    assert not (tmp_path / "run").exists()


def test_images_are_told_apart_by_their_hash(data, tmp_path):
    def of(folder):
        return TrainingImages(open_data(folder), TASKS).sha256

    assert of(data) == of(data)
    assert of(data) != of(prepared(tmp_path, splits=("train", "val", "val", "test")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["unet", "--data", "d", "--out", "o"], "unet"),
        (["repmode", "--data", "nowhere", "--out", "o"], "holds no finished data"),
        (["repmode", "--data", "d", "--out", "o", "--training.batch-size", "0"], "batch_size is 0"),
    ],
)
def test_a_wrong_command_line_is_one_line(options, message, capsys):
    assert run_command("ssp", "", COMMANDS, ["train", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
