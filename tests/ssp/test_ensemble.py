"""Predictions that are means of several views and runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from core.terminal import run as run_command
from ssp.cli import COMMANDS
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


def test_views_give_the_mean_and_spread_of_turned_images_turned_back(run, stack, tmp_path):
    voxels = tifffile.imread(stack)
    turned_back = []
    for turns in range(4):
        for is_mirrored in (False, True):
            seen = np.rot90(voxels[..., ::-1] if is_mirrored else voxels, turns, (1, 2))
            name = f"{turns}-{is_mirrored}"
            path = write_stack(tmp_path / f"{name}.tif", np.ascontiguousarray(seen))
            predicted = np.rot90(found(run, path, tmp_path / name), -turns, (1, 2))
            turned_back.append(predicted[..., ::-1] if is_mirrored else predicted)
    averaged = found(run, stack, tmp_path / "out", tta=True)
    np.testing.assert_allclose(averaged, np.mean(turned_back, 0), atol=1e-6)
    spread = tifffile.imread(tmp_path / "out" / "dna-uncertainty.ome.tif")
    np.testing.assert_allclose(spread, np.std(turned_back, 0), atol=1e-6)
    assert spread.mean() > 1e-4


def test_runs_give_the_mean_and_spread_of_what_each_gives(run, second_run, stack, tmp_path):
    alone = [found(one, stack, tmp_path / one.parent.name) for one in (run, second_run)]
    averaged = found(run, stack, tmp_path / "out", ensemble=second_run)
    np.testing.assert_allclose(averaged, np.mean(alone, 0), atol=1e-6)
    spread = tifffile.imread(tmp_path / "out" / "dna-uncertainty.ome.tif")
    np.testing.assert_allclose(spread, np.abs(alone[0] - alone[1]) / 2, atol=1e-6)
    assert spread.mean() > 1e-4


def test_samples_views_and_runs_multiply(run, second_run, stack, tmp_path):
    found(run, stack, tmp_path / "out", mc_samples=2, tta=True, ensemble=second_run)
    settings = json.loads((tmp_path / "out" / "dna.provenance.json").read_text())["settings"]
    assert (settings["mc_samples"], settings["tta_views"]) == (2, 8)
    assert len(settings["ensemble_sha256"]) == 1


def test_an_ensemble_whose_runs_differ_is_refused(run, second_run, stack, tmp_path, capsys):
    data = prepared(tmp_path / "data")
    recipe = tiny_recipe(epochs=1)
    patches = replace(recipe.patches, size=(4, 8, 8))
    train(data, tmp_path / "other", replace(recipe, patches=patches))
    arguments = ["predict", str(run), str(stack), "--out", str(tmp_path / "out"), "--ensemble"]
    assert run_command("ssp", "", COMMANDS, [*arguments, str(run)]) == 2
    assert "is part of the ensemble already" in capsys.readouterr().err
    assert run_command("ssp", "", COMMANDS, [*arguments, str(tmp_path / "other")]) == 2
    assert "tile (4, 8, 8)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
