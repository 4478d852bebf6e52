"""Predictions that are means of several views and runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from core.samples import MemberConfig
from core.terminal import run as run_command
from ssp.cli import COMMANDS
from ssp.ensemble import Ensemble, load_ensemble
from ssp.train import train
from tests.ssp.cells import prepared, tiny_recipe

SHAPE = (4, 16, 16)  # one tile


@pytest.fixture
def stack(tmp_path):
    voxels = np.random.default_rng(0).integers(1000, 2000, SHAPE, dtype=np.uint16)
    return write_stack(tmp_path / "stack.tif", voxels)


@pytest.fixture(scope="module")
def second_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    data = prepared(folder / "data")
    train(data, folder / "run", tiny_recipe(epochs=1, seed=7))
    return folder / "run"


def write_stack(path, voxels):
    tifffile.imwrite(path, voxels, photometric="minisblack", metadata={"axes": "ZYX"})
    return path


def found(run, path, out, **averaged):
    """The prediction of one structure, on the voxels as they are."""
    options = ["--task", "dna", "--factor", "1", "1", "1", "--device", "cpu"]
    for name, value in averaged.items():
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    arguments = ["predict", str(run), str(path), "--out", str(out), *options]
    assert run_command("ssp", "", COMMANDS, arguments) == 0
    return tifffile.imread(out / "dna.ome.tif")


@pytest.fixture(scope="module")
def map_run(tmp_path_factory):
    """A run that predicts a map of a stack."""
    folder = tmp_path_factory.mktemp("maps")
    recipe = tiny_recipe(epochs=1)
    backbone = replace(recipe.network.backbone, target="projection")
    network = replace(recipe.network, backbone=backbone)
    data = prepared(folder / "data", shape=(4, 20, 24), is_map=True)
    train(data, folder / "run", replace(recipe, network=network))
    return folder / "run"


@pytest.mark.parametrize("name", ["run", "map_run"])
def test_views_give_the_mean_and_spread_of_turned_images_turned_back(
    name, stack, tmp_path, request
):
    trained = request.getfixturevalue(name)
    voxels = tifffile.imread(stack)
    turned_back = []
    for turns in range(4):
        for is_mirrored in (False, True):
            seen = np.rot90(voxels[..., ::-1] if is_mirrored else voxels, turns, (1, 2))
            view = f"{turns}-{is_mirrored}"
            path = write_stack(tmp_path / f"{view}.tif", np.ascontiguousarray(seen))
            predicted = np.rot90(found(trained, path, tmp_path / view), -turns, (-2, -1))
            turned_back.append(predicted[..., ::-1] if is_mirrored else predicted)
    averaged = found(trained, stack, tmp_path / "out", tta=True)
    np.testing.assert_allclose(averaged, np.mean(turned_back, 0), atol=1e-6)
    spread = tifffile.imread(tmp_path / "out" / "dna-uncertainty.ome.tif")
    np.testing.assert_allclose(spread, np.std(turned_back, 0), atol=1e-6)
    assert spread.mean() > 2e-5


def test_runs_give_the_mean_and_spread_of_what_each_gives(run, second_run, stack, tmp_path):
    alone = [found(one, stack, tmp_path / one.parent.name) for one in (run, second_run)]
    averaged = found(run, stack, tmp_path / "out", ensemble=second_run)
    np.testing.assert_allclose(averaged, np.mean(alone, 0), atol=1e-6)
    spread = tifffile.imread(tmp_path / "out" / "dna-uncertainty.ome.tif")
    np.testing.assert_allclose(spread, np.abs(alone[0] - alone[1]) / 2, atol=1e-6)
    assert spread.mean() > 1e-4


def test_samples_views_and_runs_multiply(run, second_run, tmp_path):
    options = {"mc_samples": 2, "mc_dropout": 0.3, "tta": True}
    voxels = np.random.default_rng(1).integers(0, 999, (4, 16, 20), dtype=np.uint16)
    path = write_stack(tmp_path / "a.tif", voxels)
    averaged = found(run, path, tmp_path / "out", ensemble=second_run, **options)
    config = MemberConfig(ensemble=(second_run,), **options)
    ensemble = load_ensemble(run, config)
    assert ensemble.num_members == 2 * 2 * 8
    members = ensemble.members("dna", 0, ensemble.num_members)
    maps = []
    for number, member in enumerate(members):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ensemble, "members", lambda *_, one=member: [one])
            maps.append(found(run, path, tmp_path / str(number)))
    np.testing.assert_allclose(averaged, np.mean(maps, 0), atol=1e-6)
    assert len({one.tobytes() for one in maps}) == len(maps)
    settings = json.loads((tmp_path / "out" / "dna.provenance.json").read_text())["settings"]
    assert (settings["mc_samples"], settings["tta_views"]) == (2, 8)
    assert len(settings["ensemble_sha256"]) == 1


def refused(capsys, *arguments) -> str:
    """What the command says that refuses its arguments."""
    assert run_command("ssp", "", COMMANDS, [str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_ensemble_whose_runs_differ_is_refused(run, map_run, stack, tmp_path, capsys):
    command = ("predict", run, stack, "--out", tmp_path / "out", "--ensemble")
    assert "is part of the ensemble already" in refused(capsys, *command, run)
    message = refused(capsys, *command, map_run)
    assert "target projection and not stack, num layers 4 and not None" in message
    assert not (tmp_path / "out").exists()


def test_runs_that_saw_other_intensities_have_no_original_scale(run, stack, tmp_path, capsys):
    data = prepared(tmp_path / "other", splits=("val", "train", "train", "test"))
    train(data, tmp_path / "run", tiny_recipe(epochs=1))
    capsys.readouterr()
    command = ("predict", run, stack, "--out", tmp_path / "out", "--original-scale")
    command += ("--factor", 1, 1, 1, "--task", "dna", "--ensemble", tmp_path / "run")
    assert "was trained on other intensities of dna than" in refused(capsys, *command)


def test_a_prediction_without_views_does_not_join_one_with_them(run, stack, tmp_path, capsys):
    found(run, stack, tmp_path / "out", tta=True)
    capsys.readouterr()
    command = ("predict", run, stack, "--out", tmp_path / "out", "--factor", 1, 1, 1)
    assert "was predicted with other tta_views" in refused(capsys, *command, "--device", "cpu")
