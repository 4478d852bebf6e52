"""Pictures of maps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from core.pictures import (
    BAND_ROWS,
    CAPTION_ROWS,
    FOUND,
    INVENTED,
    MISSED,
    captioned,
    overlay,
    png_bytes,
    shrink,
    side_by_side,
    stacked,
    write_png,
)


@pytest.mark.parametrize("shape", [(102, 30), (2 * BAND_ROWS + 37, 90), (7, 1500), (100, 31)])
def test_small_picture_is_the_block_mean_whatever_the_bands(shape):
    prob = np.random.default_rng(0).random(shape, dtype=np.float32)
    picture = shrink(prob, max_side=-(-max(shape) // 3))
    assert picture.shape == (-(-shape[0] // 3), -(-shape[1] // 3))
    for y, x in ((0, 0), (picture.shape[0] // 2, 1), (picture.shape[0] - 1, picture.shape[1] - 1)):
        rows, columns = (
            np.minimum(np.arange(3 * at, 3 * at + 3), length - 1)
            for at, length in zip((y, x), shape, strict=True)
        )
        assert abs(picture[y, x] - prob[np.ix_(rows, columns)].mean() * 255) <= 0.51


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


def test_a_picture_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    write_png(path, np.zeros((3, 4), np.uint8))
    before = path.read_bytes()

    def half(target, content):
        with target.open("wb") as file:
            file.write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, np.ones((3, 4), np.uint8))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_pictures_stand_beside_each_other_with_a_gap():
    row = side_by_side(np.zeros((2, 3), np.uint8), np.full((2, 4), 9, np.uint8), gap=1)
    assert row.tolist() == [[0, 0, 0, 128, 9, 9, 9, 9]] * 2


def test_a_coloured_picture_makes_the_row_coloured():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    row = side_by_side(np.full((2, 1), 7, np.uint8), red, gap=1)
    assert row[0].tolist() == [[7, 7, 7], [128, 128, 128], [200, 0, 0], [200, 0, 0]]


def test_pictures_stand_above_each_other_with_a_gap():
    column = stacked(np.zeros((1, 2), np.uint8), np.full((2, 2), 9, np.uint8), gap=1)
    assert column.tolist() == [[0, 0], [128, 128], [9, 9], [9, 9]]


@pytest.mark.parametrize("picture", [np.zeros((20, 300), np.uint8), np.zeros((9, 90, 3), np.uint8)])
def test_a_caption_stands_above_its_picture_and_fits(picture):
    captioned_picture = captioned(picture, "standard deviation: white 0.12")
    caption, below = captioned_picture[:CAPTION_ROWS], captioned_picture[CAPTION_ROWS:]
    np.testing.assert_array_equal(below, picture)
    assert caption.min() < 200
    assert (caption[:, -1] == 255).all()
