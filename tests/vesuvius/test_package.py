"""A package holds what a kernel needs, all of it hashed, and no credential."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from core.config import from_dict
from core.deploy import specialize
from vesuvius import package as package_module
from vesuvius.cli import main
from vesuvius.dry_run import DryRun
from vesuvius.inkmap import load_model
from vesuvius.offline import Way, read_package
from vesuvius.package import DATASET, KERNEL, Names, package
from vesuvius.recipes import RECIPES

HEX = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def other_run(run, tmp_path_factory) -> Path:
    """The tiny run with other weights."""
    from core.checkpoint import WEIGHTS, load, save

    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    path = tmp_path_factory.mktemp("other") / "louder.safetensors"
    save(path, WEIGHTS, {name: weight * 1.5 for name, weight in tensors.items()}, meta)
    return path


@pytest.fixture(scope="module")
def built(run, other_run, tmp_path_factory) -> Path:
    """A package of two models."""
    out = tmp_path_factory.mktemp("packages") / "build"
    package((run, other_run), out=out, way=Way(tta=True, stride=48), names=Names("me", "my-ink"))
    return out


def test_the_models_are_the_plain_networks_of_the_runs(built, run, other_run):
    described = read_package(built / "dataset")
    assert described.way == Way(tta=True, stride=48)
    x = torch.randn(1, 1, 8, 32, 32, generator=torch.manual_seed(0))
    for packed, path in zip(described.models, (run, other_run), strict=True):
        model, plain = load_model(path), load_model(built / "dataset" / packed.file)
        assert packed.facts == model.facts()
        assert packed.facts["recipe"] in RECIPES
        with torch.no_grad():
            assert torch.equal(specialize(plain.network, 0)(x), specialize(model.network, 0)(x))


def test_every_file_is_hashed_and_the_dataset_is_flat(built):
    dataset = built / "dataset"
    assert all(path.is_file() for path in dataset.iterdir())  # Kaggle leaves folders out
    lines = (dataset / "SHA256SUMS").read_text().splitlines()
    hashes = dict(reversed(line.split("  ")) for line in lines)
    assert hashes.keys() | {"SHA256SUMS", "dataset-metadata.json"} == {
        path.name for path in dataset.iterdir()
    }
    for name, digest in hashes.items():
        assert hashlib.sha256((dataset / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=dataset, check=True)


def test_kaggle_finds_the_kernel_and_the_kernel_its_dataset(built):
    dataset = json.loads((built / "dataset" / "dataset-metadata.json").read_text())
    assert (dataset["id"], dataset["title"]) == ("me/my-ink", "my-ink")
    kernel = json.loads((built / "kernel" / "kernel-metadata.json").read_text())
    assert kernel["id"] == "me/ink-inference"
    assert kernel["dataset_sources"] == ["me/my-ink"]
    assert (built / "kernel" / kernel["code_file"]).is_file()
    assert len(list((built / "kernel").iterdir())) == 2


def test_the_same_again_gives_the_same_package_and_keeps_what_was_pushed(
    built, run, other_run, tmp_path
):
    out = tmp_path / "build"
    shutil.copytree(built, out)
    (out / "pushed.json").write_text("{}")
    (out / "dataset" / "stale.whl").write_text("")
    package((run, other_run), out=out, way=Way(tta=True, stride=48), names=Names("me", "my-ink"))
    assert (out / "pushed.json").exists()
    found, expected = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (out, built)
    )
    assert found.keys() - expected.keys() == {Path("pushed.json")}
    assert {name: found[name] for name in expected} == expected


def test_without_a_run_the_kernel_is_the_one_that_trains(tmp_path):
    package((), out=tmp_path / "build")
    kernel = json.loads((tmp_path / "build" / "kernel" / "kernel-metadata.json").read_text())
    assert kernel["code_file"] == "ink_training.py"
    assert kernel["dataset_sources"] == ["owner/repmode-wheels"]  # never in place of the models
    described = json.loads((tmp_path / "build" / "dataset" / "package.json").read_text())
    assert described["models"] == []
    assert list((tmp_path / "build" / "dataset").glob("repmode_vesuvius-*.whl"))


@pytest.fixture
def run_with_a_key(run, tmp_path) -> Path:
    """A run folder whose provenance holds a key."""
    shutil.copytree(run, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    provenance["argv"] = ["train", "--wandb-api-" + f"key={HEX}01234567"]
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(provenance))
    return tmp_path / "run"


def test_a_run_that_holds_a_token_is_refused(run_with_a_key, tmp_path):
    with pytest.raises(ValueError, match=r"run/provenance\.json holds what looks like a token"):
        package((run_with_a_key,), out=tmp_path / "build")
    (run_with_a_key / "provenance.json").unlink()
    (run_with_a_key / "kaggle.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run/kaggle\.json is named like a credential"):
        package((run_with_a_key,), out=tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_a_token_in_what_is_built_leaves_no_package(run, tmp_path, monkeypatch):
    def leak(names, folder, *_):
        (folder / "notes.txt").write_text(f"Bearer {HEX}")

    monkeypatch.setattr(package_module, "gather", leak)
    with pytest.raises(ValueError, match=r"dataset/notes\.txt holds what looks like a token"):
        package((run,), out=tmp_path / "build")
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("at", [DATASET, KERNEL])
def test_a_package_that_was_killed_is_made_again(built, run, tmp_path, monkeypatch, at):
    out = tmp_path / "build"
    shutil.copytree(built, out)
    (out / ".package.partial").mkdir()
    (out / at).rename(out / ".package.partial" / f"old-{at}")  # killed between the two renamings
    package((run,), out=out)
    assert {path.name for path in out.iterdir()} == {DATASET, KERNEL}
    assert len(read_package(out / DATASET).models) == 1


def test_other_files_are_not_replaced(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(mine\.txt\) than a package has"):
        package((run,), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "kernel").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds other files \(kernel\) than a package has"):
        package((run,), out=tmp_path / "out")


def test_the_kernels_are_in_the_folder_of_the_project(run, tmp_path, monkeypatch):
    monkeypatch.setattr(package_module, "KERNELS", tmp_path / "site-packages" / "kernels")
    with pytest.raises(FileNotFoundError, match=r"kernels are in the project's folder and not in"):
        package((run,), out=tmp_path / "build")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{run}"], "is part of the ensemble already"),
        (["{run}", "--task", "fibres"], "no task 'fibres'"),
        (["missing"], "missing"),
        (["{run}", "--threshold", "1.5"], "threshold 1.5 is not above 0 and below 1"),
        (["{run}", "--stride", "200"], "the stride at most the tile_size"),
        (["{run}", "--fragment", "{fragment}"], "nothing is tried; add --dry-run"),
        (["--dry-run"], "a kernel that trains is not tried; package a run"),
        (["{run}", "--dry-run", "--hidden-mpx", "0"], "is no area"),
        (["{run}", "--dry-run", "--fragment", "missing"], "missing"),
        (["{run}", "--dry-run", "--fragment", "{fragment}", "--fragment", "{fragment}"],
         "fragments share a name"),
        (["{run}", "--dry-run", "--fragment", "{prepared}"], "is laid out as prepared"),
        (["{run}", "--wheel", "no-such-distribution", "--platform", "win32"],
         "platform 'win32' is not known"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    run, fragments, prepared, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    paths = {"run": run, "fragment": fragments["a"], "prepared": prepared / "1.vol"}
    given = [text.format(**paths) for text in arguments]
    monkeypatch.setattr("sys.argv", ["vesuvius", "package", *given, "--out", "build"])
    assert main() == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("vesuvius: error: ")
    assert message in line
    assert not (tmp_path / "build" / "dataset").exists()


def test_several_runs_and_repeated_options_are_understood(run, other_run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(DryRun, "run", lambda trial, build, runs, _: calls.append((trial, runs)))
    monkeypatch.setattr(package_module, "gather", lambda names, *_: calls.append(names))
    options = ["--wheel", "one", "--wheel", "two", "--tta", "--threshold", "0.4"]
    command = ["vesuvius", "package", str(run), str(other_run), *options]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "build")])
    assert main() == 0
    names, (trial, runs) = calls
    assert names[-2:] == ("one", "two")
    assert runs == (run, other_run)
    assert not trial.dry_run
    described = json.loads((tmp_path / "build" / "dataset" / "package.json").read_text())
    assert from_dict(Way, described["way"]) == Way(tta=True, threshold=0.4)
