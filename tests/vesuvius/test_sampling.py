from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesuvius.corners import patch_sums
from vesuvius.folds import Piece
from vesuvius.fragment import read_binary_png
from vesuvius.sampling import (
    SamplingConfig,
    balance_points,
    points_csv,
    sample_fragments,
    sample_points,
)

PIECE = Piece("1", 20, 380, 30, 460, "train")
CONFIG = SamplingConfig(
    patch_size=32, num_buckets=8, bucket_cap=20, num_void=50, translation=(-16, 8)
)


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    """Strokes of several widths, in the upper left half."""
    canvas = np.zeros((400, 500), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for width in (3, 9, 15, 25, 40):
        start, stop = rng.integers(20, 250, size=(2, 2)).tolist()
        cv2.line(canvas, start, stop, 1, width)
    return canvas.astype(bool)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.ones((400, 500), dtype=bool)
    mask[:, 400:] = False
    return mask


def ink_of(label: np.ndarray, points: np.ndarray, size: int = 32) -> np.ndarray:
    """Plain twin of the integral image: ink fraction of each patch."""
    return np.array([label[y : y + size, x : x + size].mean() for y, x in points])


def draw(label, mask, config=CONFIG, seed=0, piece=PIECE) -> np.ndarray:
    return sample_points(label, mask, piece, config, np.random.default_rng(seed))


def split(label: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ink = ink_of(label, points)
    return points[ink > 0], points[ink == 0]


@given(st.integers(1, 12), st.integers(0, 99))
def test_integral_image_sums_equal_plain_sums(size, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, size=(12, 15), dtype=np.uint8)
    corners = rng.integers(0, (13 - size, 16 - size), size=(9, 2))
    plain = [values[y : y + size, x : x + size].sum() for y, x in corners]
    assert patch_sums(cv2.integral(values), corners, size).tolist() == plain


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_patches_lie_inside_the_piece(label, mask, seed):
    points = draw(label, mask, seed=seed)
    assert points.dtype == np.int32
    assert points.shape[1] == 2
    assert (points >= (20, 30)).all()
    assert (points + 32 <= (380, 460)).all()


def test_each_bucket_is_filled_up_to_its_cap(label, mask):
    """The same random shifts are drawn whatever the cap, so the candidates are the same."""
    everything = SamplingConfig(32, 8, 10**6, 0, CONFIG.translation)
    available, _ = split(label, draw(label, mask, everything))
    found, _ = split(label, draw(label, mask))
    count = [np.histogram(ink_of(label, p), bins=8, range=(0, 1))[0] for p in (available, found)]
    assert (count[0] > 20).any()
    np.testing.assert_array_equal(count[1], np.minimum(count[0], 20))
    assert {*map(tuple, found.tolist())} <= {*map(tuple, available.tolist())}


def test_no_bucket_patch_is_drawn_twice(label, mask):
    found, _ = split(label, draw(label, mask))
    assert len(np.unique(found, axis=0)) == len(found)


def test_bucket_patches_are_centred_near_an_edge_of_ink(label, mask):
    found, _ = split(label, draw(label, mask))
    edges = np.argwhere(label ^ cv2.erode(label.astype(np.uint8), np.ones((3, 3))).astype(bool))
    inside = ((found > (20, 30)) & (found + 32 < (380, 460))).all(axis=1)
    for centre in found[inside] + 16:
        shift = centre - edges
        # one pixel of slack: Canny may mark the other side of the edge
        assert ((shift >= -17) & (shift <= 9)).all(axis=1).any()


def test_the_centre_is_shifted_from_an_edge_by_the_translation(label, mask):
    config = SamplingConfig(32, 8, 10**6, 0, translation=(5, 5))
    found, _ = split(label, draw(label, mask, config))
    edges = np.argwhere(cv2.Canny(label[PIECE.slices].view(np.uint8) * 255, 100, 200))
    expected = {(y, x) for y, x in (edges + 5 - 16 + (20, 30)).tolist()}
    inside = ((found > (20, 30)) & (found + 32 < (380, 460))).all(axis=1)
    assert inside.sum() > 100
    assert {(y, x) for y, x in found[inside].tolist()} <= expected


def test_void_patches_are_papyrus_without_ink(label, mask):
    _, void = split(label, draw(label, mask))
    assert len(void) == 50
    papyrus = ink_of(mask, void)
    assert papyrus.min() >= 0.5
    assert papyrus.min() < 1  # the rim of the papyrus takes part
    assert not split(label, draw(label, np.zeros_like(mask)))[1].size


def test_points_follow_from_the_seed(label, mask):
    np.testing.assert_array_equal(draw(label, mask, seed=3), draw(label, mask, seed=3))
    assert not np.array_equal(draw(label, mask, seed=3), draw(label, mask, seed=4))


def test_ink_outside_the_piece_has_no_influence(label, mask):
    cropped = np.zeros_like(label)
    cropped[PIECE.slices] = label[PIECE.slices]
    np.testing.assert_array_equal(draw(label, mask), draw(cropped, mask))


def test_a_piece_without_ink_gives_void_patches_only(mask):
    points = draw(np.zeros_like(mask), mask)
    assert len(points) == 50


NOTHING = SamplingConfig(32, 8, 0, 1, CONFIG.translation)


def positions(mask: np.ndarray, step: int) -> list[list[int]]:
    """Plain twin: every corner of a grid whose patch has its centre on papyrus."""
    return [
        [y, x]
        for y in range(20, 380 - 31, step)
        for x in range(30, 460 - 31, step)
        if mask[y + 16, x + 16]
    ]


@pytest.mark.parametrize(("kind", "step"), [("num_raw", 1), ("num_grid", 7)])
def test_raw_and_grid_are_every_position_on_papyrus(label, mask, kind, step):
    everything = replace(NOTHING, **{kind: 10**6}, grid_step=7)
    assert draw(label, mask, everything)[1:].tolist() == positions(mask, step)


@pytest.mark.parametrize(("kind", "step"), [("num_raw", 1), ("num_grid", 7)])
def test_a_share_of_the_positions_is_drawn_evenly_and_each_once(label, mask, kind, step):
    num_all = len(positions(mask, step))
    points = draw(label, mask, replace(NOTHING, **{kind: num_all // 2}, grid_step=7))[1:]
    assert len(points) == num_all // 2
    drawn = {(y, x) for y, x in points.tolist()}
    assert len(drawn) == len(points)
    assert drawn <= {(y, x) for y, x in positions(mask, step)}
    upper = (points[:, 0] < 185).mean()  # half of the rows of corners, 20..348
    assert abs(upper - 0.5) < 0.05


def test_positions_need_papyrus(label, mask):
    config = replace(NOTHING, num_raw=50, num_grid=50)
    assert not len(draw(label, np.zeros_like(mask), config))


def test_edge_patches_are_drawn_whatever_their_ink(label, mask):
    """Near edges most patches have little ink: buckets even that out, plain edges do not."""
    edges = draw(label, mask, replace(NOTHING, num_edges=150))[1:]
    assert len(edges) == len(np.unique(edges, axis=0)) == 150
    everything = draw(label, mask, replace(NOTHING, num_edges=10**6))[1:]
    assert {*map(tuple, edges.tolist())} <= {*map(tuple, everything.tolist())}
    candidates = SamplingConfig(32, 8, 10**6, 0, CONFIG.translation)
    inked, _ = split(label, everything)
    np.testing.assert_array_equal(
        np.unique(inked, axis=0), np.unique(draw(label, mask, candidates), axis=0)
    )


def test_a_mixture_has_the_count_of_each_kind(label, mask):
    counts = {"num_void": 5, "num_edges": 7, "num_raw": 11, "num_grid": 13}
    without = draw(label, mask, replace(CONFIG, num_void=5))
    mixed = draw(label, mask, replace(CONFIG, **counts))
    assert len(mixed) == len(without) + 7 + 11 + 13
    np.testing.assert_array_equal(mixed[: len(without)], without)  # the first kinds stay


def test_fragments_are_balanced_by_leaving_out_or_repeating():
    points = {name: np.arange(2 * n, dtype=np.int32).reshape(n, 2) for name, n in
              (("a", 4), ("b", 11))}  # fmt: skip
    rng = np.random.default_rng(0)
    fewest = balance_points(points, "fewest", rng)
    assert fewest["a"].tolist() == points["a"].tolist()
    assert len(np.unique(fewest["b"], axis=0)) == len(fewest["b"]) == 4
    most = balance_points(points, "most", rng)
    assert most["b"].tolist() == points["b"].tolist()
    found, times = np.unique(most["a"], axis=0, return_counts=True)
    assert found.tolist() == points["a"].tolist()
    assert sorted(times.tolist()) == [2, 3, 3, 3]
    assert balance_points(points, "none", rng) == points
    with pytest.raises(ValueError, match="no patch was found in b, so fragments"):
        balance_points(points | {"b": points["b"][:0]}, "most", rng)


def test_balanced_sampling_gives_equal_numbers(label, mask):
    small = np.zeros_like(label)
    small[:, :120] = label[:, :120]
    volumes = {"1": volume("1", label, mask), "2": volume("2", small, mask)}
    pieces = [Piece(name, 0, 400, 0, 500, "train") for name in volumes]
    drawn = sample_fragments(volumes, pieces, CONFIG, seed=0)
    assert len(drawn["1"]) > len(drawn["2"])
    balanced = sample_fragments(volumes, pieces, replace(CONFIG, balance="fewest"), seed=0)
    assert {len(points) for points in balanced.values()} == {len(drawn["2"])}


def test_points_are_written_as_a_table():
    points = {"1": np.array([[3, 4]], np.int32), 'a,"b': np.array([[5, 6], [7, 8]], np.int32)}
    rows = list(csv.reader(points_csv(points).splitlines()))
    assert rows[0] == ["fragment", "y", "x"]
    assert rows[1:] == [["1", "3", "4"], ['a,"b', "5", "6"], ['a,"b', "7", "8"]]


def volume(name: str, label: np.ndarray | None, mask: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        path=Path(f"{name}.vol"),
        ink_label=label,
        papyrus_mask=mask,
        labelled_papyrus=mask,
    )


def test_fragments_are_sampled_from_their_training_pieces(label, mask):
    volumes = {"1": volume("1", label, mask), "2": volume("2", label[::-1], mask[::-1])}
    pieces = [
        Piece("1", 0, 180, 0, 300, "train"),
        Piece("1", 200, 400, 0, 300, "train"),
        Piece("1", 0, 400, 350, 500, "validation"),
        Piece("2", 0, 400, 0, 500, "train"),
    ]
    points = sample_fragments(volumes, pieces, CONFIG, seed=0)
    assert set(points) == {"1", "2"}
    assert (points["1"][:, 1] <= 300 - 32).all()
    ys = points["1"][:, 0]
    assert ((ys <= 180 - 32) | (ys >= 200)).all()
    assert (ys <= 180 - 32).any()
    assert (ys >= 200).any()
    again = sample_fragments(volumes, pieces, CONFIG, seed=0)
    np.testing.assert_array_equal(points["2"], again["2"])


def test_pieces_are_drawn_independently(label, mask):
    """Two pieces of the same content do not get the same patches."""
    both = volume("1", np.tile(label, (2, 1)), np.tile(mask, (2, 1)))
    pieces = [Piece("1", 0, 400, 0, 500, "train"), Piece("1", 400, 800, 0, 500, "train")]
    upper, lower = np.split(sample_fragments({"1": both}, pieces, CONFIG, seed=0)["1"], 2)
    assert not np.array_equal(upper, lower - (400, 0))


def test_nothing_is_drawn_from_what_is_not_labelled(label, mask):
    partly = volume("1", label, mask)
    area = np.zeros_like(mask)
    area[:200] = True
    partly.labelled_papyrus = mask & area
    piece, mixture = Piece("1", 0, 400, 0, 500, "train"), replace(CONFIG, num_raw=50, num_grid=50)
    points = sample_fragments({"1": partly}, [piece], mixture, seed=0)["1"]
    assert len(points) > 150
    assert ink_of(mask & area, points).min() > 0
    void = ink_of(label & area, points) == 0
    assert (ink_of(mask & area, points[void]) >= 0.25).all()
    whole = sample_fragments({"1": volume("1", label, mask)}, [piece], mixture, seed=0)["1"]
    assert ink_of(mask & area, whole).min() == 0


def test_training_labels_without_ink_are_refused(label, mask):
    bare = np.zeros_like(label)
    pieces = [Piece("7", 0, 400, 0, 500, "train"), Piece("8", 0, 400, 0, 500, "train")]
    volumes = {"7": volume("7", bare, mask), "8": volume("8", bare, mask)}
    with pytest.raises(ValueError, match="no ink in the training label of 7, 8; at least one"):
        sample_fragments(volumes, pieces, CONFIG, seed=0)
    volumes["8"] = volume("8", label, mask)
    assert len(sample_fragments(volumes, pieces, CONFIG, seed=0)["7"]) == 50
    volumes["7"] = volume("7", None, mask)
    with pytest.raises(ValueError, match=r"7\.vol has no ink label and cannot be trained on"):
        sample_fragments(volumes, pieces, CONFIG, seed=0)


def test_a_piece_smaller_than_a_patch_is_refused(label, mask):
    piece = Piece("9", 0, 31, 0, 500, "train")
    with pytest.raises(
        ValueError, match=r"train piece of 9 .* is 31 x 500 px, smaller than a patch"
    ):
        draw(label, mask, piece=piece)
    assert len(draw(label, mask, piece=Piece("9", 0, 32, 0, 500, "train")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, r"sampling\.patch_size is 0"),
        ({"num_buckets": 0}, r"sampling\.num_buckets is 0"),
        ({"bucket_cap": -1}, r"sampling\.bucket_cap is -1"),
        ({"num_raw": -1}, r"sampling\.num_raw is -1"),
        ({"grid_step": 0}, r"sampling\.grid_step is 0"),
        ({"bucket_cap": 0, "num_void": 0}, r"draws nothing; set one of bucket_cap, num_void,"),
        ({"balance": "all"}, r"balance 'all' is not one of none, fewest, most"),
        ({"num_void": -1}, r"sampling\.num_void is -1"),
        ({"translation": (5, 4)}, r"sampling\.translation \(5, 4\)"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


def test_a_set_as_large_as_the_seeds_comes_from_the_real_label_at_once(sample_data):
    """The seed drew 24,000 patches in 400 buckets and 12,000 without ink."""
    folder = sample_data / "kaggle_fragment_1"
    label, mask = (read_binary_png(folder / name) for name in ("inklabels.png", "mask.png"))
    piece = Piece("1", 0, label.shape[0], 0, label.shape[1], "train")
    config = SamplingConfig(64, 400, 60, 12_000)
    start = time.process_time()
    points = draw(label, mask, config, piece=piece)
    assert time.process_time() - start < 20
    assert len(points) == 36_000
    ink = ink_of(label, points[:24_000], 64)
    bucket = np.minimum((ink * 400).astype(int), 399)
    assert (np.bincount(bucket) == 60).all()
    assert not any(label[y : y + 64, x : x + 64].any() for y, x in points[24_000::50])
