"""Prepared data: z-scored, resampled volumes that are mapped, and which pairs of them train what.

A folder with `data.json`, `split.csv` and `volumes/NAME.npy`, float16. Half precision keeps 11 bits
of a value, an error of 0.02 % of it, far below the noise of a camera, and halves disk and reading.

Shape legend: Z planes, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import read_json

FORMAT_VERSION = 1
RECORD = "data.json"
SPLIT_LIST = "split.csv"
VOLUMES = "volumes"
DTYPE = np.float16


@dataclass(frozen=True)
class Volume:
    """One channel of one image, z-scored and resampled; pickles as this description.

    Attributes:
        path: The .npy file.
        shape: (Z, Y, X), or (Y, X) of a 2D target.
        voxel_size_um: (Z, Y, X) after resampling, or None if the file did not tell and it was not
            needed.
        mean: Mean of the original intensities.
        std: Standard deviation of the original intensities: value * std + mean is the original.
        source: The file it comes from.
        channel: Index of the channel there.
        source_shape: (Z, Y, X) there.
        source_voxel_size_um: (Z, Y, X) there, or None.
    """

    path: Path
    shape: tuple[int, ...]
    voxel_size_um: tuple[float, float, float] | None
    mean: float
    std: float
    source: str
    channel: int
    source_shape: tuple[int, int, int]
    source_voxel_size_um: tuple[float, float, float] | None

    def open(self) -> np.memmap:
        """Map the voxels, float16 of `shape`, for reading.

        Nothing is kept open, as thousands of open volumes would exceed what a system allows.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is damaged.
        """
        try:
            voxels = np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            found = f"cannot be read ({error})"
        else:
            if voxels.dtype == DTYPE and voxels.shape == self.shape:
                return voxels
            found = f"is {voxels.dtype} {voxels.shape}"
        raise ValueError(
            f"{self.path} {found}, expected {np.dtype(DTYPE)} {self.shape}; delete it and "
            f"{RECORD} and prepare the data again"
        )

    def to_original(self, values: np.ndarray) -> np.ndarray:
        """Return values on the scale of the original intensities, float32."""
        return values.astype(np.float32) * np.float32(self.std) + np.float32(self.mean)


@dataclass(frozen=True)
class Image:
    """A signal and its target for one task.

    Attributes:
        name: Unique in its task.
        task: The structure that the target shows.
        split: train, val or test.
        signal: The transmitted-light image.
        target: The fluorescence image.
    """

    name: str
    task: str
    split: str
    signal: Volume
    target: Volume

    @property
    def is_2d_target(self) -> bool:
        """Return whether the target is one plane (Y, X) for all planes of the signal."""
        return len(self.target.shape) == 2


@dataclass(frozen=True)
class PreparedData:
    """A folder of prepared data.

    Attributes:
        path: The folder.
        tasks: Names of the tasks, in the order of their indices.
        images: All images, sorted by task and then as drawn, training first.
        settings: How they were prepared.
    """

    path: Path
    tasks: tuple[str, ...]
    images: tuple[Image, ...]
    settings: dict[str, Any]

    def select(self, split: str, tasks: Iterable[str] | None = None) -> tuple[Image, ...]:
        """Return the images of a split, of some tasks or of all.

        Raises:
            ValueError: If a task is unknown.
        """
        wanted = self.tasks if tasks is None else tuple(tasks)
        if unknown := sorted({*wanted} - {*self.tasks}):
            raise ValueError(
                f"unknown task {', '.join(unknown)}; {self.path} has {', '.join(self.tasks)}"
            )
        return tuple(i for i in self.images if i.split == split and i.task in wanted)


def open_data(folder: str | Path) -> PreparedData:
    """Open prepared data without loading voxels.

    Raises:
        FileNotFoundError: If there is none, or it is not finished.
        ValueError: If it was written in another format.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"{folder.absolute()} holds no finished data ({RECORD}); run `ssp prepare` on your "
            "list, or the same command again if it was interrupted"
        )
    record = read_json(folder / RECORD)
    if record.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format_version {record.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; delete it and prepare the data again"
        )
    volumes = {key: _volume(folder, key, facts) for key, facts in record["volumes"].items()}
    images = tuple(
        Image(
            name=facts["name"],
            task=facts["task"],
            split=facts["split"],
            signal=volumes[facts["signal"]],
            target=volumes[facts["target"]],
        )
        for facts in record["images"]
    )
    return PreparedData(folder, tuple(record["tasks"]), images, record["settings"])


def volume_path(folder: Path, key: str) -> Path:
    """Return where a volume is stored."""
    return folder / VOLUMES / f"{key}.npy"


def _volume(folder: Path, key: str, facts: dict[str, Any]) -> Volume:
    """Return a volume from its record, in which tuples are lists."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Volume(path=volume_path(folder, key), **values)
