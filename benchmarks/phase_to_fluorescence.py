"""RepMode on a real field: trained on its left half, scored on its right half, beside a ridge.

    python benchmarks/phase_to_fluorescence.py FOLDER --work WORK [--recipe NAME] [--seeds 0 1 2]

Seeds that WORK has are not trained again; other recipes stay in the result file.

FOLDER holds `phase_z13.ome.tif`, 13 planes of phase contrast of 512 x 512 pixels, and max
projections of DAPI, MAP2 and NFH of the same field. Left and right half are cut out as files of
their own, with 8 columns between them that belong to neither, and binned as the recipe has it. Each
structure is an image of its own with one label. Then `ssp prepare`, `ssp train`, `ssp evaluate` and
`ssp predict` do the rest: nothing sees a pixel of the right half before the scores are taken,
z-scores included.

Training is one epoch, so that no network is chosen by a score. Settings were compared on the left
half alone, on rows that training had not seen; `averaged` and `larger-patches` were fixed after
`decayed` had been scored on the right, and `gain` after all three, whose maps were too timid where
the right half is brighter than anything in the left; `gain-small-experts` after `gain`, which had
hardly learned its own training half; `focus-kept` when it was found, on the left half, that flips
along Z harmed. Since then no patch is flipped so; those of the recipes before it were.

The ridge regression (`benchmarks/ridge.py`) is fitted on the same left half, at full resolution and
in all its pixels. Scores are taken at full resolution, predictions enlarged linearly.

Data: google/in-silico-labeling (condition B, well A4), CC BY 4.0; nothing of it is stored.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from machine import machine
from resident import measure
from ridge import features, fit_best, pearson
from scipy.ndimage import gaussian_filter, zoom

from core.files import read_json, write_json

TASKS = ("DAPI", "MAP2", "NFH")
PUBLISHED = {"DAPI": 0.71, "MAP2": 0.77, "NFH": 0.45}  # of a ridge regression, given with the data
HALF, GAP = 256, 8  # columns; signal and targets are aligned within 6
VALIDATED = 32  # last rows of the left half, GAP rows behind the trained ones
COMMON = """
    --network.backbone.target projection --network.backbone.base-channels 8
    --patches.augment.quarter-turns --training.epochs 1 --training.weight-decay 0.01
    --training.clip-norm 1
"""
SMALL_PATCHES = "--patches.augment.jitter 0.2 --training.warmup-epochs 0.05 "
SPUN = """
    --network.backbone.num-stages 2
    --network.mixture.experts.0.size 3 --network.mixture.experts.4.size 3
    --patches.size 13 40 40 --patches.augment.noise 0.5
    --patches.augment.spin --patches.augment.zoom 1.5 --patches.augment.stretch 1.2
    --training.batch-size 6 --training.warmup-epochs 0.05 --training.final-lr-factor 0.01
    --training.ema-decay 0.99
"""
SOMAS_COARSE = {"DAPI": 4, "MAP2": 4, "NFH": 2}


@dataclass(frozen=True)
class Recipe:
    """How the field is shown to the network, and how that is trained.

    Attributes:
        bins: Pixels along Y and X that become one, of each structure.
        num_planes: What the planes of the signal are averaged to.
        options: Of `ssp train`.
        averaged: Which predictions `ssp predict` averages.
        blur: Standard deviation of the Gaussian that targets are blurred with for training, in
            pixels, where it is not 0: signal and targets are aligned within 6, and axons are as
            thin.
    """

    bins: dict[str, int]
    num_planes: int
    options: str
    averaged: str = ""
    blur: dict[str, float] = field(default_factory=dict)


RECIPES = {
    "decayed": Recipe(SOMAS_COARSE, 4, f"""
        {SMALL_PATCHES} --network.backbone.num-stages 2
        --patches.size 4 32 32 --patches.passes-per-epoch 800 --patches.augment.noise 0.3
        --training.batch-size 4 --training.learning-rate 1.5e-3 --training.final-lr-factor 0.01
        --training.ema-decay 0.99
    """),
    "averaged": Recipe(SOMAS_COARSE, 4, f"""
        {SMALL_PATCHES} --network.backbone.num-stages 2
        --patches.size 4 32 32 --patches.passes-per-epoch 800 --patches.augment.noise 0.5
        --training.batch-size 3 --training.learning-rate 2e-3 --training.final-lr-factor 0.3
        --training.ema-decay 0.995
    """),
    "larger-patches": Recipe(SOMAS_COARSE, 4, f"""
        {SMALL_PATCHES} --network.backbone.num-stages 2
        --patches.size 4 48 48 --patches.passes-per-epoch 450 --patches.augment.noise 0.3
        --training.batch-size 3 --training.learning-rate 2e-3 --training.final-lr-factor 0.3
        --training.ema-decay 0.995
    """),
    "gain": Recipe(dict.fromkeys(TASKS, 2), 13, """
        --network.backbone.num-stages 3 --patches.augment.gain 3
        --patches.size 13 48 48 --patches.passes-per-epoch 800
        --training.batch-size 6 --training.learning-rate 3e-3 --training.warmup-epochs 0.1
        --training.final-lr-factor 0.02 --training.ema-decay 0.98
    """),
    "gain-small-experts": Recipe(dict.fromkeys(TASKS, 2), 13, """
        --network.backbone.num-stages 3 --patches.augment.gain 3 --patches.augment.noise 0.2
        --network.mixture.experts.0.size 3 --network.mixture.experts.4.size 3
        --patches.size 13 64 64 --patches.passes-per-epoch 800
        --training.batch-size 6 --training.learning-rate 3e-3 --training.warmup-epochs 0.1
        --training.final-lr-factor 0.02 --training.ema-decay 0.98
    """),
    "focus-kept": Recipe(dict.fromkeys(TASKS, 2), 13, """
        --network.backbone.num-stages 3 --patches.augment.gain 3 --patches.augment.noise 0.2
        --network.mixture.experts.0.size 3 --network.mixture.experts.4.size 3
        --patches.size 13 48 48 --patches.passes-per-epoch 1200
        --training.batch-size 6 --training.learning-rate 3e-3 --training.warmup-epochs 0.1
        --training.final-lr-factor 0.02 --training.ema-decay 0.98
    """),
    "spun": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 1600 --training.learning-rate 2e-3
        --patches.augment.gain 2
    """, "--tta"),
    "spun-long": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 4000 --training.learning-rate 3e-3
        --patches.augment.gain 2
    """, "--tta"),
    "brief": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 800 --training.learning-rate 2e-3
        --patches.augment.gain 3 --patches.augment.overlay 0.5
    """, "--tta"),
    "spun-without-gain": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 1600 --training.learning-rate 2e-3
    """, "--tta"),
    "smooth": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 1600 --training.learning-rate 2e-3
    """, "--tta", dict.fromkeys(TASKS, 8)),
    "smooth-axons": Recipe(SOMAS_COARSE, 13, f"""
        {SPUN} --patches.passes-per-epoch 1600 --training.learning-rate 2e-3
    """, "--tta", {"NFH": 8}),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "phase_to_fluorescence.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "phase_to_fluorescence.png"


def main() -> None:
    """Train and score with every seed, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for crops and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", choices=RECIPES, default="decayed")
    options = parser.parse_args()
    signal_ZYX, targets = read_field(options.folder)
    recipe, tried = RECIPES[options.recipe], options.work / options.recipe
    if not (tried / "crops").exists():
        write_crops(tried / "crops", signal_ZYX, targets, recipe)
    prepared = ["prepare", tried / "crops", "--factor", "1", "1", "1", "--out", tried / "data"]
    measure("-m", "ssp", *prepared)
    chosen = f"{COMMON} {recipe.options}".split()
    runs = [
        kept(
            tried / f"seed-{seed}.json",
            lambda seed=seed: train_and_score(tried, seed, chosen, targets, recipe),
        )
        for seed in options.seeds
    ]
    found = {
        "machine": machine(),
        "recipe": chosen,
        "averaged": recipe.averaged,
        "blur": recipe.blur,
        "bins": recipe.bins,
        "num_planes": recipe.num_planes,
        "seeds": options.seeds,
        "repmode": {name: spread([run["pearson"][name] for run in runs]) for name in TASKS},
        "mean_of_seeds": mean_of_seeds(tried, options.seeds, targets, recipe.bins),
        "runs": runs,
    }
    ridge = kept(options.work / "ridge.json", lambda: score_ridge(signal_ZYX, targets))
    result = {
        "what": "Pearson r on the right half of a field, learnt from its left half",
        "gap_px": GAP,
        "published_ridge": PUBLISHED,
        "ridge": ridge,
        "recipes": {},
        **(read_json(RESULTS) if RESULTS.exists() else {}),
    }
    result["recipes"][options.recipe] = found
    write_json(RESULTS, result)
    draw(mean_maps(tried, options.seeds, recipe.bins), targets, result)
    print(table(result))


def kept(path: Path, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, now or by an earlier call, which stored it."""
    if not path.exists():
        write_json(path, measured())
    return read_json(path)


def read_field(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the signal (Z, Y, X) and the target of each structure (Y, X), float32."""
    signal_ZYX = tifffile.imread(folder / "phase_z13.ome.tif").astype(np.float32)
    targets = {
        name: tifffile.imread(folder / f"{name.lower()}_maxproj.tif").astype(np.float32)
        for name in TASKS
    }
    return signal_ZYX, targets


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def right_of(image: np.ndarray) -> np.ndarray:
    """Return the right half (..., Y, X) of an image."""
    return image[..., HALF:]


def left_of(image: np.ndarray) -> np.ndarray:
    """Return the left half (..., Y, X) of an image but for the gap."""
    return image[..., : HALF - GAP]


def binned(image: np.ndarray, size: int, num_planes: int) -> np.ndarray:
    """Return the means of squares of pixels and, of a stack, of neighbouring planes."""
    height, width = (length // size for length in image.shape[-2:])
    image = image[..., : height * size, : width * size]
    if image.ndim == 3:
        image = np.stack([part.mean(0) for part in np.array_split(image, num_planes)])
    return image.reshape(*image.shape[:-2], height, size, width, size).mean((-3, -1))


def write_crops(
    folder: Path, signal_ZYX: np.ndarray, targets: dict[str, np.ndarray], recipe: Recipe
) -> None:
    """Write the crops and their list, a row for each structure of each crop."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["path_signal", "path_target", "task", "split"]]
    for name, split, cut in (
        ("left", "train", lambda image: left_of(image)[..., : -VALIDATED - GAP, :]),
        ("left-last-rows", "val", lambda image: left_of(image)[..., -VALIDATED:, :]),
        ("right", "test", right_of),
    ):
        for task, target in targets.items():
            size = recipe.bins[task]
            paths = [folder / f"{name}-signal-{size}.tif", folder / f"{name}-{task}.tif"]
            shown = (
                cut(target)
                if split == "test"
                else gaussian_filter(cut(target), recipe.blur.get(task, 0))
            )
            for path, image, axes in zip(
                paths, (cut(signal_ZYX), shown), ("ZYX", "YX"), strict=True
            ):
                tifffile.imwrite(
                    path, binned(image, size, recipe.num_planes), metadata={"axes": axes}
                )
            rows.append([*(path.name for path in paths), task, split])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def train_and_score(
    tried: Path, seed: int, chosen: list[str], targets: dict[str, np.ndarray], recipe: Recipe
) -> dict[str, Any]:
    """Train a recipe with one seed and return its scores and what the commands needed."""
    bins = recipe.bins
    run, scores = tried / f"run-{seed}", tried / f"scores-{seed}"
    cpu, data = ["--device", "cpu"], ["--data", tried / "data"]
    again = ["--resume"] if run.exists() else []
    commands = {
        "train": ["repmode", *data, "--out", run, *chosen, "--training.seed", seed, *again],
        "evaluate": [run, *data, "--out", scores, *cpu],
    }
    for size in set(bins.values()):
        signal, out = (
            tried / "crops" / f"right-signal-{size}.tif",
            tried / f"predicted-{seed}-{size}",
        )
        wanted = [name for name in TASKS if bins[name] == size]
        given = [run, signal, "--out", out, "--factor", "1", "1", "1", "--task", *wanted, *cpu]
        commands[f"predict {' '.join(wanted)}"] = [*given, *recipe.averaged.split()]
    found = {
        name: measure("-m", "ssp", name.split()[0], *given) for name, given in commands.items()
    }
    found["train"].pop("seconds")  # of a run that was continued, those of what was left
    binned_scores = read_json(scores / "scores.json")["tasks"]
    predicted = maps(tried, seed, bins)
    return {
        "seed": seed,
        "pearson": {name: pearson(predicted[name], right_of(targets[name])) for name in TASKS},
        "pearson_binned": {name: binned_scores[name]["pearson"] for name in TASKS},
        "training_s": read_rows(run / "metrics.jsonl")[-1]["seconds"],
        "commands": found,
    }


def maps(tried: Path, seed: int, bins: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the prediction of each structure of the right half, at its full resolution."""
    return {
        name: zoom(
            tifffile.imread(tried / f"predicted-{seed}-{bins[name]}" / f"{name}.ome.tif"),
            bins[name], order=1, grid_mode=True, mode="nearest",
        )
        for name in TASKS
    }  # fmt: skip


def mean_maps(tried: Path, seeds: list[int], bins: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the mean over seeds of the predictions."""
    found = [maps(tried, seed, bins) for seed in seeds]
    return {name: np.mean([one[name] for one in found], axis=0) for name in TASKS}


def mean_of_seeds(
    tried: Path, seeds: list[int], targets: dict[str, np.ndarray], bins: dict[str, int]
) -> dict[str, float]:
    """Return the correlation of the mean prediction of all seeds."""
    means = mean_maps(tried, seeds, bins)
    return {name: pearson(means[name], right_of(targets[name])) for name in TASKS}


def score_ridge(
    signal_ZYX: np.ndarray, targets: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return the correlation of the ridge regression on the right half, and its penalty."""
    left_YXF, right_YXF = features(left_of(signal_ZYX)), features(right_of(signal_ZYX))
    found = {}
    for name, target in targets.items():
        ridge, penalty = fit_best(left_YXF, left_of(target))
        predicted = ridge(right_YXF.reshape(-1, right_YXF.shape[-1]))
        found[name] = {"pearson": pearson(predicted, right_of(target)), "penalty": penalty}
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Return mean, lowest and highest."""
    return {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}


def table(result: dict[str, Any]) -> str:
    """Return the correlations as a Markdown table."""
    lines = [f"| way | {' | '.join(TASKS)} |", "|---|---|---|---|"]
    rows = {"ridge, published": PUBLISHED}
    rows["ridge, here"] = {name: result["ridge"][name]["pearson"] for name in TASKS}
    for recipe, found in result["recipes"].items():
        rows[f"RepMode, {recipe}, mean of {len(found['seeds'])}"] = {
            name: found["repmode"][name]["mean"] for name in TASKS
        }
        rows[f"RepMode, {recipe}, mean map"] = found["mean_of_seeds"]
    for way, scores in rows.items():
        lines.append(f"| {way} | {' | '.join(f'{scores[name]:.2f}' for name in TASKS)} |")
    return "\n".join(lines)


def draw(
    predicted: dict[str, np.ndarray], targets: dict[str, np.ndarray], result: dict[str, Any]
) -> None:
    """Draw the predictions, and how bright pixels are predicted that are so bright in truth."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(10, 8.5), layout="constrained")
    for column, name in enumerate(TASKS):
        upper, lower = plot.add_subplot(2, 3, column + 1), plot.add_subplot(2, 3, column + 4)
        low, high = np.percentile(predicted[name], (1, 99.7))
        upper.imshow(predicted[name], cmap="gray", vmin=low, vmax=high)
        upper.set(title=f"{name}, predicted", xticks=[], yticks=[])
        true = right_of(targets[name])
        true = (true - true.mean()) / true.std()
        lower.hexbin(true.ravel(), predicted[name].ravel(), gridsize=40, bins="log", cmap="magma")
        score, ridge = pearson(predicted[name], true), result["ridge"][name]["pearson"]
        lower.set(title=f"r {score:.2f} (ridge {ridge:.2f})", xlabel="measured, z-score")
        if not column:
            lower.set_ylabel("predicted, z-score")
    plot.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
