"""Tasks: which a run has, what teaches each, and which one predicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from core.checkpoint import WEIGHTS, load
from core.config import from_dict, to_dict
from core.deploy import specialize
from tests.vesuvius.conftest import tiny_recipe, write_fragment
from vesuvius.ensemble import EnsembleConfig
from vesuvius.evaluate import evaluate
from vesuvius.export import export
from vesuvius.inkmap import load_model, save_plain
from vesuvius.predict import predict
from vesuvius.prepare import prepare
from vesuvius.recipes import InkRecipe, i3d
from vesuvius.submission import submit
from vesuvius.task_patches import tasks_of
from vesuvius.tasks import TaskConfig, Tasks
from vesuvius.train import choose_pieces, open_volumes, train

DOMAINS = TaskConfig("domain", ("1=near", "2=far", "3=near"))
OPTIONS = {"tile_size": 48, "stride": 32}


def recipe_of(config: TaskConfig, **validation) -> InkRecipe:
    """Return the tiny recipe with these tasks, for one epoch of two steps or so."""
    recipe = tiny_recipe()
    return replace(
        recipe,
        tasks=config,
        sampling=replace(recipe.sampling, bucket_cap=1, num_void=2),
        validation=replace(recipe.validation, **validation),
        training=replace(recipe.training, epochs=1, warmup_epochs=0, ema_decay=0.0),
    )


def write_photograph(fragment: Path) -> None:
    """Write an infrared photograph on which ink is dark."""
    label = np.asarray(Image.open(fragment / "inklabels.png"))
    noise = np.random.default_rng(0).normal(0, 8, label.shape)
    photograph = np.where(label > 0, 50, 150) + noise
    Image.fromarray(photograph.astype(np.uint8)).save(fragment / "ir.png")


@pytest.fixture(scope="module")
def partial_data(tmp_path_factory) -> Path:
    """Prepared volumes: "1" has label and photograph, "2" a photograph, "3" a label."""
    root = tmp_path_factory.mktemp("partial")
    paths = [write_fragment(root / name, seed) for seed, name in enumerate("123")]
    for path in paths[:2]:
        write_photograph(path)
    (paths[1] / "inklabels.png").unlink()
    prepare(tuple(paths), out=root)
    return root


@pytest.fixture(scope="module")
def infrared_run(partial_data) -> Path:
    train(partial_data, partial_data / "run", recipe_of(TaskConfig("ink-infrared")))
    return partial_data / "run"


@pytest.fixture(scope="module")
def fragment_run(prepared, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "run"
    train(prepared, out, recipe_of(TaskConfig("fragment")))
    return out


def probability(out: Path) -> np.ndarray:
    return tifffile.imread(out / "prob.tif")


def settings(out: Path) -> dict:
    return json.loads((out / "provenance.json").read_text())["settings"]


def test_one_task_is_the_default():
    assert tiny_recipe().tasks == TaskConfig()
    assert Tasks.of(TaskConfig(), ["1", "2"]).names == ("ink",)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (TaskConfig("ink-infrared"), ("ink", "infrared")),
        (TaskConfig("fragment"), ("1", "2", "3")),
        (DOMAINS, ("near", "far")),
    ],
)
def test_each_kind_has_its_tasks(config, names):
    assert Tasks.of(config, ["1", "2", "3"]).names == names
    assert from_dict(TaskConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("kind", "domains", "says"),
    [
        ("two", (), "tasks.kind is 'two'; allowed is 'one', 'ink-infrared'"),
        ("one", ("1=a",), "'one' with 1 tasks.domains; kind 'domain' needs"),
        ("domain", (), "'domain' with 0 tasks.domains"),
        ("domain", ("1",), "tasks.domains '1' is no fragment=domain"),
        ("domain", ("=a",), "'=a' is no fragment=domain"),
        ("domain", ("1=a", "1=b"), "'1=b' is no fragment=domain, or names its fragment again"),
        ("domain", ("1=unknown",), "name 'unknown' is taken"),
        ("domain", ("1=infrared",), "name 'infrared' is taken"),
    ],
)
def test_bad_choices_are_refused(kind, domains, says):
    with pytest.raises(ValueError, match=says):
        TaskConfig(kind, domains)


def test_the_share_of_infrared_patches_is_one_of_ink_and_infrared():
    with pytest.raises(ValueError, match="infrared_per_ink is 0"):
        TaskConfig("ink-infrared", infrared_per_ink=0)
    with pytest.raises(ValueError, match="infrared_per_ink 2 means nothing"):
        TaskConfig(infrared_per_ink=2)


def test_fragments_that_do_not_fit_are_refused():
    DOMAINS.check_fragments(["1", "2", "3"])
    for fragments in (["1", "2"], ["1", "2", "3", "4"]):
        with pytest.raises(ValueError, match=r"names 1, 2, 3, the fragments are 1, 2"):
            DOMAINS.check_fragments(fragments)
    for name in ("unknown", "infrared"):
        with pytest.raises(ValueError, match=f"fragment '{name}': the name '{name}' is taken"):
            TaskConfig("fragment").check_fragments(["1", name])
        TaskConfig().check_fragments(["1", name])


def test_a_task_is_chosen_by_name_by_fragment_or_because_there_is_one():
    one, both = (Tasks.of(TaskConfig(kind), ["1"]) for kind in ("one", "ink-infrared"))
    each, domains = Tasks.of(TaskConfig("fragment"), ["1", "2"]), Tasks.of(DOMAINS, ["1", "2"])
    assert (one.choose(None, "a"), both.choose(None, "a"), both.choose(None)) == ("ink",) * 3
    assert both.gates("infrared") == (1,)
    assert both.gates("unknown") == one.gates("unknown") == (0,)
    assert (each.choose(None, "2"), domains.choose(None, "3")) == ("2", "near")
    assert (each.choose("1", "2"), each.gates("2"), each.gates("unknown")) == ("1", (1,), (0, 1))
    assert (each.gates_of("1"), each.gates_of("9"), domains.gates_of("3")) == ((0,), (0, 1), (0,))
    with pytest.raises(ValueError, match=r"each of 1, 2, and a is none of them; .*--task unknown"):
        each.choose(None, "a")
    with pytest.raises(ValueError, match=r"each of near, far; choose with --task"):
        domains.choose(None)
    with pytest.raises(ValueError, match=r"no task 'dark'; it has ink, infrared, and unknown"):
        both.choose("dark", "1")


def test_partial_labels_teach_each_task_what_they_can(infrared_run):
    _, meta = load(infrared_run / "checkpoints" / "best.safetensors", WEIGHTS)
    description = meta["description"]
    assert description["tasks"] == ["ink", "infrared"]
    counts = description["task_patches"]
    assert (set(counts["ink"]), set(counts["infrared"])) == ({"1", "3"}, {"1", "2"})
    assert counts["infrared"]["1"] == counts["infrared"]["2"] == sum(counts["ink"].values()) / 2
    roles = {(piece["fragment"], piece["role"]) for piece in description["pieces"]}
    assert ("2", "train") in roles
    assert ("2", "validation") not in roles
    rows = (infrared_run / "infrared_points.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(counts["infrared"].values())
    (row,) = map(json.loads, (infrared_run / "metrics.jsonl").read_text().splitlines())
    assert 0.2 < row["train"]["infrared"] < 1.5


def test_batches_mix_tasks_and_greys(partial_data, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("vesuvius.train.fit", lambda model, dataset, *_: trained.append(dataset))
    config = TaskConfig("ink-infrared", infrared_per_ink=3.0)
    recipe = recipe_of(config)
    recipe = replace(recipe, augment=replace(recipe.augment, mixup=0.5, cutmix=0.5))
    train(partial_data, tmp_path / "run", recipe)
    (dataset,) = trained
    samples = [dataset[(0, index)] for index in range(len(dataset))]
    greys = [len(sample["label"].unique()) for sample in samples]
    tasks = np.array([int(sample["task"]) for sample in samples])
    assert np.mean(tasks == 1) == pytest.approx(0.75, abs=0.03)
    assert min(count for count, task in zip(greys, tasks, strict=True) if task == 1) > 30
    # mixed with their own task alone, labels hold at most four values
    assert max(count for count, task in zip(greys, tasks, strict=True) if task == 0) <= 4


def test_fragments_that_teach_nothing_are_refused(partial_data, tmp_path):
    shutil.copytree(partial_data / "3.vol", tmp_path / "3.vol")
    recipe = recipe_of(TaskConfig("ink-infrared"))
    with pytest.raises(ValueError, match="no fragment that is trained on has an infrared"):
        train(tmp_path, tmp_path / "run", recipe)
    shutil.copytree(partial_data / "2.vol", tmp_path / "2.vol")
    info = json.loads((tmp_path / "2.vol" / "volume.json").read_text())
    (tmp_path / "2.vol" / "volume.json").write_text(json.dumps(info | {"has_ir_image": False}))
    with pytest.raises(ValueError, match=r"2\.vol has neither ink label nor infrared"):
        train(tmp_path, tmp_path / "run", recipe)
    with pytest.raises(ValueError, match=r"2\.vol has no ink label and cannot be trained on"):
        train(partial_data, tmp_path / "run", recipe_of(TaskConfig()))
    held_out = recipe_of(TaskConfig("ink-infrared"), fragment="2")
    with pytest.raises(ValueError, match="has no ink label and cannot be scored"):
        train(partial_data, tmp_path / "run", held_out)


def test_ink_and_infrared_are_predicted_by_name(infrared_run, fragments, tmp_path):
    maps = {}
    for task in (None, "ink", "infrared"):
        out = tmp_path / str(task)
        predict(infrared_run, fragments["a"], out=out, task=task, **OPTIONS)
        maps[task] = probability(out)
        assert settings(out)["task"] == (task or "ink")
    np.testing.assert_array_equal(maps[None], maps["ink"])
    assert not np.array_equal(maps["infrared"], maps["ink"])
    with pytest.raises(ValueError, match="holds a prediction with other task"):
        predict(infrared_run, fragments["a"], out=tmp_path / "ink", task="infrared", **OPTIONS)
    for refuse in (
        lambda: submit((tmp_path / "infrared",), out=tmp_path / "submission.csv"),
        lambda: evaluate((tmp_path / "infrared",), out=tmp_path / "scores"),
    ):
        with pytest.raises(ValueError, match="map of the infrared photograph and not of ink"):
            refuse()


def test_a_model_of_several_fragments_predicts_by_name(fragment_run, fragments, tmp_path):
    chosen = {"1": None, "2": "2", "unknown": "unknown"}
    for out, task in chosen.items():
        predict(fragment_run, fragments["1"], out=tmp_path / out, task=task, **OPTIONS)
        assert settings(tmp_path / out)["task"] == out
    maps = {out: probability(tmp_path / out) for out in chosen}
    assert len({one.tobytes() for one in maps.values()}) == 3
    with pytest.raises(ValueError, match=r"each of 1, 2, and a is none of them; choose with"):
        predict(fragment_run, fragments["a"], out=tmp_path / "a", **OPTIONS)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("task", ["2", "unknown"])
def test_a_plain_file_predicts_the_task_it_was_made_for(fragment_run, fragments, tmp_path, task):
    plain = tmp_path / "plain.safetensors"
    save_plain(load_model(fragment_run), task, plain)
    predict(fragment_run, fragments["a"], out=tmp_path / "run", task=task, **OPTIONS)
    predict(plain, fragments["a"], out=tmp_path / "plain", **OPTIONS)
    assert settings(tmp_path / "plain")["task"] == task
    assert (tmp_path / "plain" / "prob.tif").read_bytes() == (
        tmp_path / "run" / "prob.tif"
    ).read_bytes()


def test_samples_and_exports_know_the_tasks(fragment_run, fragments, tmp_path, monkeypatch):
    averaged = EnsembleConfig(mc_samples=2)
    out = tmp_path / "many"
    predict(fragment_run, fragments["a"], out=out, task="unknown", averaged=averaged, **OPTIONS)
    assert (out / "uncertainty.tif").exists()
    exported = []
    monkeypatch.setattr(
        "vesuvius.export.export_network",
        lambda network, signature, path, facts, _: exported.append(
            (network.network, facts["task"])
        ),
    )
    for task in ("1", "unknown"):
        export(fragment_run, out=tmp_path / "m.pt2", task=task)
    model, x = load_model(fragment_run), torch.randn(1, 1, 8, 32, 32)
    for (network, task), gates in zip(exported, (0, (0, 1)), strict=True):
        with torch.no_grad():
            assert torch.equal(network(x), specialize(model.network, gates)(x))
        assert task == ("1" if gates == 0 else "unknown")
    with pytest.raises(ValueError, match=r"each of 1, 2; choose with --task"):
        export(fragment_run, out=tmp_path / "n.pt2")


def test_own_tasks_are_scored_as_one_way_and_as_validation_mapped_them(
    fragment_run, fragments, prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr("vesuvius.evaluate.write_evaluation", lambda *_: None)
    for name in ("1", "2"):
        predict(fragment_run, fragments[name], out=tmp_path / name, **OPTIONS)
    evaluate((tmp_path / "1", tmp_path / "2"), out=tmp_path / "scores", held_out=fragment_run)
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["maps"]
    assert len({one["way"] for one in found}) == 1
    evaluate((fragment_run,), out=tmp_path / "pieces", data=prepared)


def test_a_fragment_held_out_whole_is_mapped_by_the_mean_gate(prepared, tmp_path, capsys):
    recipe = recipe_of(TaskConfig("fragment"), fragment="2")
    train(prepared, tmp_path / "run", recipe)
    tasks = load_model(tmp_path / "run").tasks
    assert (tasks.names, tasks.of_fragment("2")) == (("1",), "unknown")
    assert "2: no task was trained on its ink, so the mean gate maps it" in capsys.readouterr().err
    same = TaskConfig("domain", ("1=near", "2=near"))
    volumes = open_volumes(prepared)
    pieces = choose_pieces(volumes, recipe.validation, same)
    assert {piece.role for piece in pieces if piece.fragment == "2"} == {"validation"}
    points = {"ink": {"1": np.zeros((1, 2)), "2": np.zeros((0, 2))}}
    assert tasks_of(same, points).of_fragment("2") == "near"
    assert tasks_of(TaskConfig("fragment"), points).names == ("1",)


def test_networks_that_would_ignore_the_tasks_refuse_them(prepared, tmp_path):
    recipe = replace(recipe_of(TaskConfig("fragment")), network=i3d().network)
    with pytest.raises(ValueError, match=r"makes the tasks 1, 2, but this network has no mixture"):
        train(prepared, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()
