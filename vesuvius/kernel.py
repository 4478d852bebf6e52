"""The kernels of Kaggle, but for how they find this code: install, then predict or train.

A kernel imports this from the wheel in its dataset before anything is installed, so nothing here
imports more than the standard library until the wheels are.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "package.json"
SUMS = "SHA256SUMS"
SAMPLE = "sample_submission.csv"  # of the competition
RUN = "run"
LAST = Path("checkpoints", "last.safetensors")


def infer(root: Path, budget_s: float) -> None:
    """Predict the fragments of the competition's test folder.

    Args:
        root: Of Kaggle's folders input and working.
        budget_s: Seconds from now.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If an input is there twice, or the package is damaged.
        RuntimeError: If the time is too short, or a prediction failed.
    """
    started_s = time.monotonic()
    package, competition = find_input(root, PACKAGE), find_input(root, SAMPLE)
    install(package)
    from vesuvius.offline import predict_all

    left_s = budget_s - (time.monotonic() - started_s)
    predict_all(package, competition / "test", root / "working", left_s)


def train(root: Path, recipe: str, options: Sequence[str], budget_s: float) -> None:
    """Prepare the fragments of the competition's train folder and train until the time is up.

    A run that is in working, or among the inputs, is continued.

    Args:
        root: Of Kaggle's folders input and working.
        recipe: Name of the recipe.
        options: Of `vesuvius train`.
        budget_s: Seconds from now.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If an input is there twice, or the package is damaged.
        subprocess.CalledProcessError: If a command failed; it says why itself.
    """
    started_s = time.monotonic()
    package, competition = find_input(root, PACKAGE), find_input(root, SAMPLE)
    install(package)
    prepared, run = Path(tempfile.gettempdir()) / "prepared", root / "working" / RUN
    fragments = sorted(map(str, (competition / "train").iterdir()))
    vesuvius = [sys.executable, "-m", "vesuvius"]
    subprocess.run([*vesuvius, "prepare", *fragments, f"--out={prepared}"], check=True)
    earlier = list_inputs(root, LAST.name)
    if not run.exists() and earlier:
        shutil.copytree(only(earlier, LAST.name).parent, run)
    resume = ["--resume"] * (run / LAST).exists()
    command = [*vesuvius, "train", recipe, f"--data={prepared}", f"--out={run}", *options, *resume]
    left_s = budget_s - (time.monotonic() - started_s)
    try:
        subprocess.run(command, check=True, timeout=left_s)
    except subprocess.TimeoutExpired:  # killed, which loses nothing since the last checkpoint
        print("The time is up. Add this kernel's output to its inputs and run it again.")


def install(package: Path) -> None:
    """Install the wheels of a package, all of whose files must be as they were packed.

    Raises:
        ValueError: If one is not.
    """
    for line in (package / SUMS).read_text(encoding="utf-8").splitlines():
        expected, name = line.split("  ")
        with open(package / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(f"{package / name} is damaged; push the dataset again")
    wheels = sorted(map(str, package.glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *wheels], check=True)
    importlib.invalidate_caches()


def find_input(root: Path, name: str) -> Path:
    """Return the only folder of inputs that holds a file, wherever Kaggle mounts it."""
    return only(list_inputs(root, name), name)


def list_inputs(root: Path, name: str) -> list[Path]:
    """Return all folders of inputs that hold a file."""
    found = glob.glob(f"input/**/{name}", root_dir=root, recursive=True)  # follows links
    return sorted((root / path).parent for path in found)


def only(folders: Sequence[Path], name: str) -> Path:
    """Return the only folder that holds a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several.
    """
    if not folders:
        raise FileNotFoundError(f"no input holds {name}; add the dataset and the competition")
    if len(folders) > 1:
        listed = ", ".join(map(str, folders))
        raise ValueError(f"several inputs hold {name}: {listed}; leave one")
    return folders[0]
