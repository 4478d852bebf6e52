"""Streams a tiled prediction from a reader to a writer in bounded memory, resumable row by row.

One tile row is predicted at a time, from its slab of source rows into an accumulator whose upper
part is finished and written while the lower part is carried into the next tile row. A thread reads
the slab of the next tile row meanwhile. Memory is that of a few tile rows of the field, however
long the field is. Batches never mix tile rows, so a run that was killed and continued, or split
between several, sees the same batches and ends with the same bits.

Shapes: N tiles of a batch, C channels of the prediction, `...` leading axes of the source that are
not tiled (the Z window of an ink model), then the tiled axes of the plan, the streaming axis first.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.files import atomic_path
from core.tiling import Span, TilePlan

Corner = tuple[int, ...]
Tile = tuple[Span, ...]
Read = Callable[[int, int], np.ndarray]
Predict = Callable[[np.ndarray, Sequence[Corner]], np.ndarray]
Write = Callable[[int, int, np.ndarray], object]


@dataclass(frozen=True)
class Journal:
    """Where a streamed prediction stands, committed to one small file after each tile row.

    The file outlives the stream, so that a run killed between the last row and the renaming of its
    output has nothing to repeat; the owner of the output calls `remove` when that is done.

    Attributes:
        path: The journal file; next to the output it belongs to.
        fingerprint: Everything the numbers depend on: model, input, mask, plan, batch size.
    """

    path: Path
    fingerprint: str

    def commit(self, next_row: int, carry: np.ndarray) -> None:
        """Record that all tile rows before `next_row` are written.

        Args:
            next_row: Index of the tile row to go on with.
            carry: Sums that the next tile row adds to, float32 (C, rows, other tiled axes).
        """
        record = io.BytesIO()
        np.savez(record, fingerprint=self.fingerprint, next_row=next_row, carry=carry)
        content = record.getvalue()
        with atomic_path(self.path) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)

    def load(self) -> tuple[int, np.ndarray] | None:
        """Return what was committed last, as (next_row, carry), or None before the first commit.

        Raises:
            ValueError: The file is damaged, or belongs to another prediction.
        """
        if not self.path.exists():
            return None
        stored = self.path.read_bytes()
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"journal {self.path} is damaged; delete it to start again")
        with np.load(io.BytesIO(content)) as record:
            if str(record["fingerprint"]) != self.fingerprint:
                raise ValueError(
                    f"journal {self.path} belongs to a prediction with another model, input or "
                    "setting; delete it to start again, or repeat that prediction's settings"
                )
            return int(record["next_row"]), record["carry"]

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        self.path.unlink(missing_ok=True)


def stream(
    plan: TilePlan,
    read: Read,
    predict: Predict,
    write: Write,
    *,
    batch_size: int,
    num_channels: int = 1,
    mask: np.ndarray | None = None,
    journal: Journal | None = None,
    advance: Callable[[int], object] | None = None,
    rows: range | None = None,
) -> None:
    """Predict a field tile row by tile row, or a range of its tile rows.

    Args:
        plan: Field, tiles and their weights.
        read: `read(start, stop)` returns these rows of the source, any dtype (..., rows, other
            tiled axes), in an array it does not reuse; called in a thread, one tile row ahead. No
            row is asked for twice, nor for skipped tiles alone. What overhangs repeats the edge.
        predict: Maps a batch (N, ..., *tile) and the corner of each tile, its first position in the
            field, to float32 (N, C, *tile). The corner says which tile it is, whatever the batch
            size; a prediction that draws random numbers derives them from it.
        write: `write(start, stop, values)` takes float32 (C, rows, other tiled axes), in order and
            each row once; after a resume those not yet committed can come again, with equal values.
        batch_size: Most tiles per call of `predict`.
        num_channels: C.
        mask: Bool of the plan's shape. Tiles without a true position are skipped, positions
            outside it are written as 0, those inside come out as without a mask.
        journal: Where to record finished tile rows, and from where to continue.
        advance: Told the number of tiles done since its last call, at first those of earlier runs.
        rows: Tile rows whose finished part of the field is written, by default all. Others that
            reach into it are predicted too (`plan.with_reach`), so it has the bits of a whole run.

    Raises:
        ValueError: A batch size below 1, a mask, journal or prediction that does not fit.
        RuntimeError: A prediction is not finite, be it in its halo. Its tile row is not written.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give the tiles per prediction")
    advance = advance or (lambda _: None)
    wanted, rows = plan.wanted(mask), range(plan.grid[0]) if rows is None else rows
    needed = plan.with_reach(rows)
    nothing = np.empty((num_channels, 0, *plan.shape[1:]), np.float32)
    first_row, carry = (journal.load() if journal else None) or (needed.start, nothing)
    advance(int(wanted[needed.start : first_row].sum()))
    with closing(_ahead(_slabs(plan, read, wanted, range(first_row, needed.stop)))) as slabs:
        for row in range(first_row, needed.stop):
            start, stop = plan.finished(row)
            is_needed = bool(wanted[row].any())
            sums = _extend(carry, min(plan.tile[0], plan.shape[0]) if is_needed else stop - start)
            slab = next(slabs) if is_needed else nothing
            for batch in _batches(plan.row_tiles(row, wanted), batch_size):
                _add(sums, batch, _predict(plan, slab, batch, predict, num_channels))
                advance(len(batch))
            values, carry = sums[:, : stop - start], sums[:, stop - start :]
            if row >= rows.start:
                write(start, stop, _inside(mask, start, stop, values))
            if journal:
                journal.commit(row + 1, carry if row + 1 < needed.stop else nothing)


def _inside(mask: np.ndarray | None, start: int, stop: int, values: np.ndarray) -> np.ndarray:
    """Return values (C, rows, ...) of the rows start..stop with 0 outside the mask."""
    return values if mask is None else np.where(mask[start:stop], values, 0)


def _batches(tiles: list[Tile], batch_size: int) -> Iterator[list[Tile]]:
    """Yield tiles in their order, so many at a time."""
    for first in range(0, len(tiles), batch_size):
        yield tiles[first : first + batch_size]


def _slabs(plan: TilePlan, read: Read, wanted: np.ndarray, rows: range) -> Iterator[np.ndarray]:
    """Yield the source rows (..., tile rows, other tiled axes) under each tile row with tiles."""
    axis = -len(plan.shape)
    slab, read_until = np.empty(0), 0
    for row in (row for row in rows if wanted[row].any()):
        start = plan.spans[0][row].start
        stop = min(start + plan.tile[0], plan.shape[0])
        # rows 0-7 held, now 4-11: keep the last 8 - 4 = 4 and read 8-11
        fresh = _pad(plan, read(max(start, read_until), stop))
        kept = read_until - start
        if kept > 0:
            held = np.moveaxis(np.moveaxis(slab, axis, 0)[-kept:], 0, axis)
            fresh = np.concatenate([held, fresh], axis)
        slab, read_until = fresh, stop
        yield slab


def _pad(plan: TilePlan, rows: np.ndarray) -> np.ndarray:
    """Repeat the edge where a tile overhangs; along the streaming axis it is then alone."""
    if not any(plan.overhang):
        return rows
    leading = rows.ndim - len(plan.shape)
    after = [0] * leading + list(plan.overhang)
    return np.pad(rows, [(0, width) for width in after], mode="edge")


def _ahead(items: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
    """Yield items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _extend(carry: np.ndarray, num_rows: int) -> np.ndarray:
    """Return a new accumulator of at least `num_rows` rows that begins with the carry.

    The rest is -0.0, to which any x adds as x with its bits unchanged; 0.0 would turn -0.0 to 0.0.
    """
    shape = (carry.shape[0], max(num_rows, carry.shape[1]), *carry.shape[2:])
    sums = np.full(shape, -0.0, np.float32)
    sums[:, : carry.shape[1]] = carry
    return sums


def _predict(
    plan: TilePlan,
    slab: np.ndarray,
    tiles: list[Tile],
    predict: Predict,
    num_channels: int,
) -> np.ndarray:
    """Cut the tiles from the slab and return their checked prediction, float32 (N, C, *tile)."""
    inputs = []
    corners = [tuple(span.start for span in tile) for tile in tiles]
    for _, *others in corners:
        starts = zip(others, plan.tile[1:], strict=True)
        columns = (slice(start, start + size) for start, size in starts)
        box: tuple[Any, ...] = (..., slice(None), *columns)
        inputs.append(slab[box])
    predicted = predict(np.stack(inputs), corners)
    expected = (len(tiles), num_channels, *plan.tile)
    if predicted.shape != expected:
        raise ValueError(
            f"prediction has shape {predicted.shape}, expected {expected} as (tiles, channels, "
            "*tile); use a model with these outputs"
        )
    for corner, values in zip(corners, predicted, strict=True):  # weights of 0 would not stop a NaN
        if not np.isfinite(values).all():
            raise RuntimeError(
                f"prediction holds NaN or infinity in the tile of size {plan.tile} at "
                f"{corner}; check the checkpoint and the input there, or predict in float32"
            )
    return predicted


def _add(sums: np.ndarray, tiles: list[Tile], predicted: np.ndarray) -> None:
    """Add the weighted tiles to the accumulator, only where they have weight."""
    for tile, values in zip(tiles, predicted, strict=True):
        # the accumulator begins where the tile row does, so there inside counts, not field
        place = (slice(None), tile[0].inside, *(span.field for span in tile[1:]))
        crop = (slice(None), *(span.inside for span in tile))
        sums[place] += values[crop] * reduce(np.multiply.outer, [span.weights for span in tile])


def torch_predictor(
    model: Callable[[torch.Tensor, Sequence[Corner]], torch.Tensor],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Predict:
    """Return a `predict` for `stream` that runs a torch model.

    Args:
        model: Called with float32 (N, ..., *tile) on the device, the values as they were read, and
            the corners of the tiles; returns (N, C, *tile). It is used as it stands: on this
            device, in eval mode or with dropout. Normalisation and activation are part of it;
            under reduced precision take the sigmoid of `logits.float()`.
        device: Where to compute.
        dtype: Precision of autocast; float32 switches it off.
    """
    device = torch.device(device)

    def predict(batch: np.ndarray, corners: Sequence[Corner]) -> np.ndarray:
        x = torch.from_numpy(batch)
        if device.type == "cuda":
            x = x.pin_memory()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        # Full float32 and the same bits again on a GPU, where TF32 is the default for convolutions.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        try:
            with torch.inference_mode(), autocast, exact:
                x = x.to(device, non_blocking=True).float()
                return model(x, corners).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            # a smaller batch on our own account would change the bits of a resumed run
            raise RuntimeError(
                f"{len(batch)} tiles of shape {batch.shape[1:]} exceed the memory of {device}; "
                "use a smaller --batch-size or tile"
            ) from error

    return predict


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first GPU, or the CPU where there is none.

    Raises:
        ValueError: If a GPU is asked for that this machine or this PyTorch does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device {name!r} is not available: PyTorch {torch.__version__} sees no GPU; "
            "use --device cpu, or install a CUDA build of PyTorch"
        )
    return torch.device(name)
