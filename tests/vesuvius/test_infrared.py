"""The infrared photograph: read, stored, and learned in its greys."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from core.losses import LossWeights, MapLoss
from tests.vesuvius.conftest import write_fragment
from vesuvius.augment import AugmentConfig
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.folds import Piece
from vesuvius.fragment import fingerprint, open_fragment, read_grey
from vesuvius.infrared import infrared_levels, sample_infrared
from vesuvius.ink_loss import InkLoss
from vesuvius.label_care import LabelConfig
from vesuvius.prepare import prepare_fragment
from vesuvius.prepared import PreparedVolume, open_prepared
from vesuvius.recipes import LossConfig
from vesuvius.warp import own_coordinates, warp

SIZE = (128, 144)


def photograph(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return smooth greys 40..219."""
    y, x = np.mgrid[: size[0], : size[1]]
    return (130 + 45 * (np.sin(y / 7) + np.cos(x / 5))).astype(np.uint8)


def prepared_with(folder: Path, image: np.ndarray) -> PreparedVolume:
    fragment = write_fragment(folder / "1", 0)
    Image.fromarray(image).save(fragment / "ir.png")
    return open_prepared(prepare_fragment(fragment, folder))


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> PreparedVolume:
    return prepared_with(tmp_path_factory.mktemp("infrared"), photograph())


def source_of(volume: PreparedVolume, corners: list[tuple[int, int]]) -> PatchSource:
    points = np.array(corners, np.int32)
    return PatchSource(volume, points, 2, 8, 0.0, 1 / 255, levels=infrared_levels(volume))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "16 bits"])
def test_a_photograph_of_any_mode_is_read_as_greys(mode, tmp_path):
    grey = photograph((20, 30))
    if mode == "16 bits":
        cv2.imwrite(str(tmp_path / "ir.png"), grey.astype(np.uint16) * 256 + 77)
    else:
        Image.fromarray(grey).convert(mode).save(tmp_path / "ir.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "ir.png"), grey)


def test_colours_are_read_by_their_brightness(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)).save(tmp_path / "ir.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "ir.png"), [[76, 150]])


def test_the_photograph_is_stored_and_travels_to_workers(volume):
    np.testing.assert_array_equal(volume.ir_image, photograph())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).ir_image, photograph())
    np.testing.assert_array_equal(open_fragment(volume.path).ir_image, photograph())
    without = replace(volume, ink_label=None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(without)).ir_image, photograph())
    assert open_prepared(volume.path, with_label=False).ir_image is None


def test_prediction_neither_reads_nor_counts_the_photograph(tmp_path):
    fragment = write_fragment(tmp_path / "1", 0)
    before = fingerprint(open_fragment(fragment, with_label=False))
    (fragment / "ir.png").write_bytes(b"no image")
    assert fingerprint(open_fragment(fragment, with_label=False)) == before
    with pytest.raises(ValueError, match=r"ir\.png is not a readable image"):
        open_fragment(fragment)
    Image.fromarray(photograph()[1:]).save(fragment / "ir.png")
    with pytest.raises(ValueError, match=r"ir\.png is 127 x 144 but the layers are 128 x 144"):
        open_fragment(fragment)


def test_a_volume_prepared_before_there_were_photographs_is_read(tmp_path, volume):
    folder = prepared_with(tmp_path, photograph()).path
    info = json.loads((folder / "volume.json").read_text())
    del info["has_ir_image"]
    (folder / "volume.json").write_text(json.dumps(info))
    (folder / "ir_image.npy").unlink()
    found = open_prepared(folder)
    assert found.ir_image is None
    np.testing.assert_array_equal(found.volume, volume.volume)


def test_the_target_is_the_brightness_between_two_percentiles_of_the_papyrus(volume):
    levels = infrared_levels(volume)
    low, high = np.percentile(photograph()[volume.papyrus_mask], (1, 99), method="inverted_cdf")
    expected = ((np.arange(256) - low) / (high - low)).clip(0, 1) * 255
    np.testing.assert_allclose(levels, expected, atol=0.5)
    dataset = InkPatches([source_of(volume, [(30, 40)])], 32, seed=0)
    sample = dataset[(0, 0)]
    np.testing.assert_array_equal(
        sample["label"][0], levels[photograph()[30:62, 40:72]].astype(np.float32) / 255
    )
    np.testing.assert_array_equal(sample["valid"][0], volume.papyrus_mask[30:62, 40:72])


def test_one_grey_is_refused(tmp_path):
    flat = prepared_with(tmp_path, np.full(SIZE, 90, np.uint8))
    with pytest.raises(ValueError, match=r"1\.vol is nearly one grey \(90\) on the papyrus"):
        infrared_levels(flat)


def test_bands_at_the_mask_do_not_count_and_none_is_drawn_around_greys(volume):
    dataset = InkPatches(
        [source_of(volume, [(0, 0)])], 64, seed=0, labels=LabelConfig(edge_band=3, mask_band=4)
    )
    expected = np.zeros((64, 64))
    expected[10:, 9:] = 1  # the papyrus begins at 6, 5
    np.testing.assert_array_equal(dataset[(0, 0)]["valid"][0], expected)


def test_greys_are_interpolated_where_labels_are_not():
    grey = photograph((32, 32))
    maps = np.stack([grey, np.ones_like(grey)], axis=-1)
    patch = np.repeat(grey[..., None], 4, axis=2)
    half = own_coordinates(32, 32) + np.float32(0.5)
    moved, labels = warp(patch, maps, lambda _: half, fill=0)
    again, greys = warp(patch, maps, lambda _: half, fill=0, is_grey=True)
    np.testing.assert_array_equal(again, moved)
    inside = np.s_[:31, :31]
    np.testing.assert_array_equal(greys[..., 0][inside], moved[..., 0][inside])
    assert not np.array_equal(labels[..., 0][inside], moved[..., 0][inside])
    assert set(np.unique(labels[..., 0])) <= {0, *np.unique(grey)}
    np.testing.assert_array_equal(greys[..., 1], labels[..., 1])  # the mask stays a mask
    assert greys[:31, -1, 0].min() > 0.9 * grey.min()  # the rim is not mixed with black


def test_augmented_greys_lie_where_the_voxels_lie(tmp_path):
    """A photograph that is a layer of the volume stays equal to it, whatever is done to both."""
    volume = prepared_with(tmp_path, photograph())
    voxels = np.repeat(photograph()[..., None], 14, axis=2)
    np.save(volume.path / "volume.npy", voxels)
    volume = open_prepared(volume.path)
    config = replace(
        AugmentConfig(), brightness_contrast=0, shift_scale_rotate=1, grid_distortion=1
    )
    levels = np.arange(256, dtype=np.uint8)
    source = replace(source_of(volume, [(40, 50)]), levels=levels, offset=0.0, scale=1 / 255)
    dataset = InkPatches([source], 48, seed=0, augment=config)
    for epoch in range(8):
        sample = dataset[(epoch, 0)]
        counts = sample["valid"][0].bool()
        counts[[0, -1]] = counts[:, [0, -1]] = False
        eroded = cv2.erode(counts.numpy().astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert eroded.mean() > 0.1
        difference = (sample["x"][0, 3] - sample["label"][0]).abs().numpy()[eroded]
        assert difference.max() <= 1 / 255 + 1e-6


def test_points_lie_anywhere_on_the_papyrus_of_training_pieces(volume):
    pieces = [
        Piece("1", 6, 60, 5, 144, "train"),
        Piece("1", 90, 128, 5, 144, "train"),
        Piece("1", 60, 90, 5, 144, "validation"),
        Piece("2", 6, 128, 5, 144, "train"),
    ]
    volumes = {"1": volume, "2": replace(volume, ir_image=None)}
    points = sample_infrared(volumes, pieces, 32, 101, seed=4)
    assert list(points) == ["1"]
    y, x = points["1"].T
    assert len(y) == 102
    assert (((y >= 6) & (y + 32 <= 60)) | (y >= 90)).all()
    assert (y + 32 <= 128).all()
    assert (x >= 5).all()
    assert len(set(x.tolist())) > 40
    again, other = (sample_infrared(volumes, pieces, 32, 101, seed=seed)["1"] for seed in (4, 5))
    np.testing.assert_array_equal(again, points["1"])
    assert not np.array_equal(other, points["1"])
    with pytest.raises(ValueError, match="no fragment that is trained on has an infrared"):
        sample_infrared(volumes, pieces[3:], 32, 10, seed=0)
    with pytest.raises(ValueError, match="smaller than a patch of 64"):
        sample_infrared(volumes, pieces, 64, 10, seed=0)


def test_a_source_without_photograph_is_refused(volume):
    source = replace(source_of(volume, [(0, 0)]), volume=replace(volume, ir_image=None))
    with pytest.raises(ValueError, match=r"1\.vol has no infrared photograph"):
        InkPatches([source], 32, seed=0)


def test_the_loss_of_each_task_counts_as_it_has_patches():
    torch.manual_seed(0)
    logits, label = torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    label[:3] = label[:3].round()
    batch = {"x": logits[:, None], "task": torch.tensor([0, 2, 0, 1]), "label": label,
             "valid": (torch.rand_like(label) > 0.2).float()}  # fmt: skip

    def model(x, _task):
        return x[:, 0]

    found, parts = InkLoss(LossConfig(), infrared_task=1)(model, batch)
    ink, ink_parts = LossConfig().make()(logits[:3], label[:3], batch["valid"][:3])
    entropy = MapLoss(LossWeights(dice=0, bce=1), smoothing=0)
    infrared, _ = entropy(logits[3:], label[3:], batch["valid"][3:])
    torch.testing.assert_close(found, 0.75 * ink + 0.25 * infrared)
    torch.testing.assert_close(parts, {**ink_parts, "infrared": infrared})
    alone, parts = InkLoss(LossConfig())(model, batch)
    torch.testing.assert_close(alone, LossConfig().make()(logits, label, batch["valid"])[0])
    assert "infrared" not in parts


def test_the_loss_of_greys_is_least_at_the_greys():
    label = torch.rand(1, 1, 8, 8)
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    valid, task = torch.ones_like(label), torch.tensor([1])
    batch = {"x": label[None], "task": task, "label": label, "valid": valid}
    loss = InkLoss(LossConfig(), infrared_task=1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(lambda *_: logits, batch)[0].backward()
        optimizer.step()
    torch.testing.assert_close(logits.sigmoid(), label, atol=0.02, rtol=0)
