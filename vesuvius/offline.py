"""What a packed kernel does: choose what fits the time, predict every fragment, submit.

A package is a flat folder of plain models, wheels and `package.json`, which names the models and
how they predict. It knows nothing of the fragments: whatever lies in the folder of tests is
predicted, so the hidden ones may have any name, number and size.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.config import from_dict, to_dict
from core.files import read_json, write_json
from core.inference import choose_device
from core.terminal import note
from core.tiling import TilePlan
from core.uncertainty import predictor
from vesuvius.ensemble import Ensemble, EnsembleConfig
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import InkModel, Window, load_model
from vesuvius.submission import submit

PACKAGE = "package.json"
PLAN = "plan.json"
CSV = "submission.csv"
NUM_VIEWS = 8  # of tta
MARGIN = 1.25  # of the estimate: reading, writing, a processor that slows down when it is warm
MEASURED_S = 2.0  # at least, of each model


@dataclass(frozen=True)
class Way:
    """How a package predicts.

    Args:
        tta: Average the 8 flips and quarter turns of each tile, if the time allows.
        tile_size: Rows and columns of a tile.
        stride: Step between tiles.
        batch_size: Tiles predicted at once.
        threshold: Probability, between 0 and 1, from which a pixel counts as ink; by default the
            mean of the models' own.
    """

    tta: bool = False
    tile_size: int = 128
    stride: int = 64
    batch_size: int = 8
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 1 <= self.stride <= self.tile_size:
            raise ValueError(
                f"batch_size {self.batch_size}, stride {self.stride} and tile_size "
                f"{self.tile_size} must be at least 1, and the stride at most the tile_size"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} is not above 0 and below 1")


@dataclass(frozen=True)
class Packed:
    """A model of a package.

    Attributes:
        file: Name of its file in the package.
        task: Name of the task it was made for.
        facts: What identifies the model it was made of, as `InkModel.facts`.
    """

    file: str
    task: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Package:
    """What `package.json` says.

    Attributes:
        commit: Of this project, `-dirty` after it if files differed from it; None if unknown.
        models: Their predictions are averaged; the first comes first.
        way: How they predict.
    """

    commit: str | None
    models: tuple[Packed, ...]
    way: Way


@dataclass(frozen=True)
class Plan:
    """What is predicted with.

    Attributes:
        num_models: The first ones of the package.
        tta: Whether each looks at every tile in 8 ways.
    """

    num_models: int
    tta: bool

    def seconds(self, seconds_per_tile: Sequence[float]) -> float:
        """Return the time that a tile takes, given that of one look of each model."""
        views = NUM_VIEWS if self.tta else 1
        return views * sum(seconds_per_tile[: self.num_models])

    def __str__(self) -> str:
        models = "1 model" if self.num_models == 1 else f"{self.num_models} models"
        return f"{models}, {NUM_VIEWS if self.tta else 1} views"


def predict_all(package: Path, test: Path, out: Path, budget_s: float) -> None:
    """Predict every fragment of a folder with a package, and write what Kaggle scores.

    If the time is short, flips and turns are left out first and then the last models, which is
    said; if it is too short for one model alone, nothing is begun. Where there are several GPUs,
    each predicts a fragment of its own.

    Args:
        package: Folder of a package.
        test: Folder of fragments in Kaggle layout; their names are the ids.
        out: Folder for submission.csv and plan.json, which says what was chosen and why.
        budget_s: Seconds that are left.

    Raises:
        FileNotFoundError: If package or fragments do not exist.
        ValueError: If they do not fit each other.
        RuntimeError: If the time is too short, or a prediction failed.
    """
    opened = read_package(package)
    models = [load_model(package / packed.file) for packed in opened.models]
    num_tiles = {path: count_tiles(path, opened.way) for path in find_fragments(test)}
    device = choose_device("auto")
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    seconds_per_tile = [measure(model, opened.way, device) for model in models]
    tiles = list(num_tiles.values())
    plan = choose_plan(opened.way.tta, seconds_per_tile, tiles, num_devices, budget_s)
    estimate_s = estimate(plan, seconds_per_tile, tiles, num_devices)
    note(
        f"{plan} on {num_devices} x {device}: about {estimate_s / 3600:.2f} of the "
        f"{budget_s / 3600:.2f} h that are left"
    )
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        predictions = {path: Path(folder) / path.name for path in num_tiles}
        commands = [
            predict_command(package, opened, plan, path, predictions[path])
            for path in sorted(num_tiles, key=lambda path: -num_tiles[path])
        ]
        run_on_devices(commands, num_devices if device.type == "cuda" else 0)
        submit(tuple(predictions.values()), out=out / CSV, threshold=opened.way.threshold)
    facts = {
        "plan": to_dict(plan),
        "device": str(device),
        "num_devices": num_devices,
        "num_tiles": {path.name: number for path, number in num_tiles.items()},
        "seconds_per_tile": seconds_per_tile,
        "estimated_s": estimate_s,
        "took_s": time.monotonic() - started_s,
        "budget_s": budget_s,
    }
    write_json(out / PLAN, facts)


def read_package(folder: Path) -> Package:
    """Return what the `package.json` of a folder says.

    Raises:
        FileNotFoundError: If it is no package.
        ValueError: If it was written by another version, or holds no model.
    """
    path = folder / PACKAGE
    package = from_dict(Package, read_json(path), where=str(path))
    if not package.models:
        raise ValueError(f"{folder} holds no model; package a run")
    return package


def find_fragments(test: Path) -> list[Path]:
    """Return the folders of a folder of fragments.

    Raises:
        FileNotFoundError: If there are none.
    """
    found = sorted(path for path in test.iterdir() if path.is_dir()) if test.is_dir() else []
    if not found:
        raise FileNotFoundError(f"{test} holds no fragment; add the competition to the kernel")
    return found


def count_tiles(fragment: Path, way: Way) -> int:
    """Return how many tiles of a fragment are predicted."""
    mask = open_fragment(fragment, with_label=False).papyrus_mask
    return int(TilePlan(mask.shape, (way.tile_size,) * 2, (way.stride,) * 2).wanted(mask).sum())


def measure(model: InkModel, way: Way, device: torch.device) -> float:
    """Return the seconds that a model takes to look at a tile once, by trying it on noise."""
    num_layers = model.recipe.window.num_layers
    ensemble = Ensemble(EnsembleConfig(), (model,))
    window = Window(0, num_layers, 0.0, 1 / 255)
    predict = predictor(ensemble.members(0, 1, model.tasks.choose(None), window), device)
    shape = (way.batch_size, num_layers, way.tile_size, way.tile_size)
    tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    predict(tiles, [])  # the first time is no measure: memory and plans are made
    started_s, batches = time.monotonic(), 0
    while (elapsed_s := time.monotonic() - started_s) < MEASURED_S:
        predict(tiles, [])
        batches += 1
    return elapsed_s / (batches * way.batch_size)


def choose_plan(
    tta: bool,
    seconds_per_tile: Sequence[float],
    num_tiles: Sequence[int],
    num_devices: int,
    budget_s: float,
) -> Plan:
    """Return the first plan that fits the time: all, without flips and turns, with fewer models.

    Args:
        tta: Whether flips and turns are wanted.
        seconds_per_tile: Of one look of each model.
        num_tiles: Of each fragment.
        num_devices: How many fragments are predicted at a time.
        budget_s: Seconds that are left.

    Raises:
        RuntimeError: If none fits.
    """
    whole = len(seconds_per_tile)
    plans = [Plan(whole, True)] if tta else []
    plans += [Plan(number, False) for number in range(whole, 0, -1)]
    for plan in plans:
        estimate_s = estimate(plan, seconds_per_tile, num_tiles, num_devices)
        if estimate_s <= budget_s:
            return plan
        note(
            f"{plan}: would take {estimate_s / 3600:.2f} h, {budget_s / 3600:.2f} h are left, so "
            "less is done"
        )
    raise RuntimeError(
        f"one model takes about {estimate_s / 3600:.2f} h for {sum(num_tiles)} tiles and only "
        f"{budget_s / 3600:.2f} h are left; package with a larger --stride or a smaller model"
    )


def estimate(
    plan: Plan, seconds_per_tile: Sequence[float], num_tiles: Sequence[int], num_devices: int
) -> float:
    """Return the seconds a plan takes if each device takes the largest fragment that is left."""
    loads = [0] * num_devices
    for tiles in sorted(num_tiles, reverse=True):
        loads[loads.index(min(loads))] += tiles
    return MARGIN * max(loads) * plan.seconds(seconds_per_tile)


def predict_command(
    package: Path, opened: Package, plan: Plan, fragment: Path, out: Path
) -> list[str]:
    """Return the command that predicts a fragment with a plan."""
    way = opened.way
    first, *others = (str(package / packed.file) for packed in opened.models[: plan.num_models])
    command = [sys.executable, "-m", "vesuvius", "predict", first, str(fragment)]
    command += [f"--out={out}", f"--tile-size={way.tile_size}", f"--stride={way.stride}"]
    command += [f"--batch-size={way.batch_size}", *(f"--ensemble={other}" for other in others)]
    return command + ["--tta"] * plan.tta


def run_on_devices(commands: Sequence[Sequence[str]], num_gpus: int) -> None:
    """Run commands, each on a GPU of its own as one becomes free; one by one where there is none.

    Raises:
        RuntimeError: If one of them fails.
    """
    free: queue.Queue[Mapping[str, str]] = queue.Queue()
    for number in range(num_gpus):
        free.put({"CUDA_VISIBLE_DEVICES": str(number)})
    if not num_gpus:
        free.put({})

    def run(command: Sequence[str]) -> None:
        gpu = free.get()
        try:
            code = subprocess.run(command, env={**os.environ, **gpu}).returncode
        finally:
            free.put(gpu)
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with code {code}; it says why above")

    with ThreadPoolExecutor(max(num_gpus, 1)) as pool:
        list(pool.map(run, commands))
