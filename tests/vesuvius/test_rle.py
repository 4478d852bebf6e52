from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vesuvius.rle import decode, encode
from vesuvius.submission import read_submission

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def encode_slowly(mask: np.ndarray) -> str:
    """Plain twin of `encode`: walk over the pixels one by one."""
    numbers, start = [], None
    for i, ink in enumerate([*mask.ravel().tolist(), False], 1):
        if ink and start is None:
            start = i
        elif not ink and start is not None:
            numbers += [start, i - start]
            start = None
    return " ".join(map(str, numbers))


@given(masks)
def test_encode_equals_the_walk_over_pixels(mask):
    assert encode(mask) == encode_slowly(mask)


@given(masks)
def test_decode_inverts_encode(mask):
    decoded = decode(encode(mask), mask.shape)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@given(masks, st.sampled_from([np.uint8, np.int32]), st.integers(1, 100))
def test_integer_masks_and_views_are_read_as_nonzero(mask, dtype, value):
    numbers = mask.astype(dtype) * dtype(value)
    assert encode(numbers) == encode(mask)
    assert encode(np.asfortranarray(mask)) == encode(mask)
    assert encode(mask[::-1, ::2]) == encode_slowly(mask[::-1, ::2])


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([[0, 0], [0, 0]], ""),
        ([[1, 1], [1, 1]], "1 4"),
        ([[1, 0], [0, 0]], "1 1"),
        ([[0, 0], [0, 1]], "4 1"),
        ([[0, 1], [1, 0]], "2 2"),
        ([[1, 1, 0], [0, 1, 1]], "1 2 5 2"),
        ([[1]], "1 1"),
    ],
)
def test_known_masks(mask, text):
    assert encode(np.array(mask, dtype=bool)) == text
    np.testing.assert_array_equal(decode(text, np.shape(mask)), np.array(mask, dtype=bool))


def test_touching_runs_and_any_white_space_are_read():
    np.testing.assert_array_equal(decode(" 1 1\n2\t\xa01  ", (1, 3)), [[True, True, False]])
    assert not decode(" \n", (2, 3)).any()


def test_the_real_label_survives_decoding_and_encoding(sample_data: Path):
    text = read_submission(sample_data / "kaggle_fragment_1" / "inklabels_rle.csv")["1"]
    assert encode(decode(text, (8181, 6330))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 two", r"RLE number 2 of 2 is 'two'"),
        ("1 1 2.5 1", r"RLE number 3 of 4 is '2.5'"),
        ("1 -2", r"RLE number 2 of 2 is '-2'"),
        ("nan", r"RLE number 1 of 1 is 'nan'"),
        ("1 2 1_0 1", r"RLE number 3 of 4 is '1_0'"),
        ("1 ٣", r"RLE number 2 of 2"),
        ("1,2", r"RLE number 1 of 1 is '1,2'"),
        ("1 1 5", r"RLE has 3 numbers, an odd count"),
        ("0 1", r"RLE pair 1 of 1 \(start 0, length 1\) starts before pixel 1"),
        ("1 1 3 0", r"RLE pair 2 of 2 \(start 3, length 0\) has no pixel"),
        ("5 1 1 1", r"RLE pair 2 of 2 \(start 1, length 1\) begins before the end"),
        ("1 3 3 1", r"RLE pair 2 of 2 \(start 3, length 1\) begins before the end"),
        ("12 2", r"\(start 12, length 2\) ends past pixel 12, the last of 3 x 4"),
        ("1 99999999999999999999999", r"ends past pixel 12"),
        ("99999999999999999999999 1", r"ends past pixel 12"),
    ],
)
def test_bad_text_is_refused_with_its_place(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(text, (3, 4))
    assert "\n" not in str(caught.value)


def test_the_last_pixel_is_still_inside():
    assert decode("12 1", (3, 4))[2, 3]
    assert decode("1 12", (3, 4)).all()


def test_masks_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        encode(np.zeros((2, 2, 2), dtype=bool))
    with pytest.raises(ValueError, match="float32, not bool"):
        encode(np.zeros((2, 2), dtype=np.float32))
