"""The estimated order of the layers is told before training and prediction, and flips nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile

from tests.vesuvius.conftest import tiny_recipe
from vesuvius.inkmap import load_model, note_other_order
from vesuvius.orientation import Hint, combine
from vesuvius.predict import predict
from vesuvius.prepare import prepare
from vesuvius.simulate import simulate
from vesuvius.train import train

OPTIONS = {"tile_size": 96, "stride": 80, "device": "cpu"}
LEARNED = "in training they came"


def mirrored(fragment: Path, path: Path) -> Path:
    """Copy a fragment with its layers stored the other way round."""
    shutil.copytree(fragment, path)
    layers = sorted((path / "surface_volume").iterdir())
    voxels = [tifffile.imread(layer) for layer in layers]
    for layer, values in zip(layers, reversed(voxels), strict=True):
        tifffile.imwrite(layer, values)
    return path


def trained(fragments: tuple[Path, ...], folder: Path, **window: object) -> Path:
    """Train the tiny recipe on fragments and return the run folder."""
    prepare(fragments, out=folder / "prepared")
    recipe = tiny_recipe()
    recipe = replace(recipe, window=replace(recipe.window, **window))
    recipe = replace(recipe, training=replace(recipe.training, epochs=1))
    train(folder / "prepared", folder / "run", recipe)
    return folder / "run"


@pytest.fixture(scope="module")
def forward(tmp_path_factory) -> Path:
    """A fragment whose crossed fibres tell that its written side is first."""
    path = tmp_path_factory.mktemp("simulated") / "one"
    simulate(path, size=(224, 224), layers=40, seed=4)
    return path


@pytest.fixture(scope="module")
def backward(forward, tmp_path_factory) -> Path:
    return mirrored(forward, tmp_path_factory.mktemp("mirrored") / "two")


@pytest.fixture(scope="module")
def run_forward(forward, tmp_path_factory) -> Path:
    return trained((forward,), tmp_path_factory.mktemp("forward"))


def seen_orders(run: Path) -> dict[str, str]:
    return {name: seen["layer_order"] for name, seen in load_model(run).windows.items()}


def test_a_checkpoint_keeps_the_order_in_which_the_model_saw_the_layers(
    run_forward, backward, tmp_path, capsys
):
    assert seen_orders(run_forward) == {"one": "forward"}
    capsys.readouterr()
    run = trained((backward,), tmp_path, reversed=("two",))
    assert seen_orders(run) == {"two": "forward"}
    said = capsys.readouterr().err
    assert "two: layer order reversed, confidence 0." in said
    assert "; read in reverse, so forward for the model\n" in said
    assert "different orders" not in said
    predict(run, backward, out=tmp_path / "out", **OPTIONS)  # as training read it
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["layer_order"] == "reversed"
    assert "was read" not in capsys.readouterr().err


def test_training_fragments_that_contradict_each_other_are_pointed_out(
    forward, backward, tmp_path, capsys
):
    run = trained((forward, backward), tmp_path)
    assert seen_orders(run) == {"one": "forward", "two": "reversed"}
    said = capsys.readouterr().err
    assert "one forward, two reversed; if so, turn one kind around with --window.reversed" in said
    for order in ("forward", "reversed"):  # the model knows both
        note_other_order("a", order, load_model(run))
    assert not capsys.readouterr().err


def test_a_mirrored_copy_is_noticed_and_read_in_reverse_gives_the_same_bits(
    run_forward, forward, backward, tmp_path, capsys
):
    predict(run_forward, forward, out=tmp_path / "one", **OPTIONS)
    said = capsys.readouterr().err
    assert "one: layer order forward, confidence 0." in said
    assert LEARNED not in said
    predict(run_forward, backward, out=tmp_path / "as_stored", **OPTIONS)
    said = capsys.readouterr().err
    assert f"two: its layers seem to reach the model reversed, {LEARNED} forward; if so" in said
    assert "--reverse-layers" in said
    predict(run_forward, backward, out=tmp_path / "turned", reverse_layers=True, **OPTIONS)
    said = capsys.readouterr().err
    assert "two: layer order reversed, confidence 0." in said
    assert LEARNED not in said
    expected, as_stored, turned = (
        (tmp_path / name / "prob.tif").read_bytes() for name in ("one", "as_stored", "turned")
    )
    assert turned == expected
    assert as_stored != expected
    provenance = json.loads((tmp_path / "turned" / "provenance.json").read_text())
    assert provenance["layer_order"] == "reversed"
    assert provenance["estimated_layer_order"]["order"] == "reversed"
    assert provenance["estimated_layer_order"]["fibres"]["num_bands"] > 8


def test_a_forward_fragment_read_in_reverse_is_noticed(run_forward, forward, tmp_path, capsys):
    predict(run_forward, forward, out=tmp_path / "out", reverse_layers=True, **OPTIONS)
    assert f"one: its layers seem to reach the model reversed, {LEARNED}" in capsys.readouterr().err


def test_an_order_unknown_here_or_in_training_is_no_warning(run, run_forward, capsys):
    note_other_order("a", "reversed", load_model(run))  # trained on layers of unknown order
    model = load_model(run_forward)
    note_other_order("a", "unknown", model)
    for seen in model.windows.values():  # as in checkpoints from before the order was kept
        del seen["layer_order"]
    note_other_order("a", "reversed", model)
    assert not capsys.readouterr().err


def test_a_run_is_resumed_because_its_estimate_is_the_same_again(run_forward, monkeypatch):
    recipe = tiny_recipe()
    recipe = replace(recipe, training=replace(recipe.training, epochs=1))
    resumed = run_forward.parent / "prepared", run_forward, recipe, True
    train(*resumed)
    unknown = combine(Hint(0, 0, 0), Hint(0, 0, 0))
    monkeypatch.setattr("vesuvius.inkmap.order_of", lambda _: unknown)
    with pytest.raises(ValueError, match="layer_order was 'forward', now 'unknown'"):
        train(*resumed)
