"""Tile rows are read one ahead; a range of tile rows ends with the bits of all of them."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from core.inference import Journal, stream
from core.tiling import TilePlan

PLAN = TilePlan((37, 30), (8, 12), (3, 7))  # up to three tile rows cover a row of the field
SOURCE = np.random.default_rng(0).random(PLAN.shape, np.float32)
MASK = np.ones(PLAN.shape, bool)
MASK[:9, 9:] = MASK[16:28] = False
WAIT_S = 60


def ramped(batch: np.ndarray, corners: object) -> np.ndarray:
    ramp = np.arange(batch[0].size, dtype=np.float32).reshape(batch.shape[1:]) / batch[0].size
    return (batch + ramp)[:, None]


def run(plan: TilePlan, rows: range | None = None, **options) -> np.ndarray:
    output = np.full(plan.shape, np.nan, np.float32)

    def write(start: int, stop: int, values: np.ndarray) -> None:
        assert np.isnan(output[start:stop]).all()
        output[start:stop] = values[0]

    options = {"read": lambda start, stop: SOURCE[start:stop], "predict": ramped} | options
    stream(plan, write=write, batch_size=2, rows=rows, **options)
    return output


@pytest.mark.parametrize("kind", ["gaussian", "crop"])
@pytest.mark.parametrize("tile", [8, 40])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_ranges_of_tile_rows_give_the_bits_of_all_of_them(kind, tile, mask):
    plan = TilePlan(PLAN.shape, (tile, 12), (3, 7), kind)
    whole, num_rows = run(plan, mask=mask), plan.grid[0]
    for first in range(num_rows):
        for stop in range(first + 1, num_rows + 1):
            part = run(plan, range(first, stop), mask=mask)
            rows = slice(plan.finished(first)[0], plan.finished(stop - 1)[1])
            np.testing.assert_array_equal(part[rows].view(np.uint32), whole[rows].view(np.uint32))
            part[rows] = np.nan
            assert np.isnan(part).all()


def test_a_range_predicts_only_what_reaches_into_it():
    assert PLAN.with_reach(range(0, 2)) == range(0, 2)
    assert PLAN.with_reach(range(5, 6)) == range(3, 6)  # 15 is in the tiles at 9 and 12 too
    cropped = TilePlan(PLAN.shape, PLAN.tile, PLAN.stride, "crop")
    assert cropped.with_reach(range(5, 6)) == range(4, 6)  # 15 is nearest to the middle of 12-19
    assert cropped.with_reach(range(0, 1)) == range(1)
    done: list[int] = []
    read_rows: Counter[int] = Counter()

    def read(start: int, stop: int) -> np.ndarray:
        read_rows.update(range(start, stop))
        return SOURCE[start:stop]

    run(PLAN, range(5, 6), read=read, advance=done.append)
    assert sum(done) == 3 * PLAN.grid[1]
    assert read_rows == Counter(range(9, 23))


@pytest.mark.parametrize("killed", range(2, 8))
def test_a_killed_range_continues_and_its_journal_ends_small(tmp_path, killed):
    """Tile rows 2 and 3 are predicted for their reach alone."""
    journal, lives, predicted = Journal(tmp_path / "journal", "job"), [1], []
    output = np.full(PLAN.shape, np.nan, np.float32)

    def predict(batch, corners):
        if corners[0][0] == 3 * killed and lives:
            lives.clear()
            raise KeyboardInterrupt
        predicted.append(corners[0][0])
        return ramped(batch, corners)

    def go_on() -> None:
        stream(
            PLAN, lambda start, stop: SOURCE[start:stop], predict,
            lambda start, stop, values: output.__setitem__(slice(start, stop), values[0]),
            batch_size=PLAN.grid[1], rows=range(4, 8), journal=journal,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go_on()
    go_on()
    go_on()
    np.testing.assert_array_equal(output[12:24], run(PLAN)[12:24])
    assert np.isnan(output[:12]).all()
    assert np.isnan(output[24:]).all()
    assert predicted == [6, 9, 12, 15, 18, 21]
    next_row, carry = journal.load()
    assert (next_row, carry.size) == (8, 0)


def test_the_next_tile_row_is_read_while_one_is_predicted():
    reading = threading.Event()

    def read(start: int, stop: int) -> np.ndarray:
        if start > 0:
            reading.set()
        return SOURCE[start:stop]

    def predict(batch, corners):
        assert reading.wait(WAIT_S), "the second tile row is not read before the first is done"
        return ramped(batch, corners)

    run(PLAN, read=read, predict=predict)


def test_reading_is_never_more_than_one_tile_row_ahead():
    asked: list[int] = []
    predicted: list[int] = []
    far = threading.Event()

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(stop)
        if len(asked) > len(set(predicted)) + 2:
            far.set()
        return SOURCE[start:stop]

    def predict(batch, corners):
        far.wait(0.01)  # gives a reader that runs ahead the time to do so
        predicted.append(corners[0][0])
        return ramped(batch, corners)

    run(PLAN, read=read, predict=predict)
    assert len(asked) == PLAN.grid[0]
    assert not far.is_set()


def test_what_was_read_before_a_read_error_is_predicted_and_committed(tmp_path):
    journal, num_threads = Journal(tmp_path / "journal", "job"), threading.active_count()

    def read(start: int, stop: int) -> np.ndarray:
        if stop > 20:
            raise OSError("bad sector")
        return SOURCE[start:stop]

    with pytest.raises(OSError, match="bad sector"):
        run(PLAN, read=read, journal=journal)
    assert journal.load()[0] == 5  # tiles at 0, 3, 6, 9 and 12 end at 20
    assert threading.active_count() == num_threads
