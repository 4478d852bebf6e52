"""Prediction: from a transmitted-light stack to fluorescence, with an official checkpoint.

Shape legend: Z Y X voxels, C channels, N tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
import torch
from torch import nn

from core.deploy import specialize
from core.files import atomic_path
from core.inference import choose_device, stream, torch_predictor
from core.official import load_official_checkpoint
from core.terminal import note, progress
from core.tiling import TilePlan

TILE = (32, 128, 128)
STRIDE = (16, 64, 64)


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
    blended with Gaussian weights. It should have the voxel size the network was trained at, 0.29 um
    along every axis for the published ones. Writes one float32 TIFF (Z, Y, X) per task, in units of
    standard deviations of the fluorescence image.

    Args:
        checkpoint: Official checkpoint (.p).
        stack: TIFF or OME-TIFF of one channel, (Z, Y, X) or a single plane (Y, X), of any size.
        out: Folder to write `<task>.tif` into.
        task: Names of the structures to predict; all the network knows by default.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.

    Raises:
        FileNotFoundError: If the checkpoint or the stack does not exist.
        ValueError: If one of them cannot be read, or a task is unknown.
    """
    model, known = load_official_checkpoint(checkpoint)
    chosen = _choose_tasks(task, known)
    volume = standardized(read_stack(stack))
    where = choose_device(device)
    note(f"{stack.name}: {' x '.join(map(str, volume.shape))} voxels, on {where}")
    for name in chosen:
        plain = specialize(model, known.index(name)).to(where)
        fluorescence = predict_volume(plain, volume, where, batch_size, name)
        with atomic_path(out / f"{name}.tif") as partial:
            tifffile.imwrite(partial, fluorescence, metadata={"axes": "ZYX"})


def read_stack(path: Path) -> np.ndarray:
    """Return the voxels of a TIFF of one channel as float32 (Z, Y, X).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no TIFF, or has axes other than one channel of (Z,) Y, X.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no stack at {path.absolute()}")
    try:
        voxels = np.squeeze(tifffile.imread(path))
    except (tifffile.TiffFileError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as TIFF: {error}") from error
    if voxels.ndim not in (2, 3):
        raise ValueError(
            f"{path} has shape {voxels.shape}; one channel of (Z, Y, X) or (Y, X) is needed: "
            "save the transmitted-light channel alone"
        )
    return voxels.astype(np.float32).reshape(-1, *voxels.shape[-2:])


def standardized(volume: np.ndarray) -> np.ndarray:
    """Return a volume with mean 0 and standard deviation 1, float32.

    Raises:
        ValueError: If it is constant or holds values that are not finite.
    """
    mean, std = volume.mean(dtype=np.float64), volume.std(dtype=np.float64)
    if not np.isfinite(std) or std == 0:
        raise ValueError(
            f"the stack has mean {mean:g} and standard deviation {std:g} and cannot be z-scored; "
            "it needs finite values that are not all the same"
        )
    return ((volume - mean) / std).astype(np.float32)


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
            torch_predictor(lambda tiles_NZYX: plain(tiles_NZYX[:, None]), device),
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
    return list(wanted) or known
