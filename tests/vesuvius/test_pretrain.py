"""Pretraining on papyrus without labels, and training that starts from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from core.checkpoint import TRAINING_STATE, WEIGHTS, load
from core.files import read_json, write_json
from core.gatrep import TaskGroups
from core.masked_autoencoder import MaskConfig
from core.training import _train_epoch
from tests.vesuvius.conftest import tiny_recipe
from tests.vesuvius.test_every_recipe import stopping_after_1
from vesuvius.folds import Piece
from vesuvius.inkmap import load_model
from vesuvius.masked_patches import HiddenValidator, MaskedPatches
from vesuvius.networks.pretrained import open_pretrained, origin
from vesuvius.networks.registry import build_network, load_pretrained
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.prepare import prepare
from vesuvius.pretrain import PretrainingRecipe, build_autoencoder, pretrain, pretraining_of
from vesuvius.recipes import RECIPES, InkRecipe, small
from vesuvius.train import open_volumes, train


def tiny_pretraining(**changes) -> PretrainingRecipe:
    recipe = replace(pretraining_of(tiny_recipe()), num_patches=8)
    return replace(recipe, training=replace(recipe.training, batch_size=8), **changes)


def once(recipe):
    """Return a recipe with one epoch."""
    return replace(recipe, training=replace(recipe.training, epochs=1, warmup_epochs=0))


@pytest.fixture(scope="module")
def autoencoder(prepared, tmp_path_factory) -> Path:
    """Run folder of the tiny pretraining."""
    out = tmp_path_factory.mktemp("pretraining") / "run"
    pretrain(prepared, out, tiny_pretraining())
    return out


def network_of(recipe: InkRecipe, num_tasks: int = 1):
    return build_network(recipe.network, recipe.window.num_layers, num_tasks)


def test_a_run_tells_how_well_it_tells_what_was_hidden(autoencoder):
    rows = [json.loads(line) for line in (autoencoder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train"]["loss"] < rows[0]["train"]["loss"]
    assert all(row["score"] == -row["validation"]["error"] < 0 for row in rows)
    preview = cv2.imread(str(autoencoder / "previews" / "epoch_002_2.png"), cv2.IMREAD_GRAYSCALE)
    # truth, seen, told: a gap of 8 between them, the view from the side below
    width = (preview.shape[1] - 16) // 3
    columns = [preview[:, left : left + width] for left in range(0, 3 * width, width + 8)]
    assert len(columns) == len({column.tobytes() for column in columns}) == 3


def test_metrics_are_those_of_the_best_constant_and_of_the_truth(prepared):
    """Nothing is explained by the best constant, everything by the truth."""
    recipe = tiny_pretraining()
    patches = made_patches(prepared, recipe)[0]

    class Says(torch.nn.Module):
        def __init__(self, volumes) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.volumes = volumes

        def forward(self, x, task):
            return self.volumes[: len(x)]

    x = torch.stack([patches[0, i]["x"] for i in range(len(patches))])
    hidden = torch.stack([patches[0, i]["hidden"] for i in range(len(patches))])
    assert len(patches) <= 8
    validator = HiddenValidator({"1": patches}, recipe.mask)
    truth, mean = validator(Says(x)), validator(Says(torch.full_like(x, x[hidden].mean())))
    assert (truth.score, truth.metrics["explained"]) == (0.0, 1.0)
    assert mean.metrics["explained"] == pytest.approx(0, abs=1e-5)
    assert -mean.score == pytest.approx(x[hidden].var(correction=0).item(), rel=1e-4)


def made_patches(data: Path, recipe: PretrainingRecipe) -> list[MaskedPatches]:
    """Return the validation patches that a pretraining makes."""
    made = []

    class Spy(HiddenValidator):
        def __init__(self, held_out, mask) -> None:
            made.extend(held_out.values())
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vesuvius.pretrain.HiddenValidator", Spy)
        with pytest.raises(KeyboardInterrupt):
            pretrain(data, Path("never made"), recipe)
    return made


def test_labels_are_not_needed_and_not_looked_at(fragments, tmp_path):
    ends = []
    for name in ("labelled", "bare"):
        folder = shutil.copytree(fragments["1"], tmp_path / name / "1")
        if name == "bare":
            (folder / "inklabels.png").unlink()
        prepare((folder,), out=tmp_path / name)
        result = pretrain(tmp_path / name, tmp_path / name / "run", once(tiny_pretraining()))
        ends.append(load(result.best_path, WEIGHTS)[0])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_layer_order_and_voxel_sizes_are_told_as_before_training(prepared, tmp_path, capsys):
    for name in "12":
        shutil.copytree(prepared / f"{name}.vol", tmp_path / f"{name}.vol")
    path = tmp_path / "2.vol" / "volume.json"
    write_json(path, read_json(path) | {"voxel_size_um": [8, 8, 8]})
    made_patches(tmp_path, tiny_pretraining())
    said = capsys.readouterr().err
    assert "1: layer order " in said
    assert "2: layer order " in said
    assert "the volumes differ in voxel size (1 4 um, 2 8 um)" in said


def test_what_training_holds_out_is_held_out_of_pretraining(autoencoder, run, prepared):
    pieces = [
        json.loads((folder / "config.json").read_text())["description"]["pieces"]
        for folder in (autoencoder, run)
    ]
    assert pieces[0] == pieces[1]
    held_out = {p["fragment"]: Piece(**p) for p in pieces[0] if p["role"] == "validation"}
    rows = (autoencoder / "points.csv").read_text().splitlines()[1:]
    assert len(rows) == 16
    for name, y, x in (row.split(",") for row in rows):
        piece = held_out[name]
        assert max(piece.y_start - (int(y) + 32), piece.x_start - (int(x) + 32)) >= 16
    for patches in made_patches(prepared, tiny_pretraining()):
        (source,) = patches.sources
        piece = held_out[source.volume.name]
        assert len(source.points)
        assert (source.points >= (piece.y_start, piece.x_start)).all()
        assert (source.points + patches.patch_size <= (piece.y_stop, piece.x_stop)).all()


def test_a_patch_is_a_function_of_seed_epoch_and_index(prepared):
    patches = made_patches(prepared, tiny_pretraining())[0]
    other, reseeded = (
        MaskedPatches(patches.sources, patches.patch_size, seed, patches.mask, z_shift=2)
        for seed in (0, 1)
    )
    patches = MaskedPatches(patches.sources, patches.patch_size, 0, patches.mask, z_shift=2)
    keys = [(epoch, index) for epoch in range(4) for index in range(len(patches))]
    samples = {key: patches[key] for key in keys}
    for key in reversed(keys):
        assert all(torch.equal(other[key][name], samples[key][name]) for name in ("x", "hidden"))
    for name in ("x", "hidden"):
        assert not all(torch.equal(reseeded[key][name], samples[key][name]) for key in keys)
        assert not torch.equal(samples[0, 0][name], samples[1, 0][name])
    shape, share = samples[0, 0]["x"].shape, samples[0, 0]["hidden"].float().mean()
    assert samples[0, 0]["hidden"].shape == shape == (1, 8, patches.patch_size, patches.patch_size)
    assert share == pytest.approx(0.6, abs=0.05)


def test_the_encoder_starts_from_the_pretrained_weights_and_the_rest_does_not(autoencoder):
    recipe = tiny_recipe()
    torch.manual_seed(3)
    model = network_of(recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrained = open_pretrained(autoencoder)
    load_pretrained(model, recipe, pretrained)
    after = model.state_dict()
    encoder = {name for name in after if name.startswith("network.encoder.")}
    assert encoder < set(after)
    assert all(torch.equal(after[name], pretrained.tensors[name]) for name in encoder)
    assert all(torch.equal(after[name], before[name]) for name in set(after) - encoder)
    kernels = [name for name in encoder if "kernels" in name]
    assert kernels
    assert not any(torch.equal(after[name], before[name]) for name in kernels)


def test_every_task_starts_from_the_gates_of_pretraining(autoencoder):
    recipe = tiny_recipe()
    pretrained = open_pretrained(autoencoder)
    one, three = network_of(recipe), network_of(recipe, num_tasks=3)
    for model in (one, three):
        load_pretrained(model, recipe, pretrained)
        model.eval()
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = one.network.encoder(x, TaskGroups.of([0]))
        for task in range(3):
            found = three.network.encoder(x, TaskGroups.of([task]))
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(a, b)


def test_another_network_with_the_same_encoder_takes_it_too(autoencoder):
    recipe = tiny_recipe()
    recipe = replace(
        recipe,
        network=RepModeSegformerConfig(
            base_channels=2, num_stages=2, activation="relu", resample_activation="relu",
            largest_expert=3, decoder="unet", decoder_channels=1, output_stride=2,
        ),
    )  # fmt: skip
    model, pretrained = network_of(recipe), open_pretrained(autoencoder)
    load_pretrained(model, recipe, pretrained)
    name = "network.encoder.bottleneck.1.conv.kernels.0"
    assert torch.equal(model.state_dict()[name], pretrained.tensors[name])


def test_training_starts_from_it_and_says_so(autoencoder, prepared, tmp_path, capsys):
    recipe = once(tiny_recipe())
    plain = train(prepared, tmp_path / "plain", recipe)
    result = train(prepared, tmp_path / "run", recipe, pretrained=autoencoder)
    assert "pretraining saw" not in capsys.readouterr().err
    description = load(result.best_path, WEIGHTS)[1]["description"]
    assert description["pretrained_sha256"] == open_pretrained(autoencoder).sha256
    assert "pretrained_sha256" not in load(plain.best_path, WEIGHTS)[1]["description"]
    ends = [load(r.best_path, WEIGHTS)[0] for r in (plain, result)]
    kernels = [name for name in ends[0] if name.startswith("network.encoder.stages.0.blocks.0")]
    assert not all(torch.equal(ends[0][name], ends[1][name]) for name in kernels)
    with pytest.raises(ValueError, match=r"pretrained_sha256 was '\w{64}', now 'not set'"):
        train(prepared, tmp_path / "run", recipe, resume=True)
    assert load_model(tmp_path / "run").recipe == recipe


def test_what_pretraining_saw_of_what_is_scored_is_said(autoencoder, prepared, tmp_path, capsys):
    recipe = once(tiny_recipe())
    recipe = replace(recipe, validation=replace(recipe.validation, fragment="2"))
    train(prepared, tmp_path / "run", recipe, pretrained=autoencoder)
    said = capsys.readouterr().err
    assert "pretraining saw, though not its label, what is scored now: train piece of 2" in said


def test_a_fragment_of_the_same_name_from_other_files_may_have_been_seen(
    autoencoder, prepared, capsys
):
    volumes, pretrained = open_volumes(prepared), open_pretrained(autoencoder)
    pieces = [Piece(**piece) for piece in pretrained.description["pieces"]]
    origin(pretrained, volumes, pieces, 16)
    assert not capsys.readouterr().err
    data = pretrained.description["data"] | {"2": "prepared without its label"}
    unlabelled = replace(pretrained, description=pretrained.description | {"data": data})
    origin(unlabelled, volumes, pieces, 16)
    assert "saw fragments of the names 2 prepared from other files" in capsys.readouterr().err
    origin(unlabelled, volumes, [piece for piece in pieces if piece.fragment == "1"], 16)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("job", ["pretrain", "train"])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    job, autoencoder, prepared, tmp_path, monkeypatch
):
    def run(out: Path, resume: bool) -> None:
        if job == "pretrain":
            pretrain(prepared, out, tiny_pretraining(), resume)
        else:
            recipe = tiny_recipe()
            few = replace(recipe.sampling, bucket_cap=1, num_void=1)
            train(prepared, out, replace(recipe, sampling=few), resume, pretrained=autoencoder)

    run(tmp_path / "whole", resume=False)
    monkeypatch.setattr("core.training._train_epoch", stopping_after_1(_train_epoch))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", resume=False)
    monkeypatch.undo()
    run(tmp_path / "stopped", resume=True)
    ends = [
        load(tmp_path / name / "checkpoints" / "last.safetensors", TRAINING_STATE)[0]
        for name in ("whole", "stopped")
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("group", "changes", "says"),
    [
        ("network", {"base_channels": 4}, r"network\.base_channels 2, this recipe has 4; choose"),
        ("network", {"num_stages": 3}, r"network\.num_stages 2, this recipe has 3"),
        ("network", {"activation": "mish"}, r"network\.activation 'relu', this recipe has 'mish'"),
        ("network", {"largest_expert": 5}, r"network\.largest_expert 3, this recipe has 5"),
        ("window", {"num_layers": 12}, r"window\.num_layers 8, this recipe has 12"),
        ("window", {"intensity": "raw"}, r"window\.intensity 'zscore', this recipe has 'raw'"),
    ],
)
def test_an_encoder_of_another_kind_or_view_is_refused(autoencoder, group, changes, says):
    recipe = tiny_recipe()
    recipe = replace(recipe, **{group: replace(getattr(recipe, group), **changes)})
    with pytest.raises(ValueError, match=f"best.safetensors was pretrained with {says}"):
        load_pretrained(network_of(recipe), recipe, open_pretrained(autoencoder))


@pytest.mark.parametrize(
    ("name", "encoder"), [("i3d", "InceptionEncoder"), ("stack-2d", "StackEncoder")]
)
def test_networks_with_an_encoder_of_their_own_are_refused(name, encoder, autoencoder):
    recipe = RECIPES[name]()
    says = f"the network has a {encoder}, only encoders of RepMode are pretrained"
    with pytest.raises(ValueError, match=says):
        build_autoencoder(pretraining_of(recipe))
    with pytest.raises(ValueError, match=says):
        load_pretrained(network_of(recipe), recipe, open_pretrained(autoencoder))


def test_what_is_no_pretraining_is_refused(autoencoder, run, prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such checkpoint"):
        train(prepared, tmp_path / "out", tiny_recipe(), pretrained=tmp_path / "none")
    with pytest.raises(ValueError, match=r"repmode'; give a run of `vesuvius pretrain`"):
        train(prepared, tmp_path / "out", tiny_recipe(), pretrained=run)
    with pytest.raises(ValueError, match=r"holds a model of 'masked-autoencoder'"):
        load_model(autoencoder)
    assert not (tmp_path / "out").exists()


def test_pretraining_that_cannot_work_is_refused_before_anything_is_written(prepared, tmp_path):
    out, recipe = tmp_path / "out", tiny_pretraining()
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        pretrain(tmp_path / "none", out, recipe)
    with pytest.raises(ValueError, match="smaller than a patch of 120"):
        pretrain(prepared, out, replace(recipe, patch_size=120))
    with pytest.raises(ValueError, match=r"num_patches is 0; it is at least 1"):
        replace(recipe, num_patches=0)
    with pytest.raises(ValueError, match="hides 0 of the 1 blocks"):
        pretrain(prepared, out, replace(recipe, mask=MaskConfig((8, 64, 64), 0.4)))
    assert not out.exists()


def test_the_pretraining_of_a_recipe_has_its_choices():
    recipe, pretraining = small(), pretraining_of(small())
    for name in ("network", "window", "validation", "training"):
        assert getattr(pretraining, name) == getattr(recipe, name)
    assert (pretraining.patch_size, pretraining.num_patches) == (64, 10 * 30 + 150)
    assert all(pretraining_of(make()).num_patches > 0 for make in RECIPES.values())
    assert np.array(pretraining.mask.block).prod() > 1
