"""What a prediction folder holds: whether it is finished, what is under way, what is published."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import read_json, write_json
from core.inference import Journal
from core.lock import names_in
from core.pictures import captioned, shrink, side_by_side, write_png
from vesuvius.maps import MapFile, bands
from vesuvius.moments import MomentMaps
from vesuvius.shard_store import ShardStore
from vesuvius.voxel_size import MapGrid

UNCERTAINTIES = ("standard deviation", "predictive entropy", "mutual information")
WHITE_QUANTILE = 0.995  # a few pixels of much disagreement must not make the others black
NUM_BINS = 10_000
SHARDS = ".shards"
UNFINISHED = {
    ".journal", ".prob.partial.tif", ".published.partial.tif", ".uncertainty.partial.tif",
    ".moments.partial.tif", ".moments.whole.tif", SHARDS,
}  # fmt: skip


class PredictionFolder:
    """A prediction folder, finished or not.

    Args:
        path: The folder, which need not exist.
        settings: All that the prediction depends on, but for the number of samples and rounding.
        computing: Device and batch size, on which the rounding depends.
        mc_samples: The number of samples wanted.
        grid: Where maps are predicted, and where they are published.

    Attributes:
        journal: Where a prediction of one member stands.
        moments: The moments of several members.
        shards: What shards have predicted.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        computing: dict[str, Any],
        mc_samples: int,
        grid: MapGrid,
    ) -> None:
        self.path = path
        self._settings = settings
        self._mc_samples = mc_samples
        self._computing = computing
        self._grid = grid
        self._shape = grid.mask.shape
        self.journal = Journal(path / ".journal", _digest(settings | computing))
        self.moments = MomentMaps(path, _digest(settings), computing, grid.predicted.shape)
        self.shards = ShardStore(path / SHARDS)

    def computed_by(self, computing: dict[str, Any]) -> PredictionFolder:
        """Return the folder of the same prediction, computed by another device or batch size."""
        return PredictionFolder(self.path, self._settings, computing, self._mc_samples, self._grid)

    def is_finished(self) -> bool:
        """Tell whether the folder holds this very prediction.

        Raises:
            ValueError: If it holds another one, or one that the samples wanted cannot be added to.
        """
        provenance = self.path / "provenance.json"
        if not (self.path / "prob.tif").exists() or not provenance.exists():
            names = names_in(self.path)
            if names and not names & {*UNFINISHED, "moments.tif"}:
                raise ValueError(
                    f"{self.path} holds other files and no prediction; choose another --out"
                )
            self.moments.count()  # refuses those of another prediction
            return False
        stored = read_json(provenance)
        self._check_settings(stored.get("settings", {}))
        return self._holds_samples(stored["mc_samples"])

    def begin(self) -> MapFile:
        """Return the unfinished map of one member, new or found again.

        Raises:
            ValueError: If another prediction is under way in the folder, or the map is gone.
        """
        predicted = self._grid.predicted.shape
        return MapFile.create_or_resume(self._partial("prob"), self.journal, predicted)

    def finish(self, prob: MapFile, provenance: dict[str, Any]) -> None:
        """Publish the map of one member; what makes the folder finished comes last."""
        prob = self._published(prob)
        write_png(self.path / "preview.png", shrink(tifffile.memmap(prob.path, mode="r")))
        computed = [{"first": 0, **self._computing}]
        write_json(self.path / "provenance.json", provenance | {"computed": computed})
        prob.path.replace(self.path / "prob.tif")

    def finish_moments(self, provenance: dict[str, Any]) -> None:
        """Publish mean and spread of several members; what makes the folder finished comes last.

        Everything follows from `moments.tif`, so this may be killed and repeated; the record of
        fewer members goes first, lest it stand beside some files of theirs and some of all.
        """
        prob = MapFile.create(self._partial("prob"), self._shape)
        path, names = self._partial("uncertainty"), {"name": UNCERTAINTIES}
        spread = MapFile.create(path, (3, *self._shape), axes="CYX", channel=names)
        for start, stop in bands(self._shape[0]):
            shown = self._grid.publish(self._read_moments, start, stop)
            prob.write(start, stop, shown[:1])
            spread.write(start, stop, shown[1:])
        (self.path / "provenance.json").unlink(missing_ok=True)
        facts = {"uncertainty_white": self._draw(prob, spread), "computed": self.moments.computed()}
        spread.path.replace(self.path / "uncertainty.tif")
        prob.path.replace(self.path / "prob.tif")
        write_json(self.path / "provenance.json", provenance | facts)

    def finish_shards(self, provenance: dict[str, Any]) -> None:
        """Put the maps of all shards together and publish them; this may be killed and repeated."""
        num_members, read = self.shards.facts["num_members"], self.shards.read
        if num_members > 1:
            self.moments.adopt(read, num_members)
            self.finish_moments(provenance)
            return
        height, width = self._grid.predicted.shape
        prob = MapFile.create(self._partial("prob"), (height, width))
        for start, stop in bands(height):
            prob.write(start, stop, read(start, stop))
        self.finish(prob, provenance)

    def clear(self) -> None:
        """Remove what a finished prediction does not need, which a killed one may have left."""
        for name in UNFINISHED & {path.name for path in self.path.iterdir()}:
            if name == SHARDS:
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink()

    def _published(self, prob: MapFile) -> MapFile:
        """Return the map to publish, which is the predicted one if the grids are the same."""
        if self._grid.axes is None:
            return prob
        published = MapFile.create(self._partial("published"), self._shape)
        for start, stop in bands(self._shape[0]):
            published.write(start, stop, self._grid.publish(prob.read, start, stop))
        return published

    def _read_moments(self, start: int, stop: int) -> np.ndarray:
        """Return predicted rows of the mean and of the uncertainties, (4, rows, X)."""
        held = self.moments.read(start, stop)
        shown = held.moments.std(), held.predictive_entropy(), held.mutual_information()
        return np.stack([held.moments.mean, *shown])

    def _draw(self, prob: MapFile, spread: MapFile) -> dict[str, float]:
        """Write the pictures and return which value is white in that of each uncertainty."""
        preview = shrink(tifffile.memmap(prob.path, mode="r"))
        pages = tifffile.memmap(spread.path, mode="r")
        whites = [quantile(page, self._grid.mask, WHITE_QUANTILE) for page in pages]
        panels = [captioned(preview, "mean probability: white 1")]
        for name, page, white in zip(UNCERTAINTIES, pages, whites, strict=True):
            unit = "" if name == "standard deviation" else " bit"
            text = f"{name}: white {white:.2g}{unit}"
            panels.append(captioned(shrink(page, white=white or 1), text))
        write_png(self.path / "preview.png", preview)
        write_png(self.path / "uncertainty.png", side_by_side(*panels))
        return dict(zip(UNCERTAINTIES, whites, strict=True))

    def _partial(self, name: str) -> Path:
        return self.path / f".{name}.partial.tif"

    def _check_settings(self, stored: dict[str, Any]) -> None:
        """Refuse a prediction with other settings."""
        if ("mc_dropout" in stored) != ("mc_dropout" in self._settings):
            found = "Monte Carlo samples" if "mc_dropout" in stored else "a plain prediction"
            raise ValueError(
                f"{self.path} holds {found}, and plain predictions and samples are not averaged; "
                "delete it or choose another --out"
            )
        names = [*self._settings, *stored]
        changed = [name for name in dict.fromkeys(names)
                   if stored.get(name) != self._settings.get(name)]  # fmt: skip
        if changed:
            raise ValueError(
                f"{self.path} holds a prediction with other {', '.join(changed)}; "
                "delete it or choose another --out"
            )

    def _holds_samples(self, stored: int) -> bool:
        """Tell whether the samples stored are those wanted, or refuse if they cannot become so."""
        if self._mc_samples < stored:
            raise ValueError(
                f"{self.path} holds {stored} samples and none can be taken out for mc_samples "
                f"{self._mc_samples}; ask for at least {stored} or choose another --out"
            )
        if self._mc_samples > stored and not self.moments.count():
            raise ValueError(
                f"{self.moments.path} is gone, so nothing can be added to the {stored} samples; "
                "choose another --out"
            )
        return self._mc_samples == stored


def quantile(map_YX: np.ndarray, mask: np.ndarray, share: float) -> float:
    """Return the value that a share of the pixels inside a mask does not exceed.

    It is rounded up, by at most the largest value / NUM_BINS; a map on disk never fills the memory.

    Args:
        map_YX: (Y, X), at least 0.
        mask: Bool (Y, X).
        share: 0..1.
    """
    largest = float(map_YX.max())
    counts = np.zeros(NUM_BINS, np.int64)
    for start, stop in bands(len(mask)):
        rows = slice(start, stop)
        counts += np.histogram(map_YX[rows][mask[rows]], NUM_BINS, (0, largest))[0]
    below = np.searchsorted(counts.cumsum(), share * counts.sum())
    return largest * (int(below) + 1) / NUM_BINS


def _digest(settings: dict[str, Any]) -> str:
    """Return a text that stands for settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
