"""The moments of many predictions on disk, grown by a few members at a time.

`moments.tif` holds for each pixel what `core.uncertainty.ProbabilityMoments` does, in float64, the
number of members it is of and what computed them. A pass over the fragment adds a few members to
it: it reads the old file and writes a new one beside it, row by row, which takes its name once it
is whole. Every pixel meets the members one after the other whatever the passes are, so 300 samples
added to 60 end with the bits of 360 at once. That holds for one device and batch size; each pass
may have its own, and the moments are then equal to rounding. A pass that was stopped goes on with
those it began with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.inference import Journal, Read
from core.uncertainty import Moments, ProbabilityMoments
from vesuvius.maps import MapFile, ZarrMaps, bands


class MomentMaps:
    """The moments that a prediction folder has so far, and those of the pass under way.

    Args:
        folder: The prediction folder.
        identity: All that the members depend on, but for their number and for rounding.
        computing: Device and batch size, on which the rounding depends.
        shape: (Y, X).
    """

    def __init__(
        self, folder: Path, identity: str, computing: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        self.path = folder / "moments.tif"
        self._partial = folder / ".moments.partial.tif"
        self._whole = folder / ".moments.whole.tif"
        self._journal_path = folder / ".journal"
        self._identity = identity
        self._computing = computing
        self._shape = shape

    def count(self) -> int:
        """Return of how many members the moments are, once a commit that was killed is finished.

        Raises:
            ValueError: If they are of other members.
        """
        self._settle()
        if not self.path.exists():
            return 0
        metadata = MapFile(self.path).metadata
        if metadata.get("identity") != self._identity:
            raise ValueError(
                f"{self.path} belongs to a prediction with another model, input or setting; "
                "delete its folder or choose another --out"
            )
        return int(metadata["num_members"])

    def computed(self) -> list[dict[str, Any]]:
        """Return what computed the members: each entry holds from its "first" to the next one's."""
        return list(MapFile(self.path).metadata["computed"]) if self.count() else []

    def missing(self, total: int) -> int:
        """Return how many members there are still to add to make `total`.

        Raises:
            ValueError: If there are more already.
        """
        count = self.count()
        if count > total:
            raise ValueError(
                f"{self.path} holds {count} predictions and none can be taken out to leave "
                f"{total}; ask for more --mc-samples or choose another --out"
            )
        return total - count

    def begin(self, total: int, most: int) -> Pass:
        """Return the next pass towards `total` members: the one that was stopped, or a new one.

        Args:
            total: Members wanted in the end.
            most: Members of a new pass.

        Raises:
            ValueError: If another prediction is under way in the folder, or a pass to more members.
        """
        start = self.count()
        stop = min(start + most, total)
        if self._partial.exists() and self._journal_path.exists():
            metadata = MapFile(self._partial).metadata
            begun = int(metadata["num_members"])
            if begun > total and metadata["identity"] == self._identity:
                raise ValueError(
                    f"{self.path} is on its way to {begun} predictions, not {total}; ask for more "
                    f"--mc-samples, or delete {self._journal_path} to give up those under way"
                )
            stop = begun if start < begun <= total else stop
        computing = json.dumps(self._computing, sort_keys=True)
        journal = Journal(self._journal_path, f"{self._identity} {start}-{stop} {computing}")
        shape, described = (3, *self._shape), self._described(start, stop)
        grown = MapFile.create_or_resume(self._partial, journal, shape, np.float64, **described)
        return Pass(start, stop, journal, self.held(), grown)

    def held(self) -> MapFile | None:
        """Return the file of the moments, if there are any."""
        return MapFile(self.path) if self.count() else None

    def adopt(self, read: Read, total: int) -> None:
        """Take over moments of `total` members that were made elsewhere from those held.

        Args:
            read: Returns rows start..stop of their three maps, (3, rows, X).
            total: Number of members.
        """
        if self.count() == total:  # killed after it had done so
            return
        described = self._described(self.count(), total)
        whole = MapFile.create(self._partial, (3, *self._shape), np.float64, **described)
        for start, stop in bands(self._shape[0]):
            whole.write(start, stop, read(start, stop))
        self.commit()

    def commit(self) -> None:
        """Take over the pass under way, which is whole."""
        self._partial.replace(self._whole)
        self._settle()

    def read(self, start: int, stop: int) -> ProbabilityMoments:
        """Return the moments of the rows start..stop; there must be some."""
        return _unpacked(MapFile(self.path).read(start, stop), self.count())

    def _described(self, start: int, stop: int) -> dict[str, Any]:
        """Return what a file of `stop` members, those from `start` on new, says of itself."""
        computed = self._computed_from(start)
        return {
            "axes": "CYX",
            "identity": self._identity,
            "num_members": stop,
            "computed": computed,
        }

    def _computed_from(self, start: int) -> list[dict[str, Any]]:
        """Return what will have computed the members when the next pass, from `start`, is whole."""
        computed = self.computed()
        if not computed or computed[-1] | self._computing != computed[-1]:
            computed.append({"first": start, **self._computing})
        return computed

    def _settle(self) -> None:
        """Finish a commit; killed at any place, this can be repeated."""
        if self._whole.exists():
            self._journal_path.unlink(missing_ok=True)
            self._whole.replace(self.path)


@dataclass(frozen=True)
class Pass:
    """One pass over the fragment.

    Attributes:
        start: First member.
        stop: One past the last member.
        journal: Which rows are done.
        held: Moments of the members before `start`; None before the first.
        grown: Moments of those before `stop`, under way.
    """

    start: int
    stop: int
    journal: Journal
    held: MapFile | ZarrMaps | None
    grown: MapFile | ZarrMaps

    def write(self, start: int, stop: int, prob_MYX: np.ndarray) -> None:
        """Add the rows start..stop of each member's map (M, rows, X) to those held.

        Pixels that are 0 in all of them, as outside the papyrus, cost nothing and stay 0.
        """
        if self.held is None:
            packed = np.zeros((3, *prob_MYX.shape[1:]))
        else:
            packed = self.held.read(start, stop)
        inside = prob_MYX.any(0) | packed.any(0)
        moments = _unpacked(packed[:, inside], self.start)
        for prob in prob_MYX:
            moments.add(prob[inside])
        of_prob = moments.moments
        packed[:, inside] = of_prob.mean, of_prob.squares, moments.mean_entropy
        self.grown.write(start, stop, packed)


def _unpacked(packed: np.ndarray, count: int) -> ProbabilityMoments:
    """Return moments of their three stored maps (3, ...)."""
    mean, squares, mean_entropy = packed
    return ProbabilityMoments(Moments(count, mean, squares), mean_entropy)
