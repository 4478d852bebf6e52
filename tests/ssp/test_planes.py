"""Single planes, from files to predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from core.files import read_json
from core.terminal import run as run_command
from ssp.cli import COMMANDS
from ssp.evaluate import evaluate
from ssp.model import load_model
from ssp.prepared import open_data
from ssp.recipes import CellRecipe
from ssp.train import train
from tests.ssp.cells import prepared, tiny_recipe


def plane_recipe() -> CellRecipe:
    recipe = tiny_recipe(epochs=1)
    backbone = replace(recipe.network.backbone, target="plane")
    patches = replace(recipe.patches, size=(1, 16, 16))
    return replace(recipe, network=replace(recipe.network, backbone=backbone), patches=patches)


@pytest.mark.parametrize("axes", ["YX", "ZYX"])
def test_planes_are_trained_on_scored_and_predicted(axes, tmp_path):
    data = prepared(tmp_path / "planes", shape=(1, 20, 24))
    train(data, tmp_path / "run", plane_recipe())
    evaluate(tmp_path / "run", data=data, out=tmp_path / "scores", device="cpu")
    assert read_json(tmp_path / "scores" / "scores.json")["num_images"] == 2
    plane = np.random.default_rng(0).integers(1000, 2000, (16, 16), dtype=np.uint16)
    voxels = plane if axes == "YX" else plane[None]
    tifffile.imwrite(tmp_path / "a.tif", voxels, photometric="minisblack", metadata={"axes": axes})
    options = ["--task", "dna", "--factor", "1", "1", "1", "--device", "cpu"]
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "a.tif"), "--out"]
    assert run_command("ssp", "", COMMANDS, [*command, str(tmp_path / "out"), *options]) == 0
    model = load_model(tmp_path / "run")
    x = torch.from_numpy((plane - plane.mean()) / plane.std()).float()[None, None, None]
    with torch.no_grad():
        expected = model.network(x, torch.tensor([model.tasks.index("dna")]))[0, 0]
    found = tifffile.imread(tmp_path / "out" / "dna.ome.tif")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_recipe_for_stacks_is_told_what_planes_need(tmp_path):
    data = prepared(tmp_path / "planes", shape=(1, 20, 24))
    assert all(image.is_2d_target for image in open_data(data).images)
    with pytest.raises(ValueError, match=r"--network\.backbone\.target plane --patches\.size 1 16"):
        train(data, tmp_path / "run", tiny_recipe(epochs=1))
