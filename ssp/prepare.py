"""Turn lists of microscope images into prepared data.

Every volume is stored once, under a name that says which channel of which file it is and how it was
resampled; so a volume that two tasks share is one, and an interrupted command is continued by the
same command. The record `data.json` is written last: only then the data are there.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from core.files import atomic_path, check_space, read_json, write_json
from core.lock import holds
from core.terminal import note, progress
from ssp.jobs import Job, Order, Resampling, plan_pairs
from ssp.lists import Row, read_lists
from ssp.prepared import DTYPE, FORMAT_VERSION, RECORD, SPLIT_LIST, VOLUMES, volume_path
from ssp.readers import plain_name
from ssp.resample import standardize
from ssp.split import split_rows
from ssp.stack import VoxelSize

LIST_COLUMNS = ("name", "task", "split", "path_signal", "channel_signal", "scene", "time")
LIST_COLUMNS += ("path_target", "channel_target", "scene_target", "time_target")


@holds("out")
def prepare(
    lists: tuple[Path, ...],
    /,
    out: Path,
    task: str | None = None,
    root: Path | None = None,
    voxel_size: float = 0.29,
    source_voxel_size: tuple[float, float, float] | None = None,
    factor: tuple[float, float, float] | None = None,
    order: Order = "zscore-resample",
    axes: str | None = None,
    split: tuple[float, float] = (0.25, 0.1),
    seed: int = 42,
    draw: tuple[str, ...] = (),
) -> None:
    """Turn lists of images into volumes from which training reads fast.

    A list is a CSV with the columns path_signal, path_target, channel_signal, channel_target and
    task, or path_czi, channel_signal and channel_target, then one list for each task; a column
    `split` (train, val, test) is kept to. A folder holds list.csv, or TASK/signal/NAME and
    TASK/target/NAME. CZI, TIFF, OME-TIFF and OME-Zarr are read. A target has as many planes as its
    signal or one, as a projection has. The same command again continues.

    Args:
        lists: CSV lists and folders.
        out: Folder to write.
        task: Name of the structure in lists without a column for it; their own name by default.
        root: What paths in lists are relative to; the folder of each list by default.
        voxel_size: Voxel size to resample to, in um, along all axes.
        source_voxel_size: Voxel size of the images in um (Z Y X), in place of what they say.
        factor: Factors of Z, Y and X in place of voxel sizes; 1 0.37241 0.37241 is the official
            one, 1 1 1 resamples nothing.
        order: Whether mean and deviation are those before or after resampling.
        axes: For TIFFs that do not say it, the letter of each axis longer than 1: "CZYX".
        split: Part of the images of each task for testing, and of the others for validation.
        seed: Of the split.
        draw: Tasks whose images are drawn from those of the others, on the same side of the split:
            dna, in the official lists.

    Raises:
        FileNotFoundError: If lists or images are missing; all missing images are named.
        ValueError: If a list is malformed, an image is no stack, lacks its voxel size, cannot be
            z-scored or does not fit its target, an option is out of range, or `out` holds other
            data.
    """
    _check_options(voxel_size, source_voxel_size, factor, split, seed)
    resampling = Resampling(voxel_size, source_voxel_size, factor, order)
    rows = split_rows(read_lists(lists, task, root), *split, seed, draw)
    pairs = plan_pairs(rows, resampling, axes)
    settings = {**asdict(resampling), "axes": axes, "split": split, "seed": seed, "drawn": draw}
    record = _record(rows, pairs, settings)
    if _is_finished(out, record):
        note(f"{out} is already prepared")
        return
    jobs = {job.key: job for pair in pairs for job in pair}
    _convert_missing(list(jobs.values()), out, order)
    record["volumes"] = {key: _describe(job, out) for key, job in jobs.items()}
    _write_split_list(out / SPLIT_LIST, rows, record["images"])
    _remove_others(out, jobs)
    write_json(out / RECORD, record)


def _check_options(
    voxel_size: float,
    source_voxel_size: VoxelSize | None,
    factor: VoxelSize | None,
    split: tuple[float, float],
    seed: int,
) -> None:
    """Raise ValueError for an option out of range."""
    positive = {"--voxel-size": (voxel_size,), "--source-voxel-size": source_voxel_size or ()}
    positive["--factor"] = factor or ()
    for name, values in positive.items():
        if not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} {' '.join(map(str, values))} must be above 0")
    if factor and source_voxel_size:
        raise ValueError("--factor and --source-voxel-size both say how to resample; give one")
    if not all(0 <= part < 1 for part in split):
        raise ValueError(f"--split {split[0]} {split[1]} must be parts from 0 to below 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed} is outside 0 to {2**32 - 1}")


def _record(
    rows: Sequence[Row], pairs: Sequence[tuple[Job, Job]], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return `data.json` without what is known of volumes only when they are stored."""
    counts: Counter[tuple[str, str]] = Counter()
    images = []
    for row, (signal, target) in zip(rows, pairs, strict=True):
        name = plain_name(row.signal.path)
        for letter, number in (("s", row.signal.scene), ("t", row.signal.time)):
            name += "" if number is None else f"-{letter}{number}"
        counts[row.task, name] += 1
        if counts[row.task, name] > 1:
            name = f"{name}-{counts[row.task, name]}"
        images.append({"name": name, "task": row.task, "split": row.split})
        images[-1] |= {"signal": signal.key, "target": target.key}
    tasks = sorted({row.task for row in rows})
    record = {"format_version": FORMAT_VERSION, "tasks": tasks, "images": images}
    return json.loads(json.dumps({**record, "settings": settings}))  # tuples as lists


def _is_finished(out: Path, record: dict[str, Any]) -> bool:
    """Tell whether `out` holds these data; raise ValueError if it holds others."""
    if not (out / RECORD).exists():
        return False
    stored = read_json(out / RECORD)
    if changed := [key for key in record if stored.get(key) != record[key]]:
        raise ValueError(
            f"{out} was prepared with other {', '.join(changed)}; choose another --out, or delete "
            f"{out / RECORD} to prepare anew what changed"
        )
    return True


def _is_stored(out: Path, job: Job) -> bool:
    """Tell whether a volume is stored; its moments are written after it."""
    path = volume_path(out, job.key)
    return path.is_file() and path.with_suffix(".json").is_file()


def _convert_missing(jobs: Sequence[Job], out: Path, order: Order) -> None:
    """Store the volumes that are not there yet."""
    missing = [job for job in jobs if not _is_stored(out, job)]
    size = sum(math.prod(job.stored_shape) for job in missing) * np.dtype(DTYPE).itemsize
    size += max(
        (4 * job.stack.shape[1] * math.prod(job.out_shape[1:]) for job in missing), default=0
    )
    check_space(out, size)
    with progress("preparing", len(jobs), "volumes") as advance:
        advance(len(jobs) - len(missing))
        for job in missing:
            _convert(job, out, order)
            advance(1)


def _convert(job: Job, out: Path, order: Order) -> None:
    """Store one volume and then its moments."""
    path = volume_path(out, job.key)
    with atomic_path(path) as partial:
        stored = np.lib.format.open_memmap(partial, "w+", DTYPE, job.stored_shape)
        moments = standardize(
            lambda start, stop: job.stack.read(job.channel, start, stop),
            job.stack.shape[1:],
            stored.reshape(job.out_shape),
            path.parent,
            f"{job.stack.path} channel {job.channel}",
            is_resampled_first=order == "resample-zscore",
        )
        stored.flush()
    write_json(path.with_suffix(".json"), moments._asdict())


def _describe(job: Job, out: Path) -> dict[str, Any]:
    """Return what is recorded of a stored volume: the fields of `Volume` but for its path."""
    size_um = job.source_voxel_size_um
    shape = job.stack.shape[1:]
    if size_um is not None:
        scales = zip(size_um, shape, job.out_shape, strict=True)
        size_um = [size * before / after for size, before, after in scales]
    return {
        "shape": job.stored_shape,
        "voxel_size_um": size_um,
        **read_json(volume_path(out, job.key).with_suffix(".json")),
        "source": str(job.stack.path.resolve()),
        "channel": job.channel,
        "source_shape": shape,
        "source_voxel_size_um": job.source_voxel_size_um,
    }


def _write_split_list(path: Path, rows: Sequence[Row], images: list[dict[str, Any]]) -> None:
    """Write the rows as a list that gives the same split again."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LIST_COLUMNS)
        for row, image in zip(rows, images, strict=True):
            cells = [image["name"], row.task, row.split]
            for source, channel in (
                (row.signal, row.signal_channel),
                (row.target, row.target_channel),
            ):
                cells += [source.path.resolve(), channel, source.scene, source.time]
            writer.writerow(["" if cell is None else cell for cell in cells])


def _remove_others(out: Path, keys: Sequence[str]) -> None:
    """Remove volumes that earlier commands stored and these data do not hold."""
    for path in (out / VOLUMES).iterdir():
        if path.stem not in keys:
            path.unlink()
