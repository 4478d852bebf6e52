from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesuvius.folds import (
    Piece,
    check_disjoint,
    folds_json,
    hold_out_fragment,
    hold_out_stripe,
    hold_out_stripes,
    note_shares,
)


def papyrus(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A ragged mask that does not touch the border."""
    mask = np.zeros((height, width), dtype=bool)
    rng = np.random.default_rng(seed)
    for y in range(2, height - 3):
        mask[y, 3 + rng.integers(0, 5) : width - 4 - rng.integers(0, 5)] = True
    mask[2, 3] = mask[height - 4, width - 5] = True
    return mask


@given(
    st.booleans(),
    st.integers(80, 160),
    st.floats(0.1, 0.6),
    st.integers(0, 20),
    st.integers(0, 3),
)
def test_stripes_keep_gap_and_fraction(is_wide, length, fraction, gap, seed):
    mask = papyrus(length, 40, seed)
    mask = mask.T if is_wide else mask
    train, validation = pieces = hold_out_stripes("1", mask, fraction, gap)
    assert (train.role, validation.role) == ("train", "validation")
    check_disjoint(pieces, gap)
    with pytest.raises(ValueError, match="apart; at least"):
        check_disjoint(pieces, gap + 1)
    share = mask[validation.slices].sum() / mask.sum()
    assert fraction - 1.5 / (length - 5) < share <= fraction
    assert mask[train.slices].sum() + mask[validation.slices].sum() <= mask.sum()
    if gap == 0:
        assert mask[train.slices].sum() + mask[validation.slices].sum() == mask.sum()


def test_pieces_cover_the_bounding_box_of_the_papyrus():
    mask = papyrus(100, 40)
    train, validation = hold_out_stripes("1", mask, 0.25, 10)
    assert (train.y_start, validation.y_stop) == (2, 97)
    assert (train.x_start, train.x_stop) == (validation.x_start, validation.x_stop) == (3, 36)
    assert validation.y_start - train.y_stop == 10


@given(
    st.booleans(), st.integers(120, 200), st.integers(2, 5), st.integers(0, 9), st.integers(0, 3)
)
def test_each_stripe_is_held_out_once_with_a_gap_on_both_sides(wide, length, number, gap, seed):
    mask = papyrus(length, 40, seed)
    mask = mask.T if wide else mask
    held_out = np.zeros(mask.shape, int)
    for stripe in range(number):
        pieces = hold_out_stripe({"1": mask}, None, number, stripe, gap)
        check_disjoint(pieces, gap)
        *train, validation = pieces
        assert [piece.role for piece in pieces] == ["train"] * len(train) + ["validation"]
        assert len(train) == (1 if stripe in (0, number - 1) else 2)
        held_out[validation.slices] += 1
        share = mask[validation.slices].sum() / mask.sum()
        assert abs(share - 1 / number) < 2.5 / (length - 5)
        used = np.zeros(mask.shape, bool)
        for piece in pieces:
            used[piece.slices] = True
        lost = (mask & ~used).any(axis=0 if wide else 1).sum()
        assert lost == gap * len(train)
    assert (held_out[mask] == 1).all()


def test_a_stripe_of_one_fragment_leaves_the_others_whole():
    masks = {"1": papyrus(100, 40), "2": papyrus(60, 70, 1)}
    pieces = hold_out_stripe(masks, "1", 2, 1, 8)
    assert [(p.fragment, p.role) for p in pieces] == [
        ("1", "train"), ("1", "validation"), ("2", "train"),
    ]  # fmt: skip
    assert pieces[2] == Piece("2", 2, 57, 3, 66, "train")
    both = hold_out_stripe(masks, None, 2, 1, 8)
    assert [p.fragment for p in both if p.role == "validation"] == ["1", "2"]


def test_impossible_stripes_are_refused():
    masks = {"1": papyrus(100, 40)}
    with pytest.raises(ValueError, match="cannot cut '3' of the fragments 1; name one"):
        hold_out_stripe(masks, "3", 2, 0, 8)
    with pytest.raises(ValueError, match="no stripe 2 of 2; they count from 0"):
        hold_out_stripe(masks, "1", 2, 2, 8)
    with pytest.raises(ValueError, match="1: papyrus 95 px long leaves nothing to train or"):
        hold_out_stripe(masks, "1", 2, 0, 60)


def test_folds_on_disk_are_the_pieces():
    pieces = hold_out_stripe({"1": papyrus(100, 40)}, None, 3, 1, 8)
    stored = json.loads(folds_json(pieces, 8))
    assert stored["gap"] == 8
    assert [Piece(**piece) for piece in stored["pieces"]] == pieces


def test_bad_cuts_are_refused():
    with pytest.raises(ValueError, match="papyrus mask of 7 is all black"):
        hold_out_stripes("7", np.zeros((90, 90), dtype=bool), 0.25, 0)
    with pytest.raises(ValueError, match="7: papyrus 95 px long leaves nothing to train on"):
        hold_out_stripes("7", papyrus(100, 40), 0.25, 80)
    with pytest.raises(ValueError, match=r"fraction 1\.0 for 7"):
        hold_out_stripes("7", papyrus(100, 40), 1.0, 0)


def test_a_held_out_fragment_is_validated_whole():
    masks = {"1": papyrus(30, 40), "2": papyrus(50, 60)}
    assert hold_out_fragment(masks, "2") == [
        Piece("1", 2, 27, 3, 36, "train"),
        Piece("2", 2, 47, 3, 56, "validation"),
    ]
    with pytest.raises(ValueError, match="cannot hold out '3' of the fragments 1, 2"):
        hold_out_fragment(masks, "3")
    with pytest.raises(ValueError, match="keep at least one other"):
        hold_out_fragment({"1": masks["1"]}, "1")


def test_leaks_are_refused_naming_both_pieces():
    train = Piece("1", 0, 100, 0, 50, "train")
    with pytest.raises(
        ValueError,
        match=r"train piece of 1 \(rows 0:100, .*\) and validation piece of 1 .* overlap; at least",
    ):
        check_disjoint([train, Piece("1", 90, 200, 49, 80, "validation")], 0)
    check_disjoint([train, Piece("1", 100, 200, 0, 50, "validation")], 0)
    with pytest.raises(ValueError, match="are 10 px apart; at least 11 px"):
        check_disjoint([Piece("1", 105, 200, 60, 80, "validation"), train], 11)
    check_disjoint([train, Piece("1", 105, 200, 60, 80, "validation")], 10)
    check_disjoint([train, Piece("2", 0, 100, 0, 50, "validation")], 64)
    check_disjoint([train, train], 64)


def test_a_negative_gap_never_lets_pieces_overlap():
    pieces = hold_out_stripes("1", np.ones((1000, 400), bool), 0.25, -100)
    with pytest.raises(ValueError, match="overlap"):
        check_disjoint(pieces, -100)


def test_impossible_pieces_are_refused():
    with pytest.raises(ValueError, match=r"train piece of 1 \(rows 5:5, .* is empty"):
        Piece("1", 5, 5, 0, 4, "train")
    with pytest.raises(ValueError, match="role 'test' is not one of train, validation"):
        Piece("1", 0, 5, 0, 4, "test")


def test_shares_of_papyrus_are_told_with_a_remedy_where_the_gap_takes_much(capsys):
    masks = {"1": np.ones((200, 40), bool), "2": np.ones((30, 30), bool)}
    masks["1"][:, :20] = False
    pieces = [
        Piece("1", 0, 60, 0, 40, "train"), Piece("1", 150, 200, 0, 40, "validation"),
        Piece("2", 0, 30, 0, 30, "train"),
    ]  # fmt: skip
    note_shares(masks, pieces)
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "1: of its papyrus 30% is trained on, 25% held out, 45% lost to the gap between; a smaller "
        "--validation.gap loses less"
    )
    assert second == "2: of its papyrus 100% is trained on, 0% held out, 0% lost to the gap between"
