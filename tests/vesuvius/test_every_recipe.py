"""Each recipe, cut down to seconds, trains two steps, is scored and predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from core.checkpoint import TRAINING_STATE, WEIGHTS, load, save
from core.deploy import specialize
from core.training import _train_epoch
from tests.vesuvius.conftest import tiny_recipe
from tests.vesuvius.test_held_out import scored_as_validated
from vesuvius.ensemble import EnsembleConfig, load_ensemble
from vesuvius.inkmap import load_model, save_plain
from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.registry import model_name
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig
from vesuvius.predict import predict
from vesuvius.recipes import RECIPES, InkRecipe
from vesuvius.train import train

NARROW = {
    RepModeConfig: {"base_channels": 1, "num_stages": 2},
    I3DConfig: {"base_channels": 1, "decoder_channels": 1},
    Stack2DConfig: {"encoder": "resnet10t", "decoder_channels": 1},
    RepModeSegformerConfig: {"base_channels": 1, "num_stages": 3, "decoder_channels": 1},
}


def cut_down(recipe: InkRecipe) -> InkRecipe:
    """Return a recipe with all its choices but small numbers; it trains one step an epoch."""
    small = tiny_recipe()
    caps = {"bucket_cap": 1, "num_void": 1, "num_edges": 8, "num_raw": 8}
    few = {name: min(cap, getattr(recipe.sampling, name)) for name, cap in caps.items()}
    few |= {"patch_size": 32, "translation": (-8, 8)}
    return replace(
        recipe,
        network=replace(recipe.network, **NARROW[type(recipe.network)]),
        window=replace(recipe.window, num_layers=8),
        sampling=replace(recipe.sampling, **few),
        validation=replace(small.validation, tile_size=64, stride=64),
        training=replace(
            recipe.training,
            epochs=2,
            warmup_epochs=1,
            batch_size=4,
            accumulate=100,
            num_workers=0,
            precision="no",
        ),
    )


# One recipe of every network; the others differ in their patches.
NETWORKS = ("repmode-2d-module", "repmode-2d-decoder", "i3d", "stack-2d", "repmode-segformer")


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A function that trains a recipe, cut down, once and returns the run folder."""

    @cache
    def run_of(name: str) -> Path:
        out = tmp_path_factory.mktemp("trained") / "run"
        assert train(prepared, out, cut_down(RECIPES[name]())).steps == 2
        return out

    return run_of


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps(name, trained):
    run, recipe = trained(name), cut_down(RECIPES[name]())
    _, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    assert meta["description"]["model"] == model_name(recipe.network)
    assert load_model(run).recipe == recipe
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_of_every_network_is_scored_and_predicts(
    name, trained, prepared, fragments, tmp_path
):
    run, out = trained(name), tmp_path / "prediction"
    scored_as_validated(run, prepared, tmp_path / "maps")
    predict(run, fragments["a"], out=out, tile_size=64, stride=64, device="cpu")
    prob = tifffile.imread(out / "prob.tif")
    assert prob.shape == (128, 144)
    assert np.isfinite(prob).all()
    assert 0 < prob.min(initial=1, where=prob > 0) < prob.max() < 1
    if name in ("i3d", "stack-2d"):
        with pytest.raises(ValueError, match=r"run has no mixtures of experts.* --tta or --ens"):
            load_ensemble(run, EnsembleConfig(mc_samples=2))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_file_of_every_network_is_that_network_to_the_last_bit(name, trained, tmp_path):
    model, path = load_model(trained(name)), tmp_path / "plain.safetensors"
    save_plain(model, "ink", path)
    plain = load_model(path)
    x = torch.randn(2, 1, 8, 64, 64, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected = specialize(model.network, model.tasks.gates("ink"))(x)
        found = specialize(plain.network, plain.tasks.gates(plain.tasks.choose(None)))(x)
    assert torch.equal(found, expected)
    assert plain.facts() == model.facts() | {"checkpoint_sha256": plain.sha256}
    assert (plain.threshold, plain.windows) == (model.threshold, model.windows)
    with pytest.raises(ValueError, match="has no mixtures of experts"):
        load_ensemble(path, EnsembleConfig(mc_samples=2))


def test_every_network_is_predicted_with():
    networks = {type(recipe().network) for recipe in RECIPES.values()}
    assert {type(RECIPES[name]().network) for name in NETWORKS} == networks


def test_a_checkpoint_whose_network_this_version_does_not_know_is_refused(run, tmp_path):
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    meta["description"]["model"] = "vesuvius.networks.oracle"
    save(tmp_path / "other.safetensors", WEIGHTS, tensors, meta)
    with pytest.raises(ValueError, match=r"oracle'; `vesuvius` reads vesuvius\.networks\.repmode"):
        load_model(tmp_path / "other.safetensors")
    meta["description"]["model"] = "vesuvius.networks.repmode"
    meta["description"]["recipe"]["network"]["type"] = "OracleConfig"
    save(tmp_path / "typed.safetensors", WEIGHTS, tensors, meta)
    with pytest.raises(ValueError, match=r"network: unknown type 'OracleConfig', known are"):
        load_model(tmp_path / "typed.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i3d", "stack-2d", "repmode-segformer"])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    name, prepared, tmp_path, monkeypatch
):
    recipe = cut_down(RECIPES[name]())
    ends = []
    for out in (tmp_path / "whole", tmp_path / "stopped"):
        if out.name == "stopped":
            monkeypatch.setattr("core.training._train_epoch", stopping_after_1(_train_epoch))
            with pytest.raises(KeyboardInterrupt):
                train(prepared, out, recipe)
            monkeypatch.undo()
        train(prepared, out, recipe, resume=out.name == "stopped")
        ends.append(load(out / "checkpoints" / "last.safetensors", TRAINING_STATE)[0])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def stopping_after_1(function):
    """Return `function` made to raise at its second call."""
    calls = []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopped
