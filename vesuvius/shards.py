"""Shards: one prediction split between jobs that know nothing of each other.

A shard owns a run of consecutive tile rows, chosen so that all shards have about as many tiles with
papyrus, and the pixels that these tile rows complete. Tile rows before them that reach into these
pixels are predicted by both neighbours; so every pixel is the same sum in the same order as in a
single run. A shard ends where a chunk of the store does, a multiple of the stride, so no two shards
write one chunk.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np

from core.terminal import note
from core.tiling import TilePlan

_FORM = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """One of several jobs.

    Attributes:
        index: Its number, 1..count.
        count: How many there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as 3/8.

        Raises:
            ValueError: If it is none.
        """
        found = _FORM.fullmatch(text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(f"shard {text!r} is none; give 1/8 to 8/8 for eight jobs")
        return cls(index, count)

    @classmethod
    def of_process(cls) -> Shard | None:
        """Return the shard of a process that torchrun or `accelerate launch` started with others.

        It computes on a GPU of its own, if there are any. Says so, as what a launcher set may be
        left over.
        """
        told = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
        if not all(told) or told[-1] == "1":
            return None
        import torch

        rank, local_rank, count = map(int, told)
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        shard = cls(rank + 1, count)
        cause = f"the environment says RANK {rank} of WORLD_SIZE {count}"
        note(f"{cause}: this is shard {shard}", is_of_each=True)
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def all(self) -> list[Shard]:
        """Return all shards of the prediction."""
        return [Shard(index, self.count) for index in range(1, self.count + 1)]

    def tile_rows(self, plan: TilePlan, wanted: np.ndarray) -> range:
        """Return the tile rows that this shard completes, maybe none.

        Args:
            plan: Of the whole prediction.
            wanted: Which tiles are predicted, bool of shape `plan.grid`.
        """
        before = np.concatenate([[0], np.cumsum(wanted.reshape(len(wanted), -1).sum(1))])
        return range(
            self._first(plan, before, self.index - 1), self._first(plan, before, self.index)
        )

    def _first(self, plan: TilePlan, before: np.ndarray, index: int) -> int:
        """Return the tile row at which the shards after the first `index` begin.

        Args:
            plan: Of the whole prediction.
            before: Wanted tiles before each tile row and in all, int (rows + 1,).
            index: 0..count.
        """
        num_rows = plan.grid[0]
        if index == self.count:
            return num_rows
        row = int(np.searchsorted(before * self.count, index * before[-1]))
        # the last tile row was shifted back to the border, maybe into the chunk of the one before
        is_inside_chunk = row == num_rows - 1 and plan.spans[0][row].start % plan.stride[0] > 0
        return row - 1 if is_inside_chunk else row
