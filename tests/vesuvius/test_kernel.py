"""The kernels find their inputs wherever they are mounted, install, and hand over."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vesuvius import kernel
from vesuvius.kernel import find_input, infer, install, train

REPOSITORY = Path(__file__).parents[2]
KERNELS = {name: REPOSITORY / "kernels" / name for name in ("ink-inference", "ink-training")}


@pytest.fixture
def root(tmp_path) -> Path:
    """Kaggle's folders, with a package mounted deeper than the competition."""
    package = tmp_path / "input" / "datasets" / "me" / "ink"
    package.mkdir(parents=True)
    (package / "package.json").write_text("{}")
    (package / "one-1.0-py3-none-any.whl").write_bytes(b"wheel")
    digest = hashlib.sha256(b"wheel").hexdigest()
    (package / "SHA256SUMS").write_text(f"{digest}  one-1.0-py3-none-any.whl\n")
    data = tmp_path / "elsewhere"
    for name in ("train/1", "train/2", "test/a"):
        (data / name).mkdir(parents=True)
    (data / "sample_submission.csv").write_text("Id,Predicted\n")
    (tmp_path / "input" / "competition").symlink_to(data)
    (tmp_path / "working").mkdir()
    return tmp_path


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What would be run."""
    found: list[list[str]] = []

    def run(command, **options):
        assert options["check"]
        found.append(command)

    monkeypatch.setattr(kernel.subprocess, "run", run)
    return found


def test_the_wheels_are_installed_offline_and_nothing_else_with_them(root, commands):
    package = find_input(root, "package.json")
    install(package)
    ((_, *command),) = commands
    assert command[:3] == ["-m", "pip", "install"]
    assert {"--no-index", "--no-deps"} < set(command)
    assert command[-1] == str(package / "one-1.0-py3-none-any.whl")


def test_a_damaged_file_is_named_before_anything_is_installed(root, commands):
    package = find_input(root, "package.json")
    (package / "one-1.0-py3-none-any.whl").write_bytes(b"whee1")
    with pytest.raises(ValueError, match=r"one-1\.0.* is damaged; push the dataset again"):
        install(package)
    assert commands == []


def test_an_input_must_be_there_once(root):
    with pytest.raises(FileNotFoundError, match=r"no input holds missing\.csv; add the dataset"):
        find_input(root, "missing.csv")
    other = root / "input" / "old"
    other.mkdir()
    (other / "package.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several inputs hold package\.json: .*leave one"):
        find_input(root, "package.json")


def test_inference_gets_the_test_folder_and_the_time_that_is_left(root, commands, monkeypatch):
    calls = []
    monkeypatch.setattr("vesuvius.offline.predict_all", lambda *args: calls.append(args))
    infer(root, 100.0)
    ((package, test, out, left_s),) = calls
    assert package == root / "input" / "datasets" / "me" / "ink"
    assert (test.name, out) == ("test", root / "working")
    assert 90 < left_s < 100


def train_commands(commands: list[list[str]]) -> tuple[list[str], list[str]]:
    _, prepare, training = ([*command[3:]] for command in commands)
    return prepare, training


def test_training_prepares_every_fragment_and_starts_a_run(root, commands):
    train(root, "small", ["--training.epochs=1"], 100.0)
    prepare, training = train_commands(commands)
    assert [Path(path).name for path in prepare[1:-1]] == ["1", "2"]
    assert training[:2] == ["train", "small"]
    assert f"--out={root / 'working' / 'run'}" in training
    assert "--training.epochs=1" in training
    assert "--resume" not in training


def test_training_goes_on_from_a_run_among_the_inputs(root, commands):
    earlier = root / "input" / "ink-training" / "run" / "checkpoints"
    earlier.mkdir(parents=True)
    (earlier / "last.safetensors").write_bytes(b"state")
    train(root, "small", [], 100.0)
    assert train_commands(commands)[1][-1] == "--resume"
    run = root / "working" / "run"
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == b"state"
    (run / "checkpoints" / "last.safetensors").write_bytes(b"later")
    commands.clear()
    train(root, "small", [], 100.0)
    assert train_commands(commands)[1][-1] == "--resume"
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == b"later"


def test_training_that_runs_out_of_time_ends_well(root, monkeypatch, capsys):
    def run(command, check, timeout=None):
        if timeout is not None:
            raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(kernel.subprocess, "run", run)
    train(root, "small", [], 100.0)
    assert "The time is up" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "folder"), KERNELS.items())
def test_a_kernel_is_a_short_script_that_runs_offline_on_a_gpu(name, folder):
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "kernel-metadata.json",
        metadata["code_file"],
    }
    lines = (folder / metadata["code_file"]).read_text().splitlines()
    assert len(lines) < 80
    assert not any(line.startswith(("class ", "def ")) for line in lines)
    assert (metadata["id"], metadata["title"]) == (f"owner/{name}", name)
    assert metadata["kernel_type"] == "script"
    assert (metadata["enable_gpu"], metadata["enable_internet"]) == (True, False)
    assert metadata["competition_sources"] == ["vesuvius-challenge-ink-detection"]


@pytest.mark.parametrize("folder", KERNELS.values())
def test_a_kernel_without_its_dataset_says_what_to_add(folder, tmp_path):
    script = next(folder.glob("*.py"))
    answer = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "VESUVIUS_KAGGLE_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert answer.stderr == ("0 packages of vesuvius are among the inputs; add one such dataset\n")


def test_a_kernel_begins_with_the_standard_library_alone():
    code = (
        "import sys; import vesuvius.kernel; "
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    found = {name for name in answer.stdout.split() if "editable" not in name}
    assert found <= {"vesuvius", "__main__", "_distutils_hack", "sitecustomize"}
