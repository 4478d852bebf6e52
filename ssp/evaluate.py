"""Evaluation: a trained model over prepared images of a split, in numbers and pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.files import atomic_path, read_json, write_json
from core.inference import choose_device
from core.lock import holds
from core.pictures import write_png
from core.provenance import collect
from core.run_folder import finite
from core.terminal import note, progress
from ssp.assess import assess
from ssp.mapping import Field
from ssp.model import CellModel, load_model
from ssp.networks.registry import for_task
from ssp.prepared import Image, PreparedData, open_data
from ssp.scores import ALL, METRICS, ScoredImage, improvement, summarize

RECORD = "scores.json"
HEADINGS = {"mse": "MSE", "mae": "MAE", "r2": "R2", "pearson": "r", "ssim": "SSIM"}
SIZE_TOLERANCE = 0.02


@holds("out")
def evaluate(
    run: Path,
    /,
    data: Path,
    out: Path,
    split: Literal["test", "val", "train"] = "test",
    task: tuple[str, ...] = (),
    reference: Path | None = None,
    num_pictures: int = 2,
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score a trained model on prepared images: MSE, MAE, R2, Pearson's r and SSIM.

    Each image is predicted whole and scored as a whole; a task has the mean over its images, and
    "All" the mean over all images. Prints a table; writes scores.json, images.csv, tasks.csv and
    pictures of signal, target, prediction and error, in which too bright is red and too dark blue.

    Args:
        run: Run folder of `ssp train` or `ssp extend`, one of its checkpoints, or an official
            checkpoint (.p).
        data: Folder of `ssp prepare`.
        out: Folder to write.
        split: Which images.
        task: Names of the tasks to score; all that both the model and the data know by default.
        reference: What this command wrote for Multi-Net: tells by how many per cent each score is
            better.
        num_pictures: Images of each task to make a picture of.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.

    Raises:
        FileNotFoundError: If the run, the data or the reference does not exist.
        ValueError: If a task is unknown, there is no image to score, or they do not fit.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give the tiles per prediction")
    model, prepared = load_model(run), open_data(data)
    images = choose_images(model, prepared, split, task)
    against = None if reference is None else read_reference(reference, images)
    where = choose_device(device)
    scored = []
    fields = {image: field_of(model, image) for image in images}
    num_tiles = sum(int(np.prod(field.plan.grid)) for field in fields.values())
    with progress(f"{split} images", num_tiles, "tiles") as advance:
        for name in dict.fromkeys(image.task for image in images):
            plain = for_task(model.network, model.tasks.index(name)).to(where)
            for number, image in enumerate(i for i in images if i.task == name):
                found = assess(plain, image, fields[image], where, batch_size, advance)
                scored.append(ScoredImage(image.name, name, found.scores))
                if number < num_pictures:
                    path = out / "pictures" / f"{name}-{image.name}.png"
                    write_png(path, found.picture_with_error())
    facts = {"run": str(run.resolve()), "checkpoint_sha256": model.sha256,
             "data": str(prepared.path.resolve()), "split": split}  # fmt: skip
    record = collect(where, **facts, **scores_record(scored, against))
    write_json(out / RECORD, finite(record))
    _write_csv(out / "images.csv", ("task", "image"), ((i.task, i.name, i.scores) for i in scored))
    _write_csv(out / "tasks.csv", ("task",), ((n, s) for n, s in summarize(scored).items()))
    print(table(record))


def choose_images(
    model: CellModel, data: PreparedData, split: str, wanted: Sequence[str]
) -> tuple[Image, ...]:
    """Return the images of a split that a model can be scored on.

    Raises:
        ValueError: If a wanted task is unknown to one of them, they have no task in common, or
            there is no image.
    """
    if wanted:
        common = model.choose(wanted)
    else:
        common = tuple(task for task in data.tasks if task in model.tasks)
        if not common:
            raise ValueError(
                f"{model.path} knows {', '.join(model.tasks)} and {data.path} has "
                f"{', '.join(data.tasks)}; give data of a task that the model knows"
            )
        if others := sorted({*data.tasks} - {*common}):
            note(f"not scored, as the model does not know them: {', '.join(others)}")
    images = data.select(split, common)
    if not images:
        raise ValueError(
            f"{data.path} has no {split} image of {', '.join(common)}; choose another --split"
        )
    if other := [image for image in images if not _has_size(image, model.voxel_size_um)]:
        note(
            f"{len(other)} images have voxels of other size than the {model.voxel_size_um} um of "
            f"training (the first is {other[0].name}: {other[0].signal.voxel_size_um} um)"
        )
    return images


def field_of(model: CellModel, image: Image) -> Field:
    """Return how an image is tiled for a model.

    Raises:
        ValueError: If the model does not predict what the target is.
    """
    if image.is_2d_target != (model.target != "stack"):
        kind = "map" if image.is_2d_target else "stack"
        raise ValueError(
            f"the target of {image.name} is a {kind} and {model.path} predicts a {model.target}; "
            "give data like those it was trained on"
        )
    return Field(image.signal.shape, model.tile, model.target, model.num_layers)


def scores_record(
    scored: Sequence[ScoredImage], reference: Mapping[str, Mapping[str, float]] | None
) -> dict[str, Any]:
    """Return the scores of images as they are stored: of tasks, of images, and their gain.

    Args:
        scored: The images.
        reference: Scores by task of what they are compared with, "All" among them.
    """
    tasks = summarize(scored)
    record: dict[str, Any] = {
        "num_images": len(scored),
        "tasks": tasks,
        "images": [{"task": i.task, "name": i.name, **i.scores} for i in scored],
    }
    if reference is not None:
        record["improvement"] = {name: improvement(tasks[name], reference[name]) for name in tasks}
    return record


def read_reference(path: Path, images: Iterable[Image]) -> dict[str, dict[str, float]]:
    """Return the scores by task of an earlier evaluation.

    Args:
        path: Its folder or its scores.json.
        images: The images that are to be compared, which must be the same.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no evaluation, or one of other images.
    """
    path = path / RECORD if path.is_dir() else path
    record = read_json(path)
    try:
        found = {(row["task"], row["name"]) for row in record["images"]}
        tasks: dict[str, dict[str, float]] = record["tasks"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no scores; give what `ssp evaluate` wrote") from error
    wanted = {(image.task, image.name) for image in images}
    if found != wanted:
        raise ValueError(
            f"{path} has scores of other images ({len(found)}, of which {len(found & wanted)} are "
            f"among these {len(wanted)}); evaluate both on the same data, split and tasks"
        )
    return tasks


def table(record: Mapping[str, Any]) -> str:
    """Return the scores by task as lines of text, with the gain of each if there is a reference."""
    tasks, gains = record["tasks"], record.get("improvement")
    counts = {name: sum(row["task"] == name for row in record["images"]) for name in tasks}
    counts[ALL] = record["num_images"]
    width = max(map(len, [*tasks, "task"]))
    heading = "".join(f"{HEADINGS[metric]:>9}" for metric in METRICS)
    gained = "".join(f"{HEADINGS[metric] + ' +%':>9}" for metric in METRICS) if gains else ""
    lines = [f"{'task':{width}} images{heading}{gained}"]
    for name, scores in tasks.items():
        cells = "".join(f"{scores[metric]:9.4f}" for metric in METRICS)
        cells += "".join(f"{gains[name][metric]:9.2f}" for metric in METRICS) if gains else ""
        lines.append(f"{name:{width}} {counts[name]:6}{cells}")
    return "\n".join(lines)


def _has_size(image: Image, size_um: tuple[float, float, float] | None) -> bool:
    """Return whether voxels have a size, as far as both are known."""
    found = image.signal.voxel_size_um
    return found is None or size_um is None or np.allclose(found, size_um, rtol=SIZE_TOLERANCE)


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows that end in scores."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *METRICS])
        for *cells, scores in rows:
            writer.writerow([*cells, *(scores[metric] for metric in METRICS)])
