"""Figures as commands: what their numbers say, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from core.checkpoint import WEIGHTS, load, save
from core.config import from_dict, to_dict
from core.expert_shares import expert_shares
from core.files import read_json, write_json
from core.metrics import ProbabilityHistogram
from tests.vesuvius.test_evaluate import write_prediction
from vesuvius.cli import main
from vesuvius.figure_experts import experts
from vesuvius.figure_network import network
from vesuvius.figure_samples import GAP, samples
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import load_model
from vesuvius.maps import MapFile
from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.registry import build_network, model_name
from vesuvius.prepared import open_prepared
from vesuvius.recipes import InkRecipe


def untrained(run: Path, out: Path, **network) -> Path:
    """Write a run of another network, as `run` but never trained."""
    _, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    description = meta["description"]
    recipe = from_dict(InkRecipe, description["recipe"], where="test")
    config = network.pop("config", None) or replace(recipe.network, **network)
    torch.manual_seed(0)
    weights = build_network(config, recipe.window.num_layers, 1).state_dict()
    recipe = replace(recipe, network=config)
    description |= {"recipe": to_dict(recipe), "model": model_name(config)}
    (out / "checkpoints").mkdir(parents=True)
    save(out / "checkpoints" / "best.safetensors", WEIGHTS, weights, meta)
    write_json(out / "config.json", {"description": description})
    return out


@pytest.fixture(scope="module")
def run_3d(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("figure") / "three"
    return untrained(run, out, decoder="3d", output_stride=2)


@pytest.fixture(scope="module")
def run_i3d(run, tmp_path_factory) -> Path:
    config = I3DConfig(base_channels=8, decoder_channels=1)
    return untrained(run, tmp_path_factory.mktemp("figure") / "i3d", config=config)


def check_picture(out: Path, least: int) -> dict:
    """Return the numbers of a figure, whose picture must be there and no wider than a screen."""
    picture = cv2.imread(str(out))
    assert least < picture.shape[1] <= 1920
    assert picture.std() > 10
    return read_json(out.with_suffix(".json"))


def test_shares_of_experts_are_those_of_the_model(run, run_3d, tmp_path, capsys):
    out = tmp_path / "experts.png"
    experts((run, run_3d), out=out)
    first, second = check_picture(out, 1000)["runs"]
    assert (first["run"], second["run"], first["task"]) == (str(run), str(run_3d), "ink")
    blocks = expert_shares(load_model(run).network, 0)
    assert list(first["blocks"]) == [block.name for block in blocks]
    for measure in ("gates", "contributions"):
        for name in ("convolution 3", "convolution 1", "average 3"):
            shares = [block[measure][name] for block in first["blocks"].values()]
            assert first["total"][measure][name] == pytest.approx(np.mean(shares))
        assert sum(first["total"][measure].values()) == pytest.approx(1)
    assert first["total"]["gates"] != first["total"]["contributions"]
    assert f"picture in {out}, numbers in {out.with_suffix('.json')}" in capsys.readouterr().err
    experts((run,), out=out)  # a figure of the same kind is replaced
    assert len(read_json(out.with_suffix(".json"))["runs"]) == 1


def test_the_network_is_shown_with_what_it_decodes(run, run_3d, prepared, tmp_path):
    out = tmp_path / "network.png"
    options = {"data": prepared, "fragment": "1", "out": out, "size": 32}
    network(run_3d, run, at=(16, 8), **options)
    found = check_picture(out, 900)
    volume = open_prepared(prepared / "1.vol")
    assert found["ink_share"] == pytest.approx(volume.ink_label[16:48, 8:40].mean())
    assert found["3d"]["output_volume"] == [4, 16, 16]  # 8 layers at an output stride of 2
    assert found["2d"]["output_volume"] is None
    start, stop = found["3d"]["layers"]
    assert found["layers_shown"] == [start, start + 2, start + 4, start + 6]
    assert stop - start == 8
    assert found["2d"]["patch_was"] == "trained on"
    pieces = read_json(run / "config.json")["description"]["pieces"]
    (held_out,) = (p for p in pieces if p["role"] == "validation" and p["fragment"] == "1")
    network(run_3d, run, at=(held_out["y_start"] + 8, held_out["x_start"] + 1), **options)
    assert read_json(out.with_suffix(".json"))["2d"]["patch_was"] == "held out of training"


@pytest.fixture
def ways(fragments, tmp_path) -> tuple[Path, ...]:
    """Predictions of fragment "1" with 16, 1 and 4 samples."""
    return tuple(
        write_prediction(tmp_path / f"{samples}", fragments["1"], samples=samples)
        for samples in (16, 1, 4)
    )


def test_each_half_tells_the_other_its_temperature(ways, fragments, tmp_path):
    out = tmp_path / "samples.png"
    samples(ways, out=out)
    record = check_picture(out, 1000)
    assert record["temperature_and_threshold_from"] == "the other half of the fragment"
    found = record["ways"]
    assert [way["num_predictions"] for way in found] == [1, 4, 16]
    assert [len(way["uncertainty"]) for way in found] == [1, 4, 4]
    assert found[0]["wrong_share"] > found[1]["wrong_share"] > found[2]["wrong_share"]
    for way in found:
        assert len(set(way["temperatures"])) == 2
        assert way["calibration_error_tempered"] != way["calibration_error"]
    first, second = (p["piece"] for p in sorted(
        record["pieces"][:2], key=lambda piece: piece["piece"]["x_start"]))  # fmt: skip
    assert second["x_start"] - first["x_stop"] == GAP
    opened, prob = open_fragment(fragments["1"]), MapFile(ways[1] / "prob.tif")
    histogram = ProbabilityHistogram()
    part = slice(first["y_start"], first["y_stop"]), slice(first["x_start"], first["x_stop"])
    maps = prob.read(0, prob.shape[0])[0], opened.ink_label, opened.papyrus_mask
    histogram.add(*(one[part] for one in maps))
    by_place = {p["piece"]["x_start"]: p for p in record["pieces"][:2]}
    assert by_place[second["x_start"]]["threshold"] == histogram.best_threshold()[0]


def test_a_fragment_with_ink_in_one_half_has_no_temperature_and_it_is_said(fragments, tmp_path):
    folder = shutil.copytree(fragments["1"], tmp_path / "1")
    label = cv2.imread(str(folder / "inklabels.png"), cv2.IMREAD_GRAYSCALE)
    label[:, label.shape[1] // 2 - GAP :] = 0
    cv2.imwrite(str(folder / "inklabels.png"), label)
    samples((write_prediction(tmp_path / "one", folder),), out=tmp_path / "samples.png")
    record = read_json(tmp_path / "samples.json")
    assert record["temperature_and_threshold_from"].startswith("the model alone")
    assert record["ways"][0]["temperatures"] == [None]
    assert record["ways"][0]["thresholds"] == [0.5]


def test_other_fragments_tell_temperature_where_they_are_given(ways, fragments, tmp_path):
    other = write_prediction(tmp_path / "other", fragments["2"], brightness=0.1)
    out = tmp_path / "samples.png"
    samples((*ways, other), out=out)
    record = read_json(out.with_suffix(".json"))
    assert record["temperature_and_threshold_from"] == "predictions of other fragments"
    assert [way["temperatures"] == [None] for way in record["ways"]] == [False, True, True]
    assert record["fragment"] == "1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("expert {run} --out {out}", "unknown command 'expert'; perhaps you meant 'experts'"),
        ("experts {i3d} --out {out}", "i3d is a I3D network without mixtures of experts; give"),
        ("experts {run} --out {out}.pdf", "is no .png; give one"),
        ("experts --out {out}", "no run given"),
        ("experts {data} --out {out}", "is no run folder"),
        ("experts {run} --out {foreign}", "foreign.png exists and is no figure of experts; choose"),
        ("network {run} {run} {one} --at 0 0", "has no 3d decoder but 2d; give the run with the"),
        ("network {three} {three} {one} --at 0 0", "has no 2d decoder but 3d"),
        ("network {i3d} {run} {one} --at 0 0", "has no 3d decoder but I3DConfig"),
        ("network {three} {run} {one} --at 100 0 --size 64", "which is 128 x 144; allowed is up"),
        ("network {three} {run} {one} --at 0 0 --size 8", "--size 8 is below 16"),
        ("network {three} {run} {none} --at 0 0", "9.vol not found; {data} holds 1, 2: name one"),
        ("samples --out {out}", "no prediction given"),
        ("samples {data} --out {out}", "is no finished prediction"),
        ("samples {pred} {pred} --out {out}", "in the same way; leave one out"),
    ],
)
def test_wrong_use_is_one_line(
    arguments, says, run, run_3d, run_i3d, prepared, fragments, tmp_path, capsys, monkeypatch
):
    out, foreign = tmp_path / "out.png", tmp_path / "foreign.png"
    foreign.write_text("mine")
    common = f"--data {prepared} --out {out} --fragment"
    values = {"run": run, "three": run_3d, "i3d": run_i3d, "data": prepared, "out": out,
              "foreign": foreign, "one": f"{common} 1", "none": f"{common} 9",
              "pred": write_prediction(tmp_path / "pred", fragments["1"])}  # fmt: skip
    filled = arguments.format(**values).split()
    monkeypatch.setattr("sys.argv", ["vesuvius", "figure", *filled])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says.format(**values) in error
    assert error.startswith("vesuvius: error: ")
    assert foreign.read_text() == "mine"
    assert not out.exists()
