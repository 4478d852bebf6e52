"""RepMode on a real field: trained on its left half, scored on its right half, beside a ridge.

    python benchmarks/phase_to_fluorescence.py FOLDER --work WORK [--seeds 0 1 2 3]

Seeds that WORK has are not trained again; one takes five minutes of a free core.

FOLDER holds `phase_z13.ome.tif`, 13 planes of phase contrast of 512 x 512 pixels, and max
projections of DAPI, MAP2 and NFH of the same field. Left and right half are cut out as files of
their own, with 8 columns between them that belong to neither, and binned, somas 4 x 4 and axons
2 x 2. Axons are blurred for training: they are hardly wider than signal and target are apart. Each
structure is an image of its own with one label. Then `ssp prepare`, `ssp train`, `ssp evaluate` and
`ssp predict` do the rest: nothing sees a pixel of the right half before the scores are taken,
z-scores included.

Training is one epoch, so that no network is chosen by a score. But the recipe is the last of
twelve, and the scores of each on the right half were known when the next was fixed. The others are
in results/phase_to_fluorescence_earlier.json, with the options they had, some of which the program
has no more; patches of the first five were flipped along Z, too.

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
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from machine import machine
from resident import measure
from ridge import features, fit_best, pearson
from scipy.ndimage import gaussian_filter, zoom

from core.files import atomic_dir, read_json, write_json

TASKS = ("DAPI", "MAP2", "NFH")
PUBLISHED = {"DAPI": 0.71, "MAP2": 0.77, "NFH": 0.45}  # of a ridge regression, given with the data
HALF, GAP = 256, 8  # columns; signal and targets are aligned within 6
VALIDATED = 32  # last rows of the left half, GAP rows behind the trained ones
BINS = {"DAPI": 4, "MAP2": 4, "NFH": 2}  # pixels along Y and X that become one
BLUR = {"NFH": 8.0}  # standard deviation for training, in pixels
OPTIONS = """
    --network.backbone.target projection --network.backbone.base-channels 8
    --network.backbone.num-stages 2
    --network.mixture.experts.0.size 3 --network.mixture.experts.4.size 3
    --patches.size 13 40 40 --patches.passes-per-epoch 1600 --patches.augment.quarter-turns
    --patches.augment.spin --patches.augment.zoom 1.5 --patches.augment.stretch 1.2
    --patches.augment.noise 0.5
    --training.epochs 1 --training.batch-size 6 --training.learning-rate 2e-3
    --training.warmup-epochs 0.05 --training.final-lr-factor 0.01 --training.ema-decay 0.99
    --training.weight-decay 0.01 --training.clip-norm 1
"""
RECIPE = {"bins": BINS, "blur_px": BLUR, "options": OPTIONS.split()}
RESULTS = Path(__file__).parent / "results" / "phase_to_fluorescence.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "phase_to_fluorescence.png"


def main() -> None:
    """Train and score with every seed, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for crops and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args()
    work = options.work
    check_recipe(work / "recipe.json")
    signal_ZYX, targets = read_field(options.folder)
    if not (work / "crops").exists():
        with atomic_dir(work / "crops") as partial:
            write_crops(partial, signal_ZYX, targets)
    prepared = ["prepare", work / "crops", "--factor", "1", "1", "1", "--out", work / "data"]
    measure("-m", "ssp", *prepared)
    runs = [
        kept(work / f"seed-{seed}.json", lambda seed=seed: train_and_score(work, seed, targets))
        for seed in options.seeds
    ]
    means = mean_maps(work, options.seeds)
    result = {
        "what": "Pearson r on the right half of a field, learnt from its left half",
        "machine": machine(),
        "gap_px": GAP,
        "published_ridge": PUBLISHED,
        "ridge": kept(work / "ridge.json", lambda: score_ridge(signal_ZYX, targets)),
        **RECIPE,
        "seeds": options.seeds,
        "repmode": {name: spread([run["pearson"][name] for run in runs]) for name in TASKS},
        "mean_map": {name: pearson(means[name], right_of(targets[name])) for name in TASKS},
        "runs": runs,
    }
    result["markdown"] = table(result)
    write_json(RESULTS, result)
    draw(means, targets, result)
    print(result["markdown"])


def check_recipe(path: Path) -> None:
    """Refuse a folder whose runs are of another recipe; a new one is of this."""
    if not path.exists():
        write_json(path, RECIPE)
    elif read_json(path) != RECIPE:
        raise SystemExit(f"{path.parent} holds runs of another recipe; choose another --work")


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


def binned(image: np.ndarray, size: int) -> np.ndarray:
    """Return the means of squares of pixels."""
    height, width = (length // size for length in image.shape[-2:])
    image = image[..., : height * size, : width * size]
    return image.reshape(*image.shape[:-2], height, size, width, size).mean((-3, -1))


def write_crops(folder: Path, signal_ZYX: np.ndarray, targets: dict[str, np.ndarray]) -> None:
    """Write the crops and their list, a row for each structure of each crop."""
    rows = [["path_signal", "path_target", "task", "split"]]
    for name, split, cut in (
        ("left", "train", lambda image: left_of(image)[..., : -VALIDATED - GAP, :]),
        ("left-last-rows", "val", lambda image: left_of(image)[..., -VALIDATED:, :]),
        ("right", "test", right_of),
    ):
        for task, target in targets.items():
            size, blur = BINS[task], 0.0 if split == "test" else BLUR.get(task, 0.0)
            shown = {
                folder / f"{name}-signal-{size}.tif": ("ZYX", cut(signal_ZYX)),
                folder / f"{name}-{task}.tif": ("YX", gaussian_filter(cut(target), blur)),
            }
            for path, (axes, image) in shown.items():
                tifffile.imwrite(path, binned(image, size), metadata={"axes": axes})
            rows.append([*(path.name for path in shown), task, split])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def train_and_score(work: Path, seed: int, targets: dict[str, np.ndarray]) -> dict[str, Any]:
    """Train with one seed and return the scores and what the commands needed."""
    run, scores = work / f"run-{seed}", work / f"scores-{seed}"
    cpu, data = ["--device", "cpu"], ["--data", work / "data"]
    again = ["--resume"] if run.exists() else []
    seeded = ["--training.seed", seed, *again]
    commands = {
        "train": ["repmode", *data, "--out", run, *OPTIONS.split(), *seeded],
        "evaluate": [run, *data, "--out", scores, *cpu],
    }
    for size in set(BINS.values()):
        signal, out = work / "crops" / f"right-signal-{size}.tif", work / f"predicted-{seed}-{size}"
        wanted = [name for name in TASKS if BINS[name] == size]
        given = [run, signal, "--out", out, "--factor", "1", "1", "1", "--task", *wanted]
        commands[f"predict {' '.join(wanted)}"] = [*given, "--tta", *cpu]
    found = {
        name: measure("-m", "ssp", name.split()[0], *given) for name, given in commands.items()
    }
    found["train"].pop("seconds")  # of a run that was continued, those of what was left
    binned_scores = read_json(scores / "scores.json")["tasks"]
    predicted = maps(work, seed)
    return {
        "seed": seed,
        "pearson": {name: pearson(predicted[name], right_of(targets[name])) for name in TASKS},
        "pearson_binned": {name: binned_scores[name]["pearson"] for name in TASKS},
        "training_s": read_rows(run / "metrics.jsonl")[-1]["seconds"],
        "commands": found,
    }


def maps(work: Path, seed: int) -> dict[str, np.ndarray]:
    """Return the prediction of each structure of the right half, at its full resolution."""
    return {
        name: zoom(
            tifffile.imread(work / f"predicted-{seed}-{size}" / f"{name}.ome.tif"),
            size, order=1, grid_mode=True, mode="nearest",
        )
        for name, size in BINS.items()
    }  # fmt: skip


def mean_maps(work: Path, seeds: list[int]) -> dict[str, np.ndarray]:
    """Return the mean over seeds of the predictions."""
    found = [maps(work, seed) for seed in seeds]
    return {name: np.mean([one[name] for one in found], axis=0) for name in TASKS}


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
    found, num_seeds = result["repmode"], len(result["seeds"])
    ridge = {name: result["ridge"][name]["pearson"] for name in TASKS}
    rows: dict[str, list[str]] = {
        "ridge regression, as published with the field": [f"{PUBLISHED[n]:.2f}" for n in TASKS],
        "ridge regression, here": [f"{ridge[n]:.2f}" for n in TASKS],
        f"RepMode, mean of {num_seeds} seeds (lowest to highest)": [
            "{mean:.2f} ({lowest:.2f} to {highest:.2f})".format(**found[name]) for name in TASKS
        ],
        f"RepMode, mean map of the {num_seeds}": [f"{result['mean_map'][n]:.2f}" for n in TASKS],
    }
    lines = [f"| way | {' | '.join(TASKS)} |", "|---|---|---|---|"]
    lines += [f"| {way} | {' | '.join(scores)} |" for way, scores in rows.items()]
    return "\n".join(lines)


def draw(
    predicted: dict[str, np.ndarray], targets: dict[str, np.ndarray], result: dict[str, Any]
) -> None:
    """Draw what was measured and predicted, beside each other and against each other."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(10, 12), layout="constrained")
    for column, name in enumerate(TASKS):
        true = right_of(targets[name])
        true = (true - true.mean()) / true.std()
        for row, what, image in ((0, "measured", true), (1, "predicted", predicted[name])):
            low, high = np.percentile(image, (1, 99.7))
            axes = plot.add_subplot(3, 3, 3 * row + column + 1)
            axes.imshow(image, cmap="gray", vmin=low, vmax=high)
            axes.set(title=f"{name}, {what}", xticks=[], yticks=[])
        axes = plot.add_subplot(3, 3, 7 + column)
        axes.hexbin(true.ravel(), predicted[name].ravel(), gridsize=40, bins="log", cmap="magma")
        score, ridge = pearson(predicted[name], true), result["ridge"][name]["pearson"]
        axes.set(title=f"r {score:.2f} (ridge {ridge:.2f})", xlabel="measured, z-score")
        if not column:
            axes.set_ylabel("predicted, z-score")
    plot.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
