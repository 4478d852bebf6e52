"""The demo: every step from synthetic cells to predictions of all structures, and a page of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import read_json
from core.inference import choose_device
from core.lock import holds
from core.page import figure, plot_bytes, table, write_page
from core.pictures import captioned, png_bytes, side_by_side
from core.steps import Steps
from core.terminal import note
from ssp.assess import assess
from ssp.budget import BUDGETS
from ssp.evaluate import HEADINGS, evaluate, field_of
from ssp.evaluate import RECORD as SCORES
from ssp.model import CellModel, load_model
from ssp.networks.registry import METHODS, for_task
from ssp.pictures import contrast, gray
from ssp.predict import predict
from ssp.prepare import prepare
from ssp.prepared import PreparedData, Volume, open_data
from ssp.scores import METRICS
from ssp.simulate import simulate
from ssp.source import InputConfig
from ssp.tasks import STRUCTURES
from ssp.train import train

TASKS = ("dna", "fibrillarin", "lamin_b1", "membrane_caax_63x", "sec61_beta", "tom20")
SIZE = (12, 128, 128)
VOXEL_SIZE_UM = 0.5
IMAGES = 6
PASSES_PER_EPOCH = 24  # over 18 images: 324 steps


@holds("out")
def demo(out: Path = Path("runs/cells"), seed: int = 0) -> None:
    """Simulate cells, prepare, train RepMode, score and predict; ends with a page of pictures.

    One network learns six structures, each from images that show that one alone, and then predicts
    all six of one image it never saw. The scores of synthetic cells say that the path works, not
    how well real structures are found. The same command again continues where it was stopped.

    Args:
        out: Folder for everything: images, model, scores, predictions, report.html.
        seed: Decides the cells and the training.
    """
    steps = Steps(out / "times.json")
    size_um = (VOXEL_SIZE_UM,) * 3
    cells = out / "cells"
    steps.run("simulate", lambda: simulate(
        cells, size=SIZE, images=IMAGES, seed=seed, tasks=TASKS, voxel_size=size_um
    ))  # fmt: skip
    steps.run("prepare", lambda: prepare((cells,), out=out / "data", voxel_size=VOXEL_SIZE_UM))
    recipe = BUDGETS["tiny"].recipe(METHODS["repmode"], seed)
    patches = replace(recipe.patches, passes_per_epoch=PASSES_PER_EPOCH)
    recipe = replace(recipe, patches=patches)
    run = out / "model"
    is_started = (run / "checkpoints" / "last.safetensors").exists()
    steps.run("train", lambda: train(out / "data", run, recipe, resume=is_started))
    steps.run("score", lambda: evaluate(run, data=out / "data", out=out / "scores"))
    data, model = open_data(out / "data"), load_model(run)
    unseen = data.select("test")[0].signal
    predicted, image = out / "fluorescence", InputConfig(channel=unseen.channel)
    steps.run("predict", lambda: predict(run, Path(unseen.source), out=predicted, image=image))
    scores = read_json(out / "scores" / SCORES)
    body = [
        "<h1>From transmitted light to fluorescence</h1>",
        f"<p>One network learned {len(TASKS)} structures, each from images that show that one "
        "alone. The images below are others. Synthetic cells are a simple model: these scores show "
        "that the path works, not how well real structures are found. R2 of a constant is 0.</p>",
        _score_table(scores),
        *_tested(data, model),
        *_all_of_one(unseen, predicted),
        "<h2>Learning curve</h2>",
        figure(_learning_curve(run / "metrics.jsonl"), "per epoch"),
        "<h2>Time</h2>",
        table(["step", "seconds"], [[step, f"{s:.1f}"] for step, s in steps.seconds.items()]),
    ]
    write_page(out / "report.html", "Fluorescence demo", body)
    total = scores["tasks"]["All"]
    note(
        f"test images: R2 {total['r2']:.3f}, Pearson's r {total['pearson']:.3f}; pictures in "
        f"{out / 'report.html'}"
    )


def _score_table(scores: dict[str, Any]) -> str:
    rows = [
        [STRUCTURES.get(task, task), *(f"{found[metric]:.3f}" for metric in METRICS)]
        for task, found in scores["tasks"].items()
    ]
    return table(["structure", *(HEADINGS[metric] for metric in METRICS)], rows)


def _tested(data: PreparedData, model: CellModel) -> list[str]:
    """Return the first test image of each structure with its target, prediction and error."""
    parts = ["<h2>Test images</h2>"]
    for task in data.tasks:
        image = data.select("test", (task,))[0]
        plain = for_task(model.network, model.tasks.index(task))
        device = choose_device("auto")
        found = assess(plain.to(device), image, field_of(model, image), device)
        caption = (
            f"{STRUCTURES[task]}: transmitted light, target, prediction, error (red too bright, "
            f"blue too dark); Pearson's r {found.scores['pearson']:.2f}"
        )
        parts.append(figure(png_bytes(found.picture_with_error()), caption))
    return parts


def _all_of_one(unseen: Volume, predicted: Path) -> list[str]:
    """Return one image in transmitted light and what the network predicts of each structure."""
    signal = tifffile.imread(unseen.source)[unseen.channel]
    middle = len(signal) // 2
    planes = {"transmitted light": signal[middle].astype(np.float32)}
    planes |= {STRUCTURES[t]: tifffile.imread(predicted / f"{t}.ome.tif")[middle] for t in TASKS}
    pictures: Sequence[np.ndarray] = [
        captioned(gray(plane, contrast(plane)), title) for title, plane in planes.items()
    ]
    caption = f"{Path(unseen.source).name}: its middle plane, and all structures predicted of it"
    return ["<h2>All structures of one image</h2>",
            figure(png_bytes(side_by_side(*pictures)), caption)]  # fmt: skip


def _learning_curve(metrics: Path) -> bytes:
    """Return training loss and validation error over epochs as PNG."""
    from matplotlib.figure import Figure

    epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
    plot = Figure(figsize=(6, 3), layout="constrained")
    axes = plot.subplots()
    numbers = [row["epoch"] for row in epochs]
    axes.plot(numbers, [row["train"]["loss"] for row in epochs], marker="o", label="training")
    axes.plot(numbers, [row["validation"]["mse"] for row in epochs], marker="o", label="validation")
    axes.set(xlabel="epoch", ylabel="mean squared error", xticks=numbers)
    axes.grid(alpha=0.3)
    axes.legend()
    return plot_bytes(plot)
