"""Does pretraining an encoder as masked autoencoder help where few labels are at hand?

Three fragments are simulated. Of two a small square is labelled; all of their papyrus can be
pretrained on. The third is scored on, and neither trained nor pretrained on. For every seed the
network is trained from random weights, from the pretrained encoder for the same number of steps,
and from random weights for as many steps as pretraining and training had together. Finished runs
are kept in FOLDER and stopped ones continued; the same command can be given again.

    python benchmarks/pretraining.py --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import machine

from core.files import read_json, write_json
from core.training import FitResult
from vesuvius.prepare import prepare
from vesuvius.prepared import SUFFIX, open_prepared
from vesuvius.pretrain import PretrainingRecipe, pretrain, pretraining_of
from vesuvius.recipes import InkRecipe, small
from vesuvius.simulate import simulate
from vesuvius.train import train

TRAINED, SCORED = ("1", "2"), "3"
WAYS = ("random", "pretrained", "random, longer")
RESULT = Path(__file__).parent / "results" / "pretraining.json"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        side: Rows and columns of a fragment, in px.
        labelled: Side of the labelled square in the middle of a fragment.
        width: Of the network's first stage.
        patch: Rows and columns of a patch.
        patches: Most patches of a labelled square.
        pretraining_patches: Patches of a fragment for an epoch of pretraining.
        pretraining_epochs: Number of them.
        epochs: Of training.
        difficulty: Of the simulation; lower than usual, so that few steps find ink at all.
    """

    side: int = 1024
    labelled: int = 256
    width: int = 8
    patch: int = 64
    patches: int = 300
    pretraining_patches: int = 500
    pretraining_epochs: int = 4
    epochs: int = 2
    difficulty: float = 0.3


def main() -> None:
    """Run what is missing, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    work, seeds, ways = (options.pop(name) for name in ("work", "seeds", "ways"))
    sizes = Sizes(**options)
    data = make_data(work / "data", sizes)
    runs: list[dict[str, Any]] = []
    for way in ways:
        for seed in seeds:
            runs.append(run_one(data, work / f"seed_{seed}", seed, way, sizes))
            store(runs, sizes, share_of_ink(data))


def make_data(folder: Path, sizes: Sizes) -> Path:
    """Return the folder of the prepared volumes."""
    paths = [folder / "fragments" / name for name in (*TRAINED, SCORED)]
    for seed, path in enumerate(paths):
        simulate(path, size=(sizes.side, sizes.side), seed=70 + seed, difficulty=sizes.difficulty)
        area_path = path / "labelled_area.png"
        if path.name in TRAINED and not area_path.exists():
            area = np.zeros((sizes.side, sizes.side), np.uint8)
            start = (sizes.side - sizes.labelled) // 2
            area[start : start + sizes.labelled, start : start + sizes.labelled] = 255
            cv2.imwrite(str(area_path), area)
    prepare(tuple(paths), out=folder / "prepared")
    return folder / "prepared"


def share_of_ink(data: Path) -> float:
    """Return what part of the scored papyrus is ink: the AP of a map that knows nothing."""
    volume = open_prepared(data / f"{SCORED}{SUFFIX}")
    return float(volume.ink_label[volume.papyrus_mask].mean())


def run_one(data: Path, folder: Path, seed: int, way: str, sizes: Sizes) -> dict[str, Any]:
    """Return what one training reached on the unseen fragment, and its time."""
    recipe, pretraining = recipes(seed, sizes)
    before = folder / "pretraining"
    steps = {}
    if way != "random":
        steps = timed(before, lambda resume: pretrain(data, before, pretraining, resume))
    if way == "random, longer":
        once = timed(
            folder / "random", lambda resume: train(data, folder / "random", recipe, resume)
        )
        epochs = round(recipe.training.epochs * (1 + steps["steps"] / once["steps"]))
        recipe = replace(recipe, training=replace(recipe.training, epochs=epochs))
    out = folder / way.replace(", ", "_")
    source = before if way == "pretrained" else None
    found = timed(out, lambda resume: train(data, out, recipe, resume, source))
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    pretraining_s = steps["cpu_s"] if way == "pretrained" else 0.0
    return {"seed": seed, "way": way, **last, **found, "pretraining_cpu_s": pretraining_s}


def recipes(seed: int, sizes: Sizes) -> tuple[InkRecipe, PretrainingRecipe]:
    """Return the small recipe in these sizes, and its pretraining."""
    recipe = small()
    cap = sizes.patches // 15  # of ten buckets, and as many void patches as five of them
    recipe = replace(
        recipe,
        network=replace(recipe.network, base_channels=sizes.width),
        sampling=replace(recipe.sampling, patch_size=sizes.patch, bucket_cap=cap, num_void=5 * cap),
        validation=replace(recipe.validation, fragment=SCORED),
        training=replace(
            recipe.training,
            seed=seed,
            epochs=sizes.epochs,
            warmup_epochs=0.1 * sizes.epochs,
            checkpoint_every_steps=20,
        ),
    )
    epochs, warmup = sizes.pretraining_epochs, 0.1 * sizes.pretraining_epochs
    return recipe, replace(
        pretraining_of(recipe),
        training=replace(recipe.training, epochs=epochs, warmup_epochs=warmup),
        num_patches=sizes.pretraining_patches,
    )


def timed(out: Path, job: Callable[[bool], FitResult]) -> dict[str, Any]:
    """Return steps and processor seconds of a run, which is continued if it was stopped."""
    finished, clock = out.with_suffix(".json"), out.with_suffix(".clock.json")
    if finished.exists():
        return read_json(finished)
    before_s = read_json(clock) if clock.exists() else 0.0
    started_s = time.process_time()
    try:
        result = job((out / "checkpoints" / "last.safetensors").exists())
    finally:
        cpu_s = before_s + time.process_time() - started_s
        write_json(clock, cpu_s)
    write_json(finished, {"steps": result.steps, "cpu_s": cpu_s})
    return read_json(finished)


def store(runs: list[dict[str, Any]], sizes: Sizes, ink_share: float) -> None:
    """Print and store what is known so far."""
    table = {}
    for way in WAYS:
        found = [run for run in runs if run["way"] == way]
        if found:
            names = ("average_precision", "f05", "steps", "cpu_s", "pretraining_cpu_s")
            table[way] = {"runs": len(found)} | {
                name: [f(run[name] for run in found) for f in (statistics.median, min, max)]
                for name in names
            }
    write_json(
        RESULT,
        {
            "what": "training on few labels from random and from pretrained encoders, scored on an "
            "unseen simulated fragment after the last step; median, least, greatest",
            "machine": machine(),
            "sizes": asdict(sizes),
            "ink_share": ink_share,
            "table": table,
            "runs": runs,
        },
    )
    print(f"{ink_share:.3f} of the scored papyrus is ink\n")
    print("| start | runs | steps | AP | F0.5 | processor s | of pretraining |")
    print("|---|---|---|---|---|---|---|")
    for way, row in table.items():
        ap, f05 = (
            f"{middle:.3f} ({least:.3f} to {most:.3f})"
            for middle, least, most in (row["average_precision"], row["f05"])
        )
        steps, cpu_s, before_s = (row[n][0] for n in ("steps", "cpu_s", "pretraining_cpu_s"))
        print(
            f"| {way} | {row['runs']} | {steps:.0f} | {ap} | {f05} | {cpu_s:.0f} | {before_s:.0f} |"
        )


if __name__ == "__main__":
    main()
