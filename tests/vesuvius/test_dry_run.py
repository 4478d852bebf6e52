"""A package is tried as Kaggle would run it, and what goes wrong there goes wrong here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vesuvius.conftest import tiny_recipe
from vesuvius import dry_run
from vesuvius.clean_environment import CleanEnvironment, make_environment
from vesuvius.dry_run import DryRun, _check_fit, _compare
from vesuvius.kaggle_image import HAS
from vesuvius.offline import Package, Plan, Way, read_package
from vesuvius.package import package
from vesuvius.prepare import prepare
from vesuvius.recipes import InkRecipe
from vesuvius.rle import decode, encode
from vesuvius.simulate import simulate
from vesuvius.submission import read_submission, write_submission
from vesuvius.train import train

NUM_LAYERS = 16
WAY = Way(tile_size=48, stride=40, batch_size=4)
SIZES = {"x": (70, 110), "longer-name": (130, 64)}


def tiny() -> InkRecipe:
    recipe = tiny_recipe()
    return replace(recipe, training=replace(recipe.training, epochs=1))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict[str, Path]:
    """Folders of fragments of 16 layers: "1" to train on, and hidden ones of other sizes."""
    root = tmp_path_factory.mktemp("simulated")
    for seed, (name, size) in enumerate({"1": (160, 192), **SIZES}.items()):
        simulate(root / name, size=size, layers=NUM_LAYERS, seed=seed)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def trained(simulated, tmp_path_factory) -> Path:
    """Run folder of the tiny recipe."""
    root = tmp_path_factory.mktemp("trained")
    prepare((simulated["1"],), out=root / "prepared")
    train(root / "prepared", root / "run", tiny())
    return root / "run"


@pytest.fixture
def built(trained, tmp_path) -> Path:
    package((trained,), out=tmp_path / "build", way=WAY)
    return tmp_path / "build"


def hidden_of(simulated) -> tuple[Path, ...]:
    return tuple(simulated[name] for name in SIZES)


def stub(monkeypatch, spoil=None, code: int = 0) -> None:
    """Let the kernel be a direct prediction that `spoil` may change, or that ends with a code."""

    def run(environment, script, cwd, log, variables):
        log.write_text("first\nlast words\n")
        if code:
            return code
        root = Path(variables["VESUVIUS_KAGGLE_ROOT"])
        monkeypatch.setattr("vesuvius.offline.MEASURED_S", 0.01)
        from vesuvius.offline import predict_all

        (inputs,) = root.glob("input/vesuvius*")
        (data,) = root.glob("input/repmode*")
        predict_all(data, inputs / "test", root / "working", 3600.0)
        if spoil:
            spoil(root / "working" / "submission.csv")
        return 0

    monkeypatch.setattr(dry_run, "STAND_INS", {"a": (1.5, 1.5)})
    monkeypatch.setattr(CleanEnvironment, "run", run)
    base = {name.lower().replace("_", "-"): "1" for name in HAS}
    monkeypatch.setattr(
        dry_run, "make_environment", lambda folder, *_, **__: CleanEnvironment(folder, base, True)
    )
    monkeypatch.setattr(
        "vesuvius.offline.run_on_devices", lambda commands, _: list(map(run_here, commands))
    )


def run_here(command: list[str]) -> None:
    from core.terminal import run
    from vesuvius.cli import COMMANDS

    assert run("vesuvius", "", COMMANDS, command[3:]) == 0


def test_a_mask_that_differs_in_a_pixel_is_found(built, trained, simulated, monkeypatch, capsys):
    stub(monkeypatch)
    DryRun(True, hidden_of(simulated)).run(built, [trained], NUM_LAYERS)
    assert "x, longer-name are those of `vesuvius predict`, bit for bit" in capsys.readouterr().err
    csv = built / "dry-run" / "hidden" / "working" / "submission.csv"
    masks = {name: decode(text, SIZES[name]) for name, text in read_submission(csv).items()}
    masks["x"][0, 0] ^= True
    write_submission(masks, csv)
    hidden = {name: simulated[name] for name in SIZES}
    with pytest.raises(RuntimeError, match=r"masks of x differ from those of `vesuvius predict`"):
        _compare(
            built / "dry-run", read_package(built / "dataset"), [trained], hidden, Plan(1, False)
        )


def test_a_csv_that_kaggle_would_refuse_is_refused(built, trained, simulated, monkeypatch):
    stub(monkeypatch, spoil=lambda csv: csv.write_text("Id,Predicted\nb,1 1\n"))
    with pytest.raises(ValueError, match=r"submission\.csv lacks \['a'\] and add \['b'\]"):
        DryRun(True, hidden_of(simulated)).run(built, [trained], NUM_LAYERS)


def test_a_kernel_that_fails_is_quoted(built, trained, simulated, monkeypatch):
    stub(monkeypatch, code=1)
    with pytest.raises(
        RuntimeError, match=r"ended with code 1, saying 'last words'; see .*log\.txt"
    ):
        DryRun(True, hidden_of(simulated)).run(built, [trained], NUM_LAYERS)


def test_a_wheel_for_another_python_is_named():
    _check_fit(["a-1-py3-none-any.whl", "b-1-cp311-abi3-manylinux_2_28_x86_64.whl"])
    with pytest.raises(ValueError, match=r"c-1-cp27-.*try the package with Python 3\.12"):
        _check_fit(["a-1-py3-none-any.whl", "c-1-cp27-cp27m-manylinux1_x86_64.whl"])


def facts(seconds: float, num_devices: int = 1) -> dict:
    return {
        "plan": {"num_models": 1, "tta": False},
        "seconds_per_tile": [seconds],
        "num_devices": num_devices,
        "device": "cpu",
    }


def test_the_forecast_scales_with_area_and_warns_when_it_is_too_long(capsys):
    described = Package(None, (), Way(stride=100))
    found = DryRun(hidden_mpx=10).forecast(described, facts(3.6))  # a thousand tiles
    assert (found["tiles"], found["is_over"]) == (1000, False)
    assert found["hours"] == pytest.approx(1.25)
    assert capsys.readouterr().err.startswith("10 million pixels of papyrus (assumed; --hidden-mpx")
    found = DryRun(hidden_mpx=100).forecast(described, facts(3.6))
    assert (found["hours"], found["is_over"]) == (pytest.approx(12.5), True)
    assert capsys.readouterr().err.startswith("warning: 100 million pixels")
    assert not DryRun(hidden_mpx=100).forecast(described, facts(3.6, num_devices=2))["is_over"]


@pytest.mark.slow
def test_the_packed_kernel_runs_clean_and_offline_on_fragments_it_never_saw(
    trained, simulated, tmp_path, monkeypatch, capsys
):
    # what is installed here must not be reached by the kernel
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    out = tmp_path / "build"
    package((trained,), out=out, way=WAY, trial=DryRun(True, hidden_of(simulated), hidden_mpx=1.0))
    said = capsys.readouterr().err
    assert "linked from here: accelerate" in said
    assert "x, longer-name are those of `vesuvius predict`, bit for bit" in said
    report = json.loads((out / "dry-run" / "report.json").read_text())
    assert report["hidden"]["num_tiles"].keys() == SIZES.keys()
    assert report["hidden"]["plan"] == {"num_models": 1, "tta": False}
    assert not report["base"].keys() & {"tyro", "segmentation-models-pytorch", "pytest", "zarr"}
    hidden = read_submission(out / "dry-run" / "hidden" / "working" / "submission.csv")
    assert list(hidden) == sorted(SIZES)
    assert all(encode(decode(hidden[name], SIZES[name])) == hidden[name] for name in SIZES)
    stand_in = read_submission(out / "dry-run" / "stand-in" / "working" / "submission.csv")
    assert list(stand_in) == ["a", "b"]
    assert {path.name for path in out.iterdir()} == {"dataset", "kernel", "dry-run"}
    assert not (out / "dry-run" / "python").exists()


@pytest.mark.slow
def test_the_packed_training_kernel_trains_and_goes_on(simulated, tmp_path):
    out, root = tmp_path / "build", tmp_path / "kaggle"
    package((), out=out)
    competition = root / "input" / "competition"
    (competition / "train").mkdir(parents=True)
    (root / "working").mkdir()
    (competition / "sample_submission.csv").write_text("Id,Predicted\n")
    (competition / "train" / "1").symlink_to(simulated["1"])
    (root / "input" / "wheels").symlink_to(out / "dataset")
    wheels = [path.name.partition("-")[0] for path in (out / "dataset").glob("*.whl")]
    environment = make_environment(tmp_path / "python", HAS, without=wheels)
    script = out / "kernel" / "ink_training.py"
    options = [
        "--training.epochs=1", "--network.base-channels=2", "--network.num-stages=2",
        "--window.num-layers=8", "--sampling.patch-size=32", "--sampling.bucket-cap=1",
        "--sampling.num-void=4", "--validation.gap=16", "--validation.tile-size=48",
        "--validation.stride=32",
    ]  # fmt: skip
    text = script.read_text().replace('RECIPE = "buckets"', 'RECIPE = "small"')
    script.write_text(text.replace("OPTIONS = [", f"OPTIONS = [*{options}, "))

    def run() -> str:
        log = tmp_path / "log.txt"
        variables = {"VESUVIUS_KAGGLE_ROOT": str(root)}
        assert environment.run(script, root / "working", log, variables) == 0, log.read_text()
        return log.read_text()

    assert "epoch 1: loss" in run()
    # another session: the first one's output is among the inputs
    shutil.move(root / "working", root / "input" / "earlier")
    (root / "working").mkdir()
    run()
    first, second = (
        (folder / "run" / "checkpoints" / "best.safetensors").read_bytes()
        for folder in (root / "input" / "earlier", root / "working")
    )
    assert first == second
