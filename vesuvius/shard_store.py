"""What the shards of a prediction have done so far: one Zarr store, and a journal for each pass.

The store is a Zarr group of arrays (C, Y, X) with a chunk for each stride of rows. Shards write
other chunks, so they need no lock; whoever comes first puts the empty group in place with one
renaming. Several predictions are folded into moments pass by pass (`vesuvius.moments`): a pass
reads what the one before it left in one array and writes the other, so a killed pass has spoilt
nothing. A shard is done when the journal of its last pass says so.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.inference import Journal, Write
from core.tiling import TilePlan
from vesuvius.maps import MapFile, ZarrMaps
from vesuvius.moments import Pass
from vesuvius.shards import Shard


@dataclass(frozen=True)
class ShardPass:
    """One pass of a shard over its part of the fragment.

    Attributes:
        start: First member.
        stop: One past the last member.
        rows: Tile rows it completes.
        journal: Which of them are done.
        write: Takes the rows of each member's map.
    """

    start: int
    stop: int
    rows: range
    journal: Journal
    write: Write


class ShardStore:
    """The shards of one prediction.

    Args:
        folder: Where they are; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._group = folder / "maps.zarr"

    def exists(self) -> bool:
        """Tell whether a shard was ever begun."""
        return self._group.exists()

    @property
    def facts(self) -> dict[str, Any]:
        """All that the prediction depends on, as `begin` was told."""
        import zarr

        return zarr.open_group(self._group, mode="r").attrs.asdict()

    def begin(self, facts: dict[str, Any], shape: tuple[int, int], band_rows: int) -> None:
        """Make the store, or find that of another shard of the same prediction.

        Args:
            facts: All that the prediction depends on, JSON-able, among it `num_shards`,
                `num_members` wanted, `num_held` of them that there are already and `num_per_pass`.
            shape: (Y, X).
            band_rows: Rows of a chunk; shards begin and end at one.

        Raises:
            ValueError: If it is the store of another prediction.
        """
        if not self.exists():
            self._create(facts, shape, band_rows)
        self.check(facts)

    def check(self, told: dict[str, Any]) -> None:
        """Refuse a prediction that the store is not of, as far as its facts are told.

        Raises:
            ValueError: If some differ; it names them.
        """
        stored = self.facts
        changed = [name for name, value in told.items() if stored.get(name) != value]
        if changed:
            raise ValueError(
                f"{self.folder} holds shards of a prediction with other {', '.join(changed)}; "
                "repeat that prediction's, or delete the folder to start again"
            )

    def passes(
        self, shard: Shard, plan: TilePlan, wanted: np.ndarray, held: MapFile | None
    ) -> Iterator[ShardPass]:
        """Yield what a shard has still to do; each pass must be done before the next.

        Args:
            shard: Which one.
            plan: Of the whole prediction.
            wanted: Which tiles are predicted, bool of shape `plan.grid`.
            held: Moments of the members that there are already.
        """
        rows, is_alone = shard.tile_rows(plan, wanted), self.facts["num_members"] == 1
        for number, (start, stop) in enumerate(self._spans()):
            journal = self._journal(shard, start, stop)
            if _is_done(journal, rows):
                continue
            maps, before = self._maps(number), self._maps(number - 1) if number else held
            write = maps.write if is_alone else Pass(start, stop, journal, before, maps).write
            yield ShardPass(start, stop, rows, journal, write)

    def unfinished(self, plan: TilePlan, wanted: np.ndarray) -> list[Shard]:
        """Return the shards that have still something to do."""
        spans = self._spans()
        if not spans:
            return []
        last = spans[-1]
        return [
            shard
            for shard in Shard(1, self.facts["num_shards"]).all()
            if not _is_done(self._journal(shard, *last), shard.tile_rows(plan, wanted))
        ]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop of the one map or the three moments, (1 or 3, rows, X)."""
        return self._maps(len(self._spans()) - 1).read(start, stop)

    def _create(self, facts: dict[str, Any], shape: tuple[int, int], band_rows: int) -> None:
        """Put the empty store in place, unless another shard is faster."""
        import zarr

        self.folder.mkdir(parents=True, exist_ok=True)
        is_alone = facts["num_members"] == 1
        shape_CYX, dtype = (1 if is_alone else 3, *shape), np.float32 if is_alone else np.float64
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as made:
            group = Path(made) / self._group.name
            zarr.create_group(group, attributes=facts)
            for name in ("0", "1"):
                ZarrMaps.create(group / name, shape_CYX, dtype, band_rows)
            try:
                group.rename(self._group)
            except OSError:
                if not self.exists():
                    raise

    def _spans(self) -> list[tuple[int, int]]:
        """Return the members (start, stop) of each pass."""
        facts = self.facts
        starts = range(facts["num_held"], facts["num_members"], facts["num_per_pass"])
        return [(start, min(start + starts.step, starts.stop)) for start in starts]

    def _maps(self, number: int) -> ZarrMaps:
        """Return the array that a pass writes: they take turns."""
        return ZarrMaps(self._group / str(number % 2))

    def _journal(self, shard: Shard, start: int, stop: int) -> Journal:
        """Return the journal of a pass of a shard."""
        name = f"{shard.index}-of-{shard.count}.{start}-{stop}.journal"
        described = json.dumps([self.facts, name], sort_keys=True)
        return Journal(self.folder / name, hashlib.sha256(described.encode()).hexdigest())


def _is_done(journal: Journal, rows: range) -> bool:
    """Tell whether a pass over some tile rows, maybe none, is complete."""
    committed = journal.load() if rows else None
    return not rows or (committed is not None and committed[0] == rows.stop)
