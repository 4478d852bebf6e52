"""Exported tasks of an official checkpoint equal the network, with nothing of this project."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from core.official import save_official_checkpoint
from core.provenance import file_hash
from core.unet3d import RepModeUNet
from ssp.cli import main
from ssp.export import export, signature_of
from ssp.model import OFFICIAL_MULTIPLE, load_model
from ssp.networks.registry import for_task
from ssp.recipes import PATCH_SIZE

TASKS = ["dna", "tom20"]


@pytest.fixture(scope="module")
def model() -> RepModeUNet:
    torch.manual_seed(0)
    model = RepModeUNet(2, base_channels=2)
    with torch.no_grad():
        for _ in range(3):  # statistics of the batch normalisations that keep the output alive
            model.train()(torch.randn(2, 1, 16, 16, 16), torch.arange(2))
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "repmode.p"
    save_official_checkpoint(model, TASKS, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """A function that returns the archive of a task, made once."""

    @cache
    def archive(task: str) -> Path:
        path = tmp_path_factory.mktemp("exported") / f"{task}.pt2"
        export(checkpoint, task=task, out=path)
        return path

    return archive


def expected(model, x: torch.Tensor, task: str) -> np.ndarray:
    with torch.no_grad():
        return model(x, torch.full((len(x),), TASKS.index(task))).numpy()


def run_torch(path, x: torch.Tensor) -> np.ndarray:
    return torch.export.load(path).module()(x).detach().numpy()


@pytest.mark.parametrize("task", [pytest.param("dna", marks=pytest.mark.slow), "tom20"])
def test_an_exported_task_equals_the_network(task, model, exported):
    x = torch.randn(1, 1, 48, 32, 80)
    found, wanted = run_torch(exported(task), x), expected(model, x, task)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.ptp(wanted) > 1e-4


@pytest.mark.slow
def test_an_exported_task_equals_the_network_in_onnxruntime(model, checkpoint, tmp_path):
    export(checkpoint, task="dna", out=tmp_path / "task.onnx")
    x = torch.randn(2, 1, 32, 64, 48)
    session = onnxruntime.InferenceSession(tmp_path / "task.onnx")
    found, wanted = (
        session.run(None, {"transmitted_light": x.numpy()})[0],
        expected(model, x, "dna"),
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_file_tells_what_it_needs_and_where_it_comes_from(checkpoint, exported):
    extra_files = {"repmode.json": ""}
    torch.export.load(exported("tom20"), extra_files=extra_files)
    record = json.loads(extra_files["repmode.json"])
    assert record["task"] == "tom20"
    assert record["inputs"][0]["axes"] == ["N", 1, "Z", "Y", "X"]
    assert record["free_axes"]["Z"] == {
        "multiple_of": OFFICIAL_MULTIPLE,
        "at_least": 2 * OFFICIAL_MULTIPLE,
    }
    assert record["checkpoint_sha256"] == file_hash(checkpoint)
    assert record["tile"] == list(PATCH_SIZE)


def test_the_multiple_is_that_of_the_network(model):
    assert model.network.multiple == OFFICIAL_MULTIPLE


@pytest.mark.slow
def test_a_task_of_a_run_is_exported_with_what_it_needs(run, tmp_path):
    export(run, task="tom20", out=tmp_path / "task.pt2")
    model = load_model(run)
    x = torch.randn(2, 1, 8, 12, 16)
    with torch.no_grad():
        wanted = for_task(model.network, 1)(x).numpy()
    found = run_torch(tmp_path / "task.pt2", x)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    extra_files = {"repmode.json": ""}
    torch.export.load(tmp_path / "task.pt2", extra_files=extra_files)
    record = json.loads(extra_files["repmode.json"])
    assert record["target_std"] == model.facts["tom20"].std
    assert record["voxel_size_um"] == list(model.voxel_size_um)


def test_a_model_of_maps_takes_its_planes_and_returns_rows_and_columns():
    signature = signature_of(16, num_layers=6)
    assert signature.inputs[0].axes == ("N", 1, 6, "Y", "X")
    assert signature.output_axes == ("N", 1, "Y", "X")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "actin", "--out", "task.pt2"], "knows dna, tom20"),
        (["--out", "task.pt2"], "--task"),
        (["--task", "dna", "--out", "task.h5"], "allowed are .onnx and .pt2"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ssp", "export", str(checkpoint), *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ssp: error: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.p"):
        export(tmp_path / "none.p", task="dna", out=tmp_path / "task.pt2")
