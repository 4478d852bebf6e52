"""Prediction: from a transmitted-light stack to fluorescence, with an official checkpoint.

Shape legend: Z Y X voxels, C channels, N tiles.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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

TILE = (32, 128, 128)
STRIDE = (16, 64, 64)
STACK_AXES = ("YX", "ZYX", "IYX", "QYX")  # I and Q: pages of which the file does not say more
# What tifffile and the codecs, imagecodecs or Python's own, raise on damaged files.
UNREADABLE = (
    tifffile.TiffFileError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


def predict(
    checkpoint: Path,
    stack: Path,
    /,
    out: Path,
    task: tuple[str, ...] = (),
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict fluorescence from a transmitted-light stack with an official RepMode checkpoint.

    The stack is z-scored as a whole and predicted in overlapping tiles of 32 x 128 x 128 voxels,
    blended with Gaussian weights. Nothing is resampled: it should have the voxel size the network
    was trained at, 0.29 um along every axis for the published ones. Writes for each task one
    float32 TIFF (Z, Y, X), in units of standard deviations of the fluorescence image, and where it
    comes from. The same command again predicts only what is missing.

    Args:
        checkpoint: Official checkpoint (.p).
        stack: TIFF or OME-TIFF of one channel, (Z, Y, X) or a single plane (Y, X), of any size.
        out: Folder to write `<task>.tif` and `<task>.provenance.json` into.
        task: Names of the structures to predict; all the network knows by default.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.

    Raises:
        FileNotFoundError: If the checkpoint or the stack does not exist.
        ValueError: If one of them cannot be read, a task is unknown, or `out` holds predictions
            with another checkpoint, stack or setting.
    """
    model, known = load_official_checkpoint(checkpoint)
    chosen = _choose_tasks(task, known)
    volume = standardized(read_stack(stack))
    where = choose_device(device)
    settings = {
        "checkpoint_sha256": file_hash(checkpoint),
        "stack_sha256": file_hash(stack),
        "tile": list(TILE),
        "stride": list(STRIDE),
        "batch_size": batch_size,
        "device": str(where),
    }
    note(f"{stack.name}: {' x '.join(map(str, volume.shape))} voxels, on {where}")
    missing = _find_missing(out, chosen, settings)
    if not missing:
        note(f"{out} is already finished")
    for name in missing:
        # Written before the work, so that an `out` which cannot be written is found now.
        facts = _facts(checkpoint, stack, volume.shape, settings)
        write_json(_record(out, name), collect(where, task=name, **facts))
        plain = specialize(model, known.index(name)).to(where)
        fluorescence = predict_volume(plain, volume, where, batch_size, name)
        with atomic_path(out / f"{name}.tif") as partial:
            tifffile.imwrite(partial, fluorescence, metadata={"axes": "ZYX"})


def read_stack(path: Path) -> np.ndarray:
    """Return the voxels of a TIFF of one channel as float32 (Z, Y, X).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no TIFF or damaged, or holds several images or axes other than (Z,) Y
            and X.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no stack at {path.absolute()}")
    with _named_when_unreadable(path), tifffile.TiffFile(path) as file:
        images = [list(zip(image.axes, image.shape, strict=True)) for image in file.series]
    if len(images) != 1:
        raise ValueError(f"{path} holds {len(images)} images; save the transmitted-light one alone")
    sizes = [(axis, size) for axis, size in images[0] if size > 1 or axis in "YX"]
    if "".join(axis for axis, _ in sizes) not in STACK_AXES:
        found = ", ".join(f"{axis} {size}" for axis, size in sizes)
        raise ValueError(
            f"{path} has axes {found}; (Z, Y, X) or (Y, X) is needed: save the transmitted-light "
            "channel alone, at one time, with its planes as Z"
        )
    with _named_when_unreadable(path):
        voxels = tifffile.imread(path)
    return voxels.astype(np.float32).reshape(-1, sizes[-2][1], sizes[-1][1])


def standardized(volume: np.ndarray) -> np.ndarray:
    """Return a volume with mean 0 and standard deviation 1, float32.

    Raises:
        ValueError: If it is constant or holds values that are not finite.
    """
    mean = volume.mean(dtype=np.float64)
    std = np.float64(np.nan)
    if np.isfinite(mean):
        volume = volume - np.float32(mean)
        # Plane by plane: of the whole stack there is never a copy in double precision.
        std = np.sqrt(np.mean([np.square(plane, dtype=np.float64).mean() for plane in volume]))
    if not 0 < std < np.inf:
        raise ValueError(
            f"the stack has mean {mean:g} and standard deviation {std:g} and cannot be z-scored; "
            "it needs finite values that are not all the same"
        )
    volume /= np.float32(std)
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


@contextmanager
def _named_when_unreadable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a ValueError of one line that names it."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as TIFF: {reason}; save it again") from error


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
