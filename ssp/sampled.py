"""The mean and the spread of a task's predictions on disk, grown by a few members at a time.

A pass over the image predicts a few members (`ssp.ensemble`) and folds them, tile row by tile row,
into a new file; once that is whole it takes the place of the file before it. So a prediction that
was killed continues, and ends with the same bits.

Shape legend: M members, S the axes of what is predicted, ZYX or YX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.inference import Journal
from core.uncertainty import Moments
from ssp.ensemble import Ensemble
from ssp.mapping import Field, map_image
from ssp.resample import ReadPlanes

MEMBERS_PER_PASS = 4  # each takes one channel of the rows in memory; the input is read once a pass


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is to be predicted of one image for one task.

    Attributes:
        ensemble: What predicts it.
        task: Name of the task.
        signal: Z-scored image (Z, Y, X).
        field: How it is tiled.
        device: Where to compute.
        batch_size: Tiles predicted at once.
        folder: Where files under way are kept, hidden.
        identity: All that the numbers depend on, as a short text.
    """

    ensemble: Ensemble
    task: str
    signal: np.ndarray
    field: Field
    device: torch.device
    batch_size: int
    folder: Path
    identity: str

    @property
    def num_tiles(self) -> int:
        """Tiles of all members."""
        return int(np.prod(self.field.plan.grid)) * self.ensemble.num_members

    def run(self, advance: Callable[[int], object]) -> np.ndarray:
        """Predict what is missing; return the moments, mapped from a file.

        Returns:
            float32 (1, *S), the prediction, or (2, *S) of several members: their mean and the sum
            of their squared distances from it.
        """
        stops = [*range(MEMBERS_PER_PASS, self.ensemble.num_members, MEMBERS_PER_PASS)]
        stops.append(self.ensemble.num_members)
        start = max((stop for stop in stops if self._path(stop).exists()), default=0)
        advance(start * self.num_tiles // self.ensemble.num_members)
        for stop in (stop for stop in stops if stop > start):
            self._pass(start, stop, advance)
            start = stop
        return np.load(self._path(start), mmap_mode="r")

    def clear(self) -> None:
        """Delete the files under way."""
        for path in self.folder.glob(f".{self.task}.{self.identity}.*"):
            path.unlink()

    def _pass(self, start: int, stop: int, advance: Callable[[int], object]) -> None:
        """Add the members start..stop to those held."""
        path, journal = self._path(stop), Journal(self._path(stop, "journal"), self.identity)
        held = np.load(self._path(start), mmap_mode="r") if start else None
        grown = self._open(path.with_suffix(".partial"), journal)

        def write(first: int, last: int, values: np.ndarray) -> None:
            moments = Moments.empty(values.shape[1:])
            if held is not None:
                mean, squares = held[:, first:last].astype(np.float64)
                moments = Moments(start, mean, squares)
            for value in values:
                moments.add(value)
            grown[0, first:last] = moments.mean
            if len(grown) > 1:
                grown[1, first:last] = moments.squares
            grown.flush()

        map_image(
            self.ensemble.members(self.task, start, stop),
            self.signal,
            self.field,
            write,
            self.device,
            self.batch_size,
            journal,
            lambda tiles: advance(tiles * (stop - start)),
        )
        path.with_suffix(".partial").replace(path)
        journal.remove()
        self._path(start).unlink(missing_ok=True)

    def _open(self, partial: Path, journal: Journal) -> np.ndarray:
        """Return the file that a pass fills, mapped: the one its journal tells of, or a new one."""
        if journal.load() is not None and partial.exists():
            return np.load(partial, mmap_mode="r+")
        journal.remove()
        shape = (min(self.ensemble.num_members, 2), *self.field.plan.shape)
        return np.lib.format.open_memmap(partial, "w+", np.float32, shape)

    def _path(self, stop: int, suffix: str = "npy") -> Path:
        """Return the file of the moments of the members before `stop`."""
        return self.folder / f".{self.task}.{self.identity}.{stop}.{suffix}"


def mean_and_spread(moments: np.ndarray, number: int) -> dict[str, ReadPlanes]:
    """Return what moments of a number of members tell, each map by its name.

    "" is the mean and "uncertainty" the standard deviation over the members; each is a function
    that returns start..stop of the first axis, float32.
    """
    maps: dict[str, ReadPlanes] = {"": lambda start, stop: moments[0, start:stop]}
    if number > 1:
        maps["uncertainty"] = lambda start, stop: np.sqrt(moments[1, start:stop] / number)
    return maps
