"""Tiles cover every position, weights sum to 1, and no tile that a mask needs is skipped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tiling import TilePlan, axis_starts, axis_weights


@st.composite
def axis_sizes(draw: st.DrawFn, longest: int = 40) -> tuple[int, int, int]:
    """Length, tile and stride of one axis, tiles longer than the axis included."""
    tile = draw(st.integers(1, 12))
    return draw(st.integers(1, longest)), tile, draw(st.integers(1, tile))


@given(axis_sizes())
def test_tiles_cover_the_axis_and_end_at_its_border(sizes):
    length, tile, stride = sizes
    starts = axis_starts(length, tile, stride)
    assert {p for s in starts for p in range(s, s + tile)} >= set(range(length))
    assert starts[0] == 0
    assert starts[-1] + tile == max(length, tile)
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


def test_starts_match_the_worked_example():
    assert axis_starts(14, 8, 4) == [0, 4, 6]
    assert axis_starts(16, 8, 4) == [0, 4, 8]
    assert axis_starts(5, 8, 4) == [0]


@given(axis_sizes(), st.sampled_from(["gaussian", "crop"]))
def test_weights_sum_to_one_at_every_position_and_to_nothing_beyond(sizes, kind):
    length, tile, stride = sizes
    weights = axis_weights(length, tile, stride, kind)
    total = np.zeros(max(length, tile))
    for start, row in zip(axis_starts(*sizes), weights, strict=True):
        total[start : start + tile] += row
    assert weights.dtype == np.float32
    np.testing.assert_allclose(total[:length], 1, atol=1e-6)
    assert not total[length:].any()


@given(axis_sizes())
def test_crop_weights_pick_the_nearest_centre_and_the_earlier_of_two(sizes):
    length, tile, _ = sizes
    starts = axis_starts(*sizes)
    weights = axis_weights(*sizes, "crop")
    for position in range(length):
        nearest = min(
            range(len(starts)), key=lambda i: (abs(starts[i] + (tile - 1) / 2 - position), i)
        )
        owners = {
            i: weights[i, position - s] for i, s in enumerate(starts) if 0 <= position - s < tile
        }
        assert owners[nearest] == 1
        assert sum(owners.values()) == 1


def test_gaussian_weights_fall_from_the_centre_with_sigma_an_eighth_of_the_tile():
    pair = axis_weights(24, 16, 8, "gaussian")
    # position 8 is 0.5 from the centre of tile 0 and 7.5 from that of tile 1, sigma 2
    near, far = np.exp(-0.5 * (0.5 / 2) ** 2), np.exp(-0.5 * (7.5 / 2) ** 2)
    assert pair[0, 8] == pytest.approx(near / (near + far), rel=1e-6)
    assert pair[1, 0] == pytest.approx(far / (near + far), rel=1e-6)
    assert (pair > 0).all()


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    axes = draw(st.lists(axis_sizes(longest=14), min_size=1, max_size=3))
    shape, tile, stride = zip(*axes, strict=True)
    return TilePlan(shape, tile, stride, draw(st.sampled_from(["gaussian", "crop"])))


@given(plans(), st.floats(0, 0.2), st.integers(0, 2**32 - 1))
def test_exactly_the_tiles_over_the_mask_are_wanted(plan, share, seed):
    mask = np.random.default_rng(seed).random(plan.shape) < share
    wanted = plan.wanted(mask)
    assert wanted.shape == plan.grid
    for index in np.ndindex(plan.grid):
        corner = [spans[i].start for spans, i in zip(plan.spans, index, strict=True)]
        box = tuple(slice(s, s + t) for s, t in zip(corner, plan.tile, strict=True))
        assert wanted[index] == mask[box].any()


@given(plans())
def test_without_a_mask_every_tile_is_wanted_and_listed_once(plan):
    tiles = [t for row in range(plan.grid[0]) for t in plan.row_tiles(row, plan.wanted(None))]
    corners = {tuple(span.start for span in tile) for tile in tiles}
    assert len(corners) == len(tiles) == np.prod(plan.grid)


@given(plans())
def test_finished_rows_cover_the_streaming_axis_once_and_no_later_tile_touches_them(plan):
    ranges = [plan.finished(row) for row in range(plan.grid[0])]
    assert [p for start, stop in ranges for p in range(start, stop)] == list(range(plan.shape[0]))
    for (_, stop), later in zip(ranges[:-1], plan.spans[0][1:], strict=True):
        assert later.start >= stop


@given(plans())
def test_a_span_names_the_same_positions_in_tile_and_field(plan):
    for spans, length in zip(plan.spans, plan.shape, strict=True):
        for span in spans:
            assert span.start + span.inside.start == span.field.start
            assert span.start + span.inside.stop == span.field.stop <= length
            assert span.weights.shape == (span.inside.stop - span.inside.start,)
            assert span.weights.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((9, 9), (4, 4), (4, 5)), "stride 5 is outside 1..4"),
        (((9, 9), (4, 4), (4, 0)), "stride 0 is outside 1..4"),
        (((9, 0), (4, 4), (4, 4)), "length 0 and tile 4 must both be at least 1"),
        (((9, 9), (4,), (4, 4)), "must name the same axes"),
        (((), (), ()), "must name the same axes"),
        (((9,), (4,), (4,), "mean"), "weights 'mean' are unknown"),
    ],
)
def test_bad_plans_are_refused_when_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        TilePlan(*arguments)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"mask shape \(9, 8\) differs from the field \(9, 9\)"):
        TilePlan((9, 9), (4, 4), (2, 2)).wanted(np.ones((9, 8), bool))
