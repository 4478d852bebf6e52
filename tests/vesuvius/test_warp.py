"""One warp of all layers equals warping the layers, and labels follow."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vesuvius.augment import Augmentation, AugmentConfig
from vesuvius.warp import OUTSIDE, warp

OFF = {"flip": 0, "rotate90": 0, "brightness_contrast": 0}
MATRIX = np.array([[0.8, -0.5, 20.3], [0.5, 0.8, -4.6]], np.float32)


def smooth(height: int, width: int, depth: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, depth), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).reshape(height, width, depth)


def move(picture: np.ndarray, fill: float) -> np.ndarray:
    """Plain twin: an affine change of a picture of few channels."""
    return cv2.warpAffine(picture, MATRIX, picture.shape[1::-1], borderValue=(fill,) * 4)


@pytest.mark.parametrize("depth", [1, 4, 6, 17])
def test_all_layers_are_moved_as_each_alone(depth):
    patch, maps = smooth(40, 48, depth), np.ones((40, 48, 2), np.uint8)
    moved, valid = warp(patch, maps, lambda coordinates: move(coordinates, OUTSIDE), fill=7)
    assert moved.flags.c_contiguous
    inside = cv2.erode(valid[..., 0], np.ones((3, 3))) == 1
    assert 0.3 < inside.mean() < 0.9
    for z in range(depth):
        expected = move(np.ascontiguousarray(patch[..., z]), 7)
        difference = np.abs(moved[..., z].astype(int) - expected)
        assert difference[inside].max() <= 3  # both round positions to 1/32 px, in other places
        assert difference[inside].mean() < 0.5
    far = cv2.dilate(valid[..., 0], np.ones((3, 3))) == 0
    assert (moved[far] == 7).all()


def test_no_change_costs_nothing_and_changes_nothing():
    patch, maps = smooth(16, 16, 5), np.ones((16, 16, 2), np.uint8)
    moved, valid = warp(patch, maps, lambda coordinates: coordinates.copy(), fill=0)
    assert moved is patch
    assert valid is maps


@pytest.mark.parametrize("kind", ["shift_scale_rotate", "grid_distortion"])
def test_maps_move_with_the_voxels_and_end_at_the_border(kind):
    """Voxels that show the label and the mask agree with them after the change."""
    label = cv2.circle(np.zeros((64, 64), np.uint8), (20, 40), 12, 1, -1)
    maps = np.stack([label, np.ones_like(label)], axis=-1)
    patch = np.repeat(label[..., None] * np.uint8(200) + np.uint8(20), 6, axis=2)
    augment = Augmentation(AugmentConfig(**OFF, **{kind: 1.0}), fill=99)
    shares = []
    for seed in range(20):
        moved, changed_maps = augment(patch, maps, np.random.default_rng(seed))
        found, valid = np.moveaxis(changed_maps, -1, 0)
        is_plain = (cv2.blur(found, (3, 3), borderType=cv2.BORDER_REFLECT) == found) & (
            cv2.erode(valid, np.ones((3, 3))) == 1
        )
        flat = np.where(found == 1, 220, 20)[is_plain]
        assert np.abs(moved[is_plain].astype(int) - flat[:, None]).mean() < 6
        assert set(np.unique(found)) <= {0, 1}
        assert (found <= valid).all()
        shares.append(valid.mean())
    assert min(shares) < 1 or kind == "grid_distortion"
    assert np.mean(shares) > 0.6


def test_each_warp_is_as_strong_as_asked():
    line = np.zeros((64, 64, 2), np.uint8)
    line[31:33] = 1
    patch = np.zeros((64, 64, 3), np.uint8)

    def tilt(degrees: float) -> float:
        config = AugmentConfig(
            **OFF, shift_scale_rotate=1.0, max_shift=0.0, max_scale=0.0, max_rotation=degrees
        )
        augment, largest = Augmentation(config, fill=0), 0.0
        for seed in range(40):
            _, maps = augment(patch, line, np.random.default_rng(seed))
            y, x = np.nonzero(maps[..., 0])
            largest = max(largest, abs(np.degrees(np.arctan(np.polyfit(x, y, 1)[0]))))
        return largest

    assert tilt(0.0) < 0.5
    assert 4 < tilt(6.0) < 6.5
    assert 20 < tilt(30.0) < 31
