"""A packed kernel predicts whatever is there with what fits the time, and says what it chose."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from core.config import to_dict
from core.files import write_json
from core.terminal import run as run_command
from tests.vesuvius.conftest import write_fragment
from vesuvius import offline
from vesuvius.cli import COMMANDS
from vesuvius.ensemble import EnsembleConfig
from vesuvius.inkmap import load_model, save_plain
from vesuvius.offline import (
    Package,
    Packed,
    Plan,
    Way,
    choose_plan,
    count_tiles,
    estimate,
    find_fragments,
    measure,
    predict_all,
    read_package,
    run_on_devices,
)
from vesuvius.predict import predict
from vesuvius.submission import read_submission, submit

SECONDS = (1.0, 2.0, 4.0)  # of one look of each model at a tile
HOUR = 3600.0


def chosen(budget_s: float, tta: bool = True, tiles: tuple[int, ...] = (100,)) -> Plan:
    return choose_plan(tta, SECONDS, tiles, 1, budget_s / offline.MARGIN)


def test_what_takes_too_long_is_left_out_in_a_fixed_order(capsys):
    margin = offline.MARGIN**2
    assert chosen(100 * 8 * 7 * margin) == Plan(3, True)
    assert chosen(100 * 8 * 7 * margin - 1) == Plan(3, False)
    assert chosen(100 * 7 * margin - 1) == Plan(2, False)
    assert chosen(100 * 3 * margin - 1) == Plan(1, False)
    assert "2 models, 1 views: would take 0.10 h" in capsys.readouterr().err
    assert chosen(100 * 8 * 7 * margin, tta=False) == Plan(3, False)


def test_without_time_for_one_model_nothing_is_begun():
    with pytest.raises(RuntimeError, match=r"one model takes about 0\.03 h for 100 tiles and only"):
        chosen(99)


def test_devices_share_the_fragments_and_the_busiest_decides():
    plan = Plan(1, False)
    assert estimate(plan, SECONDS, (5, 3, 2), 1) == offline.MARGIN * 10
    assert estimate(plan, SECONDS, (2, 5, 3), 2) == offline.MARGIN * 5
    assert estimate(plan, SECONDS, (5,), 2) == offline.MARGIN * 5
    assert Plan(2, True).seconds(SECONDS) == 24


def test_each_device_runs_one_command_at_a_time(tmp_path):
    code = """
import json, os, sys, time
started_s = time.time()
time.sleep(0.2)
with open(sys.argv[1], "w") as file:
    json.dump([os.environ["CUDA_VISIBLE_DEVICES"], started_s, time.time()], file)
"""
    paths = [tmp_path / str(number) for number in range(4)]
    run_on_devices([[sys.executable, "-c", code, str(path)] for path in paths], 2)
    found = sorted(json.loads(path.read_text()) for path in paths)
    assert {device for device, _, _ in found} == {"0", "1"}
    for (device, _, stopped_s), (other, started_s, _) in pairwise(found):
        assert device != other or stopped_s <= started_s


def test_a_prediction_that_fails_fails_the_kernel():
    with pytest.raises(RuntimeError, match="ended with code 3; it says why above"):
        run_on_devices([[sys.executable, "-c", "raise SystemExit(3)"]], 0)


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory) -> Path:
    """A package of the tiny run twice over, but for wheels; the second is the first, scaled."""
    folder = tmp_path_factory.mktemp("package")
    model = load_model(run)
    save_plain(model, "ink", folder / "model-0.safetensors")
    with torch.no_grad():
        for weight in model.network.parameters():
            weight *= 1.5
    save_plain(model, "ink", folder / "model-1.safetensors")
    models = tuple(Packed(f"model-{n}.safetensors", "ink", model.facts()) for n in range(2))
    way = Way(tta=True, tile_size=48, stride=40, batch_size=4)
    write_json(folder / "package.json", to_dict(Package(None, models, way)))
    return folder


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Path:
    """A test folder of fragments that nobody has seen, of other sizes."""
    folder = tmp_path_factory.mktemp("hidden")
    write_fragment(folder / "x", 5, (70, 110))
    write_fragment(folder / "longer name", 6, (130, 60))
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """Let predictions run in this process, and measure for a moment only."""

    def run_all(commands, num_gpus):
        for command in commands:
            assert command[:3] == [sys.executable, "-m", "vesuvius"]
            assert run_command("vesuvius", "", COMMANDS, command[3:]) == 0

    monkeypatch.setattr(offline, "run_on_devices", run_all)
    monkeypatch.setattr(offline, "MEASURED_S", 0.01)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("num_models", [1, 2])
def test_the_csv_is_that_of_predict_and_submit(packed, hidden, tmp_path, monkeypatch, num_models):
    monkeypatch.setattr(offline, "choose_plan", lambda *_: Plan(num_models, num_models == 2))
    predict_all(packed, hidden, tmp_path, HOUR)
    others = (packed / "model-1.safetensors",) if num_models == 2 else ()
    averaged = EnsembleConfig(tta=num_models == 2, ensemble=others)
    names = ("longer name", "x")
    for name in names:
        predict(
            packed / "model-0.safetensors",
            hidden / name,
            out=tmp_path / name,
            tile_size=48,
            stride=40,
            batch_size=4,
            averaged=averaged,
        )
    submit(tuple(tmp_path / name for name in names), out=tmp_path / "direct.csv")
    assert (tmp_path / "submission.csv").read_bytes() == (tmp_path / "direct.csv").read_bytes()
    assert list(read_submission(tmp_path / "submission.csv")) == list(names)
    facts = json.loads((tmp_path / "plan.json").read_text())
    assert facts["plan"] == {"num_models": num_models, "tta": num_models == 2}
    assert facts["num_tiles"] == {"longer name": 8, "x": 6}
    assert len(facts["seconds_per_tile"]) == 2


@pytest.mark.usefixtures("in_process")
def test_where_the_time_is_short_no_prediction_is_begun(packed, hidden, tmp_path):
    with pytest.raises(RuntimeError, match="h are left; package with a larger --stride"):
        predict_all(packed, hidden, tmp_path, 1e-6)
    assert list(tmp_path.iterdir()) == []


def test_a_measure_is_about_a_tile(packed, monkeypatch):
    monkeypatch.setattr(offline, "MEASURED_S", 0.05)
    model = load_model(packed / "model-0.safetensors")
    small = measure(model, Way(tile_size=32, stride=32, batch_size=2), torch.device("cpu"))
    large = measure(model, Way(tile_size=256, batch_size=2), torch.device("cpu"))
    assert 0 < small < large


def test_tiles_are_counted_as_predict_counts_them(hidden, capsys, packed, tmp_path):
    way = Way(tile_size=48, stride=40)
    predict(
        packed / "model-0.safetensors", hidden / "x", out=tmp_path / "x", tile_size=48, stride=40
    )
    assert f"x: {count_tiles(hidden / 'x', way)}/" in capsys.readouterr().err


def test_a_package_without_model_and_a_folder_without_fragment_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"package\.json"):
        read_package(tmp_path)
    write_json(tmp_path / "package.json", to_dict(Package(None, (), Way())))
    with pytest.raises(ValueError, match="holds no model; package a run"):
        read_package(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no fragment; add the competition"):
        find_fragments(tmp_path)
