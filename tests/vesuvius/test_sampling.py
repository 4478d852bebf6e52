from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesuvius.folds import Piece
from vesuvius.sampling import (
    SamplingConfig,
    patch_sums,
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


def volume(name: str, label: np.ndarray | None, mask: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(name=name, path=Path(f"{name}.vol"), ink_label=label, papyrus_mask=mask)


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
        ({"bucket_cap": 0}, r"sampling\.bucket_cap is 0"),
        ({"num_void": -1}, r"sampling\.num_void is -1"),
        ({"translation": (5, 4)}, r"sampling\.translation \(5, 4\)"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)
