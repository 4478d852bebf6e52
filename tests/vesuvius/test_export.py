"""Exported ink models give what `vesuvius predict` gives, with nothing of this project."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import tifffile
import torch

from core.checkpoint import WEIGHTS, load, save
from core.deploy import specialize
from core.export import export as export_network
from vesuvius.cli import main
from vesuvius.export import INTENSITY, NORMALISATION, InkTiles, export, signature_of
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import InkProbability, Window, load_model
from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.registry import build_network
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig
from vesuvius.predict import predict
from vesuvius.statistics import Intensity


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """The checkpoint of the tiny run with a louder head: two epochs leave it near 0.5."""
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    louder = {name: w * 5000 if "head.kernels" in name else w for name, w in tensors.items()}
    path = tmp_path_factory.mktemp("checkpoints") / "louder.safetensors"
    save(path, WEIGHTS, louder, meta)
    return path


@pytest.fixture(scope="module")
def prediction(model, fragments, tmp_path_factory):
    """A prediction of fragment a in one tile."""
    out = tmp_path_factory.mktemp("predictions") / "a"
    predict(model, fragments["a"], out=out, tile_size=144, stride=144, device="cpu")
    return out


def inputs_of(prediction, fragment) -> dict[str, np.ndarray]:
    """Return what an exported model takes for the one tile of a prediction, as that tells."""
    window = json.loads((prediction / "provenance.json").read_text())["window"]
    volume = open_fragment(fragment).volume
    voxels = volume.read(window["z_start"], window["z_stop"], 0, volume.shape[1])
    below = 144 - volume.shape[1]
    return {
        "tiles": np.pad(voxels, ((0, 0), (0, below), (0, 0)), mode="edge")[None],
        "offset": np.array(window["offset"], np.float32),
        "scale": np.array(window["scale"], np.float32),
    }


def run_onnx(path, inputs):
    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


def run_torch(path, inputs):
    tensors = (torch.from_numpy(np.asarray(values)) for values in inputs.values())
    return torch.export.load(path).module()(*tensors).detach().numpy()


@pytest.mark.parametrize(
    ("suffix", "run_file"),
    [(".onnx", run_onnx), pytest.param(".pt2", run_torch, marks=pytest.mark.slow)],
)
def test_an_exported_model_predicts_what_predict_does(
    suffix, run_file, model, prediction, fragments, tmp_path
):
    export(model, out=tmp_path / f"model{suffix}")
    prob = run_file(tmp_path / f"model{suffix}", inputs_of(prediction, fragments["a"]))
    inside = open_fragment(fragments["a"]).papyrus_mask
    expected = tifffile.imread(prediction / "prob.tif")
    found = prob[0, 0, : len(expected)]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)
    assert np.ptp(expected[inside]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    "config",
    [
        RepModeConfig(base_channels=2, num_stages=2, upsampling="sub-pixel"),
        RepModeConfig(base_channels=2, num_stages=2, output_stride=2, decoder="3d"),
        I3DConfig(base_channels=2, decoder_channels=1),
        Stack2DConfig(encoder="resnet10t", decoder_channels=1),
        RepModeSegformerConfig(base_channels=2, num_stages=3, decoder_channels=1),
    ],
    ids=lambda config: type(config).__module__,
)
def test_every_network_can_be_exported(config, suffix, run, tmp_path):
    recipe = replace(load_model(run).recipe, network=config)
    network = InkTiles(specialize(build_network(config, 8, 1).eval(), 0))
    path = tmp_path / f"model{suffix}"
    export_network(network, signature_of(recipe), path, {}, "float32")  # which checks the outputs
    assert path.stat().st_size > 10_000


def test_the_normalisation_is_that_of_prediction(run):
    plain = specialize(load_model(run).network, 0)
    assert INTENSITY.keys() == NORMALISATION.keys() == set(get_args(Intensity))
    tiles, offset, scale = signature_of(load_model(run).recipe).sample(2, (2, 3))
    assert tiles.dtype == torch.uint8
    expected = InkProbability(plain, Window(0, 8, float(offset), float(scale)))
    with torch.no_grad():
        found = InkTiles(plain)(tiles, offset, scale)
        torch.testing.assert_close(found, expected(tiles.float()), rtol=0, atol=1e-6)
        expected.window = replace(expected.window, is_clipped=True)
        clipped = InkTiles(plain, is_clipped=True)(tiles, offset, scale)
        torch.testing.assert_close(clipped, expected(tiles.float()), rtol=0, atol=1e-6)
        assert (clipped - found).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("intensity", "offset", "scale"),
    [("raw", 0, 1 / 255), ("zscore", 121.7, 0.08), ("percentile", 95.0, 1 / 62)],
)
def test_it_is_checked_with_the_normalisation_of_its_recipe(run, intensity, offset, scale):
    """The z-score is that of a simulated fragment over a window of 8 layers."""
    recipe = load_model(run).recipe
    recipe = replace(recipe, window=replace(recipe.window, intensity=intensity))
    _, *scalars = signature_of(recipe).inputs
    for one, value in zip(scalars, (offset, scale), strict=True):
        assert one.low <= value <= one.high, one.name


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> tuple[Path, str]:
    """The file that the command wrote and what it said."""
    out = tmp_path_factory.mktemp("exported") / "model.pt2"
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as said:
        options = ["--out", str(out), "--precision", "bf16"]
        patch.setattr("sys.argv", ["vesuvius", "export", str(run), *options])
        assert main() == 0
    return out, said.getvalue()


def test_the_file_tells_what_it_needs_and_where_it_comes_from(run, written):
    extra_files = {"repmode.json": ""}
    torch.export.load(written[0], extra_files=extra_files)
    record, model = json.loads(extra_files["repmode.json"]), load_model(run)
    assert record["inputs"][0] == {
        "name": "tiles", "dtype": "uint8", "axes": ["N", 8, "Y", "X"], "checked_range": [0, 255],
    }  # fmt: skip
    assert record["output"]["axes"] == ["N", 1, "Y", "X"]
    assert record["free_axes"]["Y"] == {"multiple_of": 4, "at_least": 8}
    assert record["threshold"] == model.threshold
    assert record["checkpoint_sha256"] == model.sha256
    assert record["intensity"] == "zscore"
    assert record["num_layers"] == 8
    assert record["precision"] == "bf16"
    assert 0 < record["rounding_error"]["absolute"] < 0.05
    assert {"project_version", "git_commit", "torch"} <= record.keys()


def test_the_command_says_what_it_wrote(written):
    out, said = written
    _, first, line = said.splitlines()  # the first of all tells what rounding kernels changes
    assert first == f"{out}: tracing the network, writing it, loading it back and comparing ..."
    assert line.startswith(f"{out}: ")
    assert "MiB; loaded back, it differs by" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "model.pt"], "model.pt has the suffix '.pt'; allowed are .onnx and .pt2"),
        (["--out", "model.pt2", "--task", "3"], "no task '3'; it has ink"),
        (["--out", "model.pt2", "--precision", "int8"], "int8"),
        (["--out", "old.pt2"], "old.pt2 exists; delete it or choose another --out"),
        (["--out", "old.pt2/model.pt2"], "old.pt2"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says, run, tmp_path, capsys, monkeypatch):
    (tmp_path / "old.pt2").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vesuvius", "export", str(run), *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vesuvius: error: ")
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt2"]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        export(tmp_path / "none", out=tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
