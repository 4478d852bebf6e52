"""Streamed = whole, resumed = uninterrupted, long = short in memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inference import Journal, stream, torch_predictor
from core.tiling import TilePlan

INK = TilePlan((37, 30), (8, 12), (5, 7))
CELLS = TilePlan((9, 14, 11), (4, 8, 6), (3, 4, 2))
SMALL = TilePlan((5, 30), (8, 12), (4, 6))


class Job:
    """A source and an output in memory that count what passes between them."""

    def __init__(self, plan: TilePlan, source: np.ndarray, num_channels: int = 1) -> None:
        self.plan = plan
        self.source = source
        self.output = np.full((num_channels, *plan.shape), np.nan, np.float32)
        self.read_rows: Counter[int] = Counter()
        self.written: list[tuple[int, int]] = []
        self.num_channels = num_channels

    def read(self, start: int, stop: int) -> np.ndarray:
        self.read_rows.update(range(start, stop))
        leading = self.source.ndim - len(self.plan.shape)
        return self.source[(slice(None),) * leading + (slice(start, stop),)]

    def write(self, start: int, stop: int, values: np.ndarray) -> None:
        assert values.dtype == np.float32
        assert values.shape == (self.num_channels, stop - start, *self.plan.shape[1:])
        self.written.append((start, stop))
        self.output[:, start:stop] = values

    def run(self, predict, batch_size: int = 3, **options) -> np.ndarray:
        stream(
            self.plan,
            self.read,
            predict,
            self.write,
            batch_size=batch_size,
            num_channels=self.num_channels,
            **options,
        )
        return self.output


def identity(batch: np.ndarray, corners: object) -> np.ndarray:
    return batch[:, None].astype(np.float32)


def place_dependent(batch: np.ndarray, corners: object) -> np.ndarray:
    """Two channels that differ from tile to tile at one position, so that weights matter."""
    ramp = np.arange(batch[0].size, dtype=np.float32).reshape(batch.shape[1:]) / batch[0].size
    return np.stack([batch + ramp, batch * ramp - 1], 1).astype(np.float32)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def plain(plan: TilePlan, source: np.ndarray, predict, num_channels: int) -> np.ndarray:
    """The slow twin: full arrays, n-dimensional weights summed up and divided by at the end."""
    over = [(0, max(t - n, 0)) for n, t in zip(plan.shape, plan.tile, strict=True)]
    source = np.pad(source, over, mode="edge")
    starts = []
    for n, t, step in zip(source.shape, plan.tile, plan.stride, strict=True):
        starts.append(sorted({min(s, n - t) for s in range(0, n, step)}))
    corners = list(itertools.product(*starts))
    inner = np.stack(np.meshgrid(*(np.arange(t) for t in plan.tile), indexing="ij"), -1)
    centre = (np.array(plan.tile) - 1) / 2
    bell = np.exp(-0.5 * (((inner - centre) / (np.array(plan.tile) / 8)) ** 2).sum(-1))
    field = np.stack(np.meshgrid(*(np.arange(n) for n in source.shape), indexing="ij"), -1)
    nearest = np.array([[(abs(field - np.array(c) - centre)).sum(-1)] for c in corners]).argmin(0)
    sums = np.zeros((num_channels, *source.shape))
    total = np.zeros(source.shape)
    for number, corner in enumerate(corners):
        box = tuple(slice(c, c + t) for c, t in zip(corner, plan.tile, strict=True))
        weights = bell if plan.weights == "gaussian" else nearest[0][box] == number
        sums[(slice(None), *box)] += predict(source[box][None], [corner])[0] * weights
        total[box] += weights
    return (sums / total)[(slice(None), *(slice(n) for n in plan.shape))]


def with_weights(plan: TilePlan, kind: str) -> TilePlan:
    return TilePlan(plan.shape, plan.tile, plan.stride, kind)


@pytest.mark.parametrize("kind", ["gaussian", "crop"])
@pytest.mark.parametrize("plan", [INK, CELLS, SMALL], ids=["ink", "cells", "small"])
def test_streamed_equals_the_plain_twin(plan, kind):
    plan = with_weights(plan, kind)
    source = noise(plan.shape)
    streamed = Job(plan, source, 2).run(place_dependent)
    np.testing.assert_allclose(streamed, plain(plan, source, place_dependent, 2), atol=1e-6)


@st.composite
def plans(draw: st.DrawFn, kind: str) -> TilePlan:
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        tile = draw(st.integers(1, 7))
        axes.append((draw(st.integers(1, 15)), tile, draw(st.integers(1, tile))))
    return TilePlan(*zip(*axes, strict=True), kind)


@settings(max_examples=60)
@given(plans("crop"), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_cropped_identity_gives_the_input_back_bit_for_bit(plan, seed, batch_size):
    # any bits that are a finite number: signed zeros, subnormals, the largest values
    words = np.random.default_rng(seed).integers(0, 2**32, plan.shape, np.uint32)
    source = np.nan_to_num(words.view(np.float32), nan=-0.0, posinf=0.0, neginf=-0.0)
    output = Job(plan, source).run(identity, batch_size)
    np.testing.assert_array_equal(output[0].view(np.uint32), source.view(np.uint32))


@settings(max_examples=60)
@given(plans("gaussian"), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_blended_identity_gives_the_input_back_within_1e_6(plan, seed, batch_size):
    source = noise(plan.shape, seed)
    output = Job(plan, source).run(identity, batch_size)
    np.testing.assert_allclose(output[0], source, atol=1e-6, rtol=0)


def test_tiles_with_enough_halo_equal_one_big_tile_bit_for_bit():
    convolution = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    convolution.weight.copy_(torch.arange(-4, 5).view(1, 1, 3, 3))  # integers sum up exactly
    convolution.bias.zero_()
    predict = torch_predictor(lambda x, _: convolution(convolution(x[:, None])), "cpu")
    source = np.random.default_rng(0).integers(0, 256, (37, 30), np.uint8)
    whole = Job(TilePlan((37, 30), (37, 30), (37, 30), "crop"), source).run(predict)
    # two 3 x 3 layers see 2 positions around; tiles of 8 every 4 leave a halo of at least 2
    tiled = Job(TilePlan((37, 30), (8, 8), (4, 4), "crop"), source).run(predict)
    np.testing.assert_array_equal(tiled, whole)


def test_leading_axes_travel_with_every_tile():
    layers = noise((3, *INK.shape))
    plan = with_weights(INK, "crop")
    output = Job(plan, layers, 3).run(lambda batch, _: batch)
    np.testing.assert_array_equal(output, layers)


def test_a_field_smaller_than_a_tile_is_filled_with_its_edge():
    seen = []

    def predict(batch, corners):
        seen.append(batch)
        return identity(batch, corners)

    source = noise((2, 3))
    Job(TilePlan((2, 3), (4, 5), (2, 2)), source).run(predict)
    np.testing.assert_array_equal(seen[0][0], np.pad(source, ((0, 2), (0, 2)), mode="edge"))


@pytest.mark.parametrize("plan", [INK, CELLS, SMALL], ids=["ink", "cells", "small"])
def test_each_row_is_read_once_and_written_once_in_order(plan):
    job = Job(plan, noise(plan.shape))
    job.run(identity)
    rows = list(range(plan.shape[0]))
    assert job.read_rows == Counter(rows)
    assert [row for start, stop in job.written for row in range(start, stop)] == rows


def test_the_batch_size_changes_no_bit():
    outputs = [Job(INK, noise(INK.shape), 2).run(place_dependent, n) for n in (1, 2, 100)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_each_tile_is_predicted_with_its_corner_in_the_field():
    source = np.arange(np.prod(CELLS.shape), dtype=np.float32).reshape(CELLS.shape)
    seen = []

    def predict(batch, corners):
        assert len(batch) == len(corners)
        seen.extend(corners)
        assert [tile.flat[0] for tile in batch] == [source[corner] for corner in corners]
        return identity(batch, corners)

    Job(CELLS, source).run(predict)
    grid = itertools.product(*([span.start for span in spans] for spans in CELLS.spans))
    assert seen == list(grid)


def test_batches_hold_at_most_batch_size_tiles_of_one_row():
    sizes = []

    def predict(batch, corners):
        sizes.append(len(batch))
        return identity(batch, corners)

    plan = TilePlan((8, 20), (4, 4), (4, 4))
    Job(plan, noise(plan.shape)).run(predict, batch_size=3)
    assert sizes == [3, 2, 3, 2]


@pytest.mark.parametrize("kind", ["gaussian", "crop"])
@pytest.mark.parametrize("plan", [INK, CELLS], ids=["ink", "cells"])
def test_a_mask_changes_nothing_inside_and_leaves_zeros_outside(plan, kind):
    plan = with_weights(plan, kind)
    mask = np.zeros(plan.shape, bool)
    mask[2:4, -3:] = mask[-1, 0] = True
    source = noise(plan.shape)
    full = Job(plan, source, 2).run(place_dependent)
    job, done = Job(plan, source, 2), []
    masked = job.run(place_dependent, mask=mask, advance=done.append)
    np.testing.assert_array_equal(masked[:, mask], full[:, mask])
    assert not masked[:, ~mask].view(np.uint32).any()
    assert sum(done) == plan.wanted(mask).sum() < np.prod(plan.grid)


def test_rows_under_skipped_tiles_are_not_read():
    plan = TilePlan((60, 30), (8, 12), (4, 6))
    mask = np.zeros(plan.shape, bool)
    mask[1] = mask[50:] = True
    job = Job(plan, noise(plan.shape))
    job.run(identity, mask=mask)
    # row 1 is held by the tiles at 0; rows from 50 on by those at 44, 48 and 52
    assert job.read_rows == Counter([*range(8), *range(44, 60)])


def test_an_empty_mask_predicts_nothing_and_writes_zeros():
    job = Job(INK, noise(INK.shape), 2)
    output = job.run(lambda batch, _: pytest.fail("predicted"), mask=np.zeros(INK.shape, bool))
    assert not output.any()


def peak_memory(length: int) -> int:
    """Return the most bytes held while a field of this length is streamed."""
    plan = TilePlan((length, 2000), (32, 32), (16, 16))
    tracemalloc.start()
    stream(
        plan,
        lambda start, stop: np.zeros((4, stop - start, 2000), np.uint8),
        lambda batch, _: batch[:, :1].astype(np.float32),
        lambda start, stop, values: None,
        batch_size=4,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_length_of_the_field():
    peak_memory(200)  # what is imported or cached once is not counted
    short, long = peak_memory(200), peak_memory(2000)
    assert long < 1.1 * short
    assert long < 2000 * 2000 * 4 / 4  # a quarter of the output alone


class Killed(Exception):
    """Stands for whatever ends a run."""


class FailingJournal(Journal):
    """A journal whose commit of one row dies, before anything is renamed."""

    failing_row: int

    def commit(self, next_row: int, carry: np.ndarray) -> None:
        if next_row - 1 == self.failing_row:
            raise Killed
        super().commit(next_row, carry)


def masked_job() -> tuple[Job, np.ndarray]:
    mask = np.ones(INK.shape, bool)
    mask[:14, 9:] = False
    return Job(INK, noise(INK.shape), 2), mask


@pytest.mark.parametrize("place", ["write", "predict", "commit"])
@pytest.mark.parametrize("row", range(INK.grid[0]))
def test_a_run_killed_at_any_row_resumes_to_the_same_bits(tmp_path, place, row):
    job, mask = masked_job()
    expected = job.run(place_dependent, mask=mask)
    job, mask = masked_job()
    predicted: Counter[bytes] = Counter()
    wanted = INK.wanted(mask)
    before, through = int(wanted[:row].sum()), int(wanted[: row + 1].sum())

    def predict(batch, corners):
        # the last tile of the row: part of the row has gone into the accumulator by then
        if place == "predict" and not resumed and sum(predicted.values()) + len(batch) == through:
            raise Killed
        predicted.update(tile.tobytes() for tile in batch)
        return place_dependent(batch, corners)

    def write(start, stop, values):
        job.write(start, stop, values)
        if place == "write" and not resumed and start == INK.finished(row)[0]:
            job.output[:, start] = np.nan  # torn
            raise Killed

    def run(journal, done):
        parts = {"batch_size": 2, "num_channels": 2, "mask": mask, "journal": journal}
        stream(INK, job.read, predict, write, advance=done.append, **parts)

    path, resumed = tmp_path / "journal", False
    journal = FailingJournal(path, "job")
    journal.failing_row = row if place == "commit" else -1
    with pytest.raises(Killed):
        run(journal, [])
    assert path.exists() == (row > 0)
    predicted.clear()
    resumed, done = True, []
    run(Journal(path, "job"), done)
    np.testing.assert_array_equal(job.output.view(np.uint32), expected.view(np.uint32))
    assert done[0] == before
    assert sum(done) == wanted.sum()
    # exactly what was not committed, each tile once
    assert len(predicted) == sum(predicted.values()) == wanted.sum() - before
    run(Journal(path, "job"), done := [])
    assert done == [wanted.sum()]  # a finished job has nothing left to do


def test_a_removed_journal_starts_again(tmp_path):
    journal = Journal(tmp_path / "journal", "job")
    assert journal.load() is None
    journal.commit(3, np.ones((1, 2, 4), np.float32))
    next_row, carry = journal.load()
    assert next_row == 3
    np.testing.assert_array_equal(carry, np.ones((1, 2, 4), np.float32))
    journal.remove()
    journal.remove()
    assert journal.load() is None
    assert not list(tmp_path.iterdir())


def test_a_journal_of_another_prediction_is_refused(tmp_path):
    path = tmp_path / "prob.journal"
    Journal(path, "model a").commit(1, np.zeros((1, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"prob\.journal belongs to .* another .*; delete it"):
        Job(INK, noise(INK.shape)).run(identity, journal=Journal(path, "model b"))


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "foreign"])
def test_a_damaged_journal_is_refused(tmp_path, damage):
    path = tmp_path / "prob.journal"
    journal = Journal(path, "job")
    journal.commit(1, np.zeros((1, 2, 4), np.float32))
    stored = path.read_bytes()
    middle = len(stored) // 2
    changed = stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
    path.write_bytes(
        {"empty": b"", "cut": stored[:-1], "changed": changed, "foreign": b"\x89PNG" * 40}[damage]
    )
    with pytest.raises(ValueError, match=r"prob\.journal is damaged; delete it to start again"):
        journal.load()


@pytest.mark.parametrize("kind", ["gaussian", "crop"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("corner", [True, False], ids=["halo", "centre"])
def test_a_prediction_that_is_not_finite_stops_before_its_row_is_written(kind, value, corner):
    plan = TilePlan((20, 20), (8, 8), (4, 4), kind)
    job = Job(plan, np.arange(400, dtype=np.float32).reshape(plan.shape))

    def predict(batch, corners):
        values = identity(batch, corners)
        for tile, inputs in zip(values, batch, strict=True):
            if inputs[0, 0] == 4 * 20 + 8:
                tile[0, *((0, 0) if corner else (4, 4))] = value
        return values

    with pytest.raises(RuntimeError, match=r"NaN or infinity in the tile .* at \(4, 8\)"):
        job.run(predict)
    assert job.written == [(0, 4)]


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 1, 8, 12\), expected \(3, 2, 8, 12\)"):
        Job(INK, noise(INK.shape), 2).run(identity)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size 0 is below 1"):
        Job(INK, noise(INK.shape)).run(identity, batch_size=0)


def test_the_journal_lies_alone_where_it_was_asked_for(tmp_path):
    path: Path = tmp_path / "prediction" / "prob.journal"
    Job(INK, noise(INK.shape)).run(identity, journal=Journal(path, "job"))
    assert list(path.parent.iterdir()) == [path]
