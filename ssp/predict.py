"""Prediction: from a transmitted-light stack to fluorescence, with an official checkpoint.

Shape legend: Z Y X voxels, C channels, N tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import torch
from torch import nn

from core.deploy import specialize
from core.files import atomic_path, read_json, write_json
from core.inference import choose_device, stream, torch_predictor
from core.official import load_official_checkpoint
from core.provenance import collect, file_hash
from core.terminal import note, progress
from core.tiling import TilePlan
from ssp.readers import open_stack
from ssp.resample import measure

TILE = (32, 128, 128)
STRIDE = (16, 64, 64)


def predict(
    checkpoint: Path,
    stack: Path,
    /,
    out: Path,
    task: tuple[str, ...] = (),
    channel: int | str | None = None,
    scene: int | None = None,
    time: int | None = None,
    axes: str | None = None,
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict fluorescence from a transmitted-light stack with an official RepMode checkpoint.

    The stack is z-scored as a whole and predicted in overlapping tiles of 32 x 128 x 128 voxels,
    blended with Gaussian weights. Nothing is resampled: it should have the voxel size of training,
    0.29 um along every axis for published networks. Writes for each task one float32 TIFF (Z, Y,
    X), in standard deviations of the fluorescence image, and where it comes from. The same command
    again predicts only what is missing.

    Args:
        checkpoint: Official checkpoint (.p).
        stack: CZI, TIFF or OME-TIFF, (Z, Y, X) or a single plane (Y, X), of any size.
        out: Folder to write `<task>.tif` and `<task>.provenance.json` into.
        task: Names of the structures to predict; all the network knows by default.
        channel: Index from 0 or name of the transmitted-light channel; the only one by default.
        scene: Which of several images, from 0; the only one by default.
        time: Which of several times, from 0; the only one by default.
        axes: For a TIFF that does not say it, the letter of each axis longer than 1: "CZYX".
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.

    Raises:
        FileNotFoundError: If the checkpoint or the stack does not exist.
        ValueError: If one of them cannot be read, a task is unknown, or `out` holds predictions
            with another checkpoint, stack or setting.
    """
    model, known = load_official_checkpoint(checkpoint)
    chosen = _choose_tasks(task, known)
    volume = standardized(read_stack(stack, channel, scene, time, axes))
    where = choose_device(device)
    settings = {
        "checkpoint_sha256": file_hash(checkpoint),
        "stack_sha256": file_hash(stack),
        "chosen": {"channel": channel, "scene": scene, "time": time, "axes": axes},
        "tile": list(TILE),
        "stride": list(STRIDE),
        "batch_size": batch_size,
        "device": str(where),
    }
    missing = _find_missing(out, chosen, settings)
    note(f"{stack.name}: {' x '.join(map(str, volume.shape))} voxels, on {where}")
    if not missing:
        note(f"{out} is already finished")
    facts = _facts(checkpoint, stack, volume.shape, settings)
    for name in missing:  # the record first, so that an `out` which cannot be written is found now
        write_json(_record(out, name), collect(where, task=name, **facts))
        plain = specialize(model, known.index(name)).to(where)
        _write(out, name, predict_volume(plain, volume, where, batch_size, name))


def _write(out: Path, task: str, fluorescence_ZYX: np.ndarray) -> None:
    """Write the prediction of a task."""
    with atomic_path(out / f"{task}.tif") as partial:
        tifffile.imwrite(partial, fluorescence_ZYX, metadata={"axes": "ZYX"})


def read_stack(
    path: Path,
    channel: int | str | None = None,
    scene: int | None = None,
    time: int | None = None,
    axes: str | None = None,
) -> np.ndarray:
    """Return one channel of a file as float32 (Z, Y, X); the arguments are those of `predict`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no stack, is damaged, or a channel, scene or time must be chosen.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no stack at {path.absolute()}")
    stack = open_stack(path, scene, time, axes)
    return stack.read(stack.find_channel(channel)).astype(np.float32)


def standardized(volume: np.ndarray) -> np.ndarray:
    """Return a volume with mean 0 and standard deviation 1, float32.

    Raises:
        ValueError: If it is constant or holds values that are not finite.
    """
    moments = measure(lambda start, stop: volume[start:stop], volume.shape, "the stack")
    volume = volume - np.float32(moments.mean)
    volume /= np.float32(moments.std)
    return volume


def predict_volume(
    plain: nn.Module, volume: np.ndarray, device: torch.device, batch_size: int, name: str
) -> np.ndarray:
    """Return the prediction of a plain network for a standardized volume, float32 (Z, Y, X)."""
    plan = TilePlan(volume.shape, TILE, STRIDE)
    fluorescence = np.empty(volume.shape, np.float32)

    def write(start: int, stop: int, values: np.ndarray) -> None:
        fluorescence[start:stop] = values[0]

    with progress(name, int(np.prod(plan.grid)), "tiles") as advance:
        stream(
            plan,
            lambda start, stop: volume[start:stop],
            torch_predictor(lambda tiles_NZYX, _: plain(tiles_NZYX[:, None]), device),
            write,
            batch_size=batch_size,
            advance=advance,
        )
    return fluorescence


def _choose_tasks(wanted: tuple[str, ...], known: list[str]) -> list[str]:
    """Return the tasks to predict.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"unknown task {', '.join(unknown)}; this checkpoint knows {', '.join(known)}"
        )
    return list(dict.fromkeys(wanted)) or known


def _find_missing(out: Path, tasks: list[str], settings: dict[str, Any]) -> list[str]:
    """Return the tasks that `out` holds no prediction of.

    Raises:
        ValueError: If it holds predictions with other settings, or one of these tasks of unknown
            origin.
    """
    for path in sorted(out.glob("*.tif")):
        record = _record(out, path.stem)
        if record.exists():
            stored = read_json(record).get("settings", {})
            changed = [key for key in settings if stored.get(key) != settings[key]]
            found = f"predicted with other {', '.join(changed)}"
        else:
            changed, found = path.stem in tasks, "of unknown origin"
        if changed:
            raise ValueError(f"{path} is {found}; delete it or choose another --out")
    return [name for name in tasks if not (out / f"{name}.tif").exists()]


def _facts(
    checkpoint: Path, stack: Path, shape: tuple[int, ...], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what a prediction says about itself."""
    return {
        "checkpoint": str(checkpoint.resolve()),
        "input": str(stack.resolve()),
        "shape": list(shape),
        "intensity": "z-score of the whole stack",
        "resampling": "none",
        "settings": settings,
    }


def _record(out: Path, task: str) -> Path:
    """Return the path of what tells where the prediction of a task comes from."""
    return out / f"{task}.provenance.json"
