"""Pictures of maps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vesuvius.pictures import (
    BAND_ROWS,
    FOUND,
    INVENTED,
    MISSED,
    overlay,
    png_bytes,
    shrink,
    side_by_side,
)


@pytest.mark.parametrize("shape", [(100, 30), (2 * BAND_ROWS + 37, 90), (7, 1500)])
def test_small_picture_is_the_block_mean_whatever_the_bands(shape):
    rng = np.random.default_rng(0)
    prob = rng.random(shape, dtype=np.float32)
    factor = 3
    picture = shrink(prob, max_side=-(-max(shape) // factor))
    assert max(picture.shape) <= -(-max(shape) // factor)
    blocks = prob[: shape[0] // 3 * 3, : shape[1] // 3 * 3]
    mean = blocks.reshape(shape[0] // 3, 3, shape[1] // 3, 3).mean(axis=(1, 3))
    inner = picture[: shape[0] // 3 - 1, : shape[1] // 3 - 1]
    if shape[0] % 3 == shape[1] % 3 == 0:
        np.testing.assert_allclose(inner, mean[:-1, :-1] * 255, atol=1)
    else:
        assert abs(float(inner.mean()) - float(mean.mean()) * 255) < 6


def test_small_map_keeps_its_size_and_values():
    prob = np.array([[0.0, 1.0], [0.5, 0.2]])
    assert shrink(prob).tolist() == [[0, 255], [128, 51]]


def test_overlay_colours_every_case():
    predicted = np.array([[True, False], [True, False]])
    label = np.array([[True, True], [False, False]])
    assert overlay(predicted, label).tolist() == [
        [list(FOUND), list(MISSED)],
        [list(INVENTED), [0, 0, 0]],
    ]


def test_png_keeps_grey_and_colour():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    read = cv2.imdecode(np.frombuffer(png_bytes(grey), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read, grey)
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = INVENTED
    read = cv2.imdecode(np.frombuffer(png_bytes(colour), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(read[:, :, ::-1], colour)


def test_pictures_stand_beside_each_other_with_a_gap():
    row = side_by_side(np.zeros((2, 3), np.uint8), np.full((2, 4), 9, np.uint8), gap=1)
    assert row.tolist() == [[0, 0, 0, 128, 9, 9, 9, 9]] * 2
