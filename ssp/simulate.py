"""Synthetic cells, to try everything with no download.

Each file holds one image of a layer of cells in transmitted light and the fluorescence of one of
its structures. Scores on synthetic cells say that code works and compare methods; they say nothing
about real cells.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import atomic_path, check_space, read_json, write_json
from core.lock import holds, names_in
from core.terminal import note, progress
from ssp.lists import LIST_NAME
from ssp.tasks import STRUCTURES

SIMULATOR_VERSION = 1  # raised whenever the same parameters give other voxels
RECORD = "simulation.json"
SMALLEST = (8, 32, 32)
SIGNAL_NAME = "transmitted light"
COLUMNS = ("path_signal", "path_target", "channel_signal", "channel_target", "task")


@holds("out")
def simulate(
    out: Path,
    /,
    size: tuple[int, int, int] = (32, 256, 256),
    images: int = 4,
    seed: int = 0,
    tasks: tuple[str, ...] = tuple(STRUCTURES),
    voxel_size: tuple[float, float, float] = (0.29, 0.29, 0.29),
) -> None:
    """Write synthetic cells in transmitted light and fluorescence, as `ssp prepare` reads them.

    Each image is an OME-TIFF of two channels: transmitted light, and one structure. `list.csv`
    lists them. The same command again writes only what is missing.

    Args:
        out: Folder to write.
        size: Planes, rows and columns of an image.
        images: Number of images of each structure.
        seed: Decides everything random.
        tasks: Structures, of alpha_tubulin, beta_actin, desmoplakin, dna, fibrillarin, lamin_b1,
            membrane_caax_63x, myosin_iib, sec61_beta, st6gal1, tom20 and zo1.
        voxel_size: Size of a voxel along Z, Y and X, in um.

    Raises:
        ValueError: If an option is out of range or `out` holds something else.
    """
    _check_options(size, images, seed, tasks, voxel_size)
    parameters = {
        "simulator_version": SIMULATOR_VERSION,
        "size": list(size),
        "images": images,
        "seed": seed,
        "tasks": list(tasks),
        "voxel_size_um": list(voxel_size),
    }
    _check_folder(out, parameters)
    names = {f"images/{task}_{n:02}.ome.tif": (task, n) for task in tasks for n in range(images)}
    missing = {name: key for name, key in names.items() if not (out / name).is_file()}
    check_space(out, len(missing) * 4 * int(np.prod(size)))
    write_json(out / RECORD, parameters)
    with progress(f"simulate {out.name}", len(names), "images") as advance:
        advance(len(names) - len(missing))
        for name, (task, number) in missing.items():
            voxels = draw_image(task, size, voxel_size, (seed, number))
            _write_image(out / name, voxels, task, voxel_size)
            advance(1)
    with atomic_path(out / LIST_NAME) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, (task, _) in names.items():
            writer.writerow([name, name, SIGNAL_NAME, STRUCTURES[task], task])


def draw_image(
    task: str,
    size: tuple[int, int, int],
    voxel_size_um: tuple[float, float, float],
    seed: tuple[int, ...],
) -> np.ndarray:
    """Return transmitted light and fluorescence of one layer of cells, uint16 (2, Z, Y, X).

    Cells of one seed are other cells for each task.
    """
    from ssp.cells import CellLayer
    from ssp.optics import fluorescence, transmitted_light
    from ssp.structures import DENSITIES

    cells = CellLayer(size, voxel_size_um, (*seed, list(STRUCTURES).index(task)))
    light = transmitted_light(cells, cells.random(30))
    return np.stack([light, fluorescence(cells, DENSITIES[task](cells), cells.random(31))])


def _check_options(
    size: tuple[int, int, int],
    images: int,
    seed: int,
    tasks: tuple[str, ...],
    voxel_size: tuple[float, float, float],
) -> None:
    """Raise ValueError for an option out of range."""
    if any(n < least for n, least in zip(size, SMALLEST, strict=True)):
        found, least = (" ".join(map(str, sizes)) for sizes in (size, SMALLEST))
        raise ValueError(f"--size {found} is too small for cells; use {least} or more")
    if images < 1 or seed < 0:
        raise ValueError(f"--images {images} and --seed {seed} must be at least 1 and 0")
    if unknown := [task for task in tasks if task not in STRUCTURES]:
        raise ValueError(f"unknown task {', '.join(unknown)}; choose from {', '.join(STRUCTURES)}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"--tasks {' '.join(tasks)} must name tasks, each once")
    if not all(0.02 <= length <= 2 for length in voxel_size):
        raise ValueError(f"--voxel-size {' '.join(map(str, voxel_size))} is outside 0.02 to 2 um")


def _check_folder(out: Path, parameters: dict[str, Any]) -> None:
    """Raise ValueError if `out` holds anything but this simulation."""
    if not names_in(out):
        return
    if not (out / RECORD).is_file():
        raise ValueError(f"{out} already exists and is no simulation; choose another folder")
    record = read_json(out / RECORD)
    if changed := [key for key, value in parameters.items() if record.get(key) != value]:
        raise ValueError(
            f"{out} already holds a simulation with another {', '.join(changed)}; "
            "remove it or choose another folder"
        )
    if (out / LIST_NAME).is_file():
        note(f"{out} already holds this simulation")


def _write_image(
    path: Path, voxels_CZYX: np.ndarray, task: str, voxel_size_um: tuple[float, float, float]
) -> None:
    """Write an OME-TIFF with voxel size and the names of its channels."""
    metadata: dict[str, Any] = {"axes": "CZYX"}
    for axis, size in zip("ZYX", voxel_size_um, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    metadata["Channel"] = {"Name": [SIGNAL_NAME, STRUCTURES[task]]}
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial, voxels_CZYX, ome=True, photometric="minisblack", metadata=metadata
        )
