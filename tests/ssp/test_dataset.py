"""Patches depend on seed, epoch and index alone, and show what is in the volumes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from ssp.augment import Augmentation, _warp
from ssp.dataset import CellPatches
from ssp.prepared import Image, Volume

PATCH = (4, 8, 8)


@pytest.fixture
def make_image(tmp_path):
    """Writes an image whose signal counts its voxels from 1 and whose target is that, negative."""

    def make(shape, name="a", task="dna", is_2d=False, start=1):
        signal = np.arange(start, start + np.prod(shape), dtype=np.float16).reshape(shape)
        target = -signal.max(axis=0) if is_2d else -signal
        volumes = []
        for kind, voxels in (("signal", signal), ("target", target)):
            np.save(tmp_path / f"{name}-{kind}.npy", voxels)
            size = (0.29, 0.29, 0.29)
            path = tmp_path / f"{name}-{kind}.npy"
            volumes.append(Volume(path, voxels.shape, size, 0, 1, "x", 0, shape, size))
        return Image(name, task, "train", *volumes)

    return make


def test_a_patch_is_a_pure_function_of_seed_epoch_and_index(make_image):
    images = [make_image((9, 12, 14), str(i)) for i in range(2)]
    patches = CellPatches(images, ["dna"], PATCH, seed=3)
    assert len(patches) == 2
    again = pickle.loads(pickle.dumps(CellPatches(images, ["dna"], PATCH, seed=3)))
    [again[key] for key in ((5, 0), (0, 1))]
    for key in ((0, 0), (4, 1)):
        for name, value in patches[key].items():
            assert torch.equal(value, again[key][name])
    other = CellPatches(images, ["dna"], PATCH, seed=4)
    drawn = [patches[0, 0], patches[1, 0], other[0, 0]]
    assert len({tuple(sample["x"].flatten().tolist()) for sample in drawn}) == 3


def test_patches_are_crops_flipped_along_every_axis_in_signal_and_target_alike(make_image):
    patches = CellPatches([make_image((9, 12, 14))], ["tom20", "dna"], PATCH)
    flips = set()
    for epoch in range(200):
        sample = patches[epoch, 0]
        assert sample["x"].shape == sample["label"].shape == sample["valid"].shape == (1, *PATCH)
        assert sample["x"].dtype == sample["label"].dtype == sample["valid"].dtype == torch.float32
        assert (sample["task"].dtype, int(sample["task"])) == (torch.int64, 1)
        x = sample["x"][0]
        assert torch.equal(sample["label"][0], -x)
        assert sample["valid"].min() == 1
        steps = x[1, 0, 0] - x[0, 0, 0], x[0, 1, 0] - x[0, 0, 0], x[0, 0, 1] - x[0, 0, 0]
        assert [abs(step) for step in steps] == [12 * 14, 14, 1]
        flips.add(tuple(bool(step < 0) for step in steps))
    assert len(flips) == 8


def test_flips_can_be_left_out_and_starts_cover_the_image(make_image):
    patches = CellPatches([make_image((5, 9, 9))], ["dna"], PATCH, flips=False)
    starts = {float(patches[epoch, 0]["x"][0, 0, 0, 0]) for epoch in range(100)}
    assert starts == {1 + z * 81 + y * 9 + x for z in (0, 1) for y in (0, 1) for x in (0, 1)}


def test_an_image_smaller_than_a_patch_is_followed_by_zeros(make_image):
    patches = CellPatches([make_image((2, 20, 5))], ["dna"], PATCH)
    for epoch in range(20):
        sample = patches[epoch, 0]
        assert sample["valid"][0, :2, :, :5].min() == 1
        assert sample["valid"].sum() == 2 * 8 * 5
        assert torch.equal(sample["x"] > 0, sample["valid"] > 0)
        assert torch.equal(sample["label"], -sample["x"])


def test_a_2d_target_is_cut_with_its_signal_which_is_not_flipped_along_z(make_image):
    patches = CellPatches([make_image((3, 12, 14), is_2d=True)], ["dna"], PATCH)
    flips = set()
    for epoch in range(50):
        sample = patches[epoch, 0]
        assert sample["x"].shape == (1, *PATCH)
        assert sample["label"].shape == sample["valid"].shape == (1, 8, 8)
        assert torch.equal(sample["label"][0], -sample["x"][0].amax(0))
        flips.add(bool(sample["x"][0, 0, 0, 0] > sample["x"][0, 0, 1, 0]))
        assert sample["x"][0, 0, 0, 0] < sample["x"][0, 1, 0, 0]
    assert len(flips) == 2  # along Y


@pytest.mark.parametrize("is_2d", [False, True])
def test_quarter_turns_turn_signal_and_target_alike_in_their_planes(make_image, is_2d):
    image = make_image((4, 8, 8), is_2d=is_2d)
    options = {"patch_size": PATCH, "flips": False, "augment": Augmentation(quarter_turns=True)}
    patches = CellPatches([image], ["dna"], **options)
    signal = torch.from_numpy(image.signal.open().astype(np.float32))
    target = torch.from_numpy(image.target.open().astype(np.float32))
    turns = set()
    for epoch in range(40):
        sample = patches[epoch, 0]
        fits = [torch.equal(sample["x"][0], torch.rot90(signal, n, (1, 2))) for n in range(4)]
        assert sum(fits) == 1
        turns.add(fits.index(True))
        assert torch.equal(sample["label"][0], torch.rot90(target, fits.index(True), (-2, -1)))
    assert turns == {0, 1, 2, 3}


def test_jitter_and_noise_change_the_signal_inside_its_image_and_no_target(make_image):
    image = make_image((3, 6, 6))
    plain = CellPatches([image], ["dna"], PATCH)
    for augment in (Augmentation(jitter=0.3), Augmentation(noise=0.3)):
        patches = CellPatches([image], ["dna"], PATCH, augment=augment)
        offsets = set()
        for epoch in range(20):
            sample, same = patches[epoch, 0], plain[epoch, 0]
            assert torch.equal(sample["label"], same["label"])
            inside = same["valid"] > 0
            assert torch.equal(sample["x"][~inside], same["x"][~inside])
            x, before = sample["x"][inside], same["x"][inside]
            assert not torch.equal(x, before)
            if augment.jitter:  # a factor and an offset
                line = np.polyfit(before.numpy(), x.numpy(), 1)
                np.testing.assert_allclose(np.polyval(line, before), x, rtol=1e-3, atol=1e-3)
            else:
                assert 0 < (x - before).std() < 0.4
            offsets.add(float((x - before)[0]))
        assert len(offsets) == 20


def slopes(sample, name) -> np.ndarray:
    """What a plane of a patch rises by along Y and X, fitted where it counts: all of it a plane."""
    plane = sample[name][0].reshape(-1, *sample[name].shape[-2:])[0].numpy()
    inside = sample["valid"][0].reshape(-1, *plane.shape)[0].numpy() > 0
    places = np.stack([*np.nonzero(inside), np.ones(inside.sum())], axis=1)
    found, *_ = np.linalg.lstsq(places, plane[inside])
    np.testing.assert_allclose(places @ found, plane[inside], atol=0.05)
    return found[:2]


@pytest.mark.parametrize("is_2d", [False, True])
@pytest.mark.parametrize("patch", [(3, 16, 16), (3, 12, 20)])
def test_spin_and_zoom_turn_and_enlarge_signal_and_target_alike(make_image, patch, is_2d):
    image = make_image(patch, is_2d=is_2d)
    augment = Augmentation(spin=True, zoom=1.5)
    patches = CellPatches([image], ["dna"], patch, flips=False, augment=augment)
    before = np.array([patch[2], 1.0])
    zooms, angles = [], []
    for epoch in range(40):
        sample = patches[epoch, 0]
        after = slopes(sample, "x")
        np.testing.assert_allclose(slopes(sample, "label"), -after, atol=0.01)
        zooms.append(np.linalg.norm(before) / np.linalg.norm(after))
        angles.append(np.arctan2(*after))
    assert 0.66 < min(zooms) < 0.8
    assert 1.2 < max(zooms) < 1.51
    assert all(np.histogram(angles, 4, (-np.pi, np.pi))[0] > 3)


def test_stretch_lengthens_along_one_axis_what_it_shortens_along_the_other(make_image):
    augment = Augmentation(stretch=1.5)
    patches = CellPatches([make_image(PATCH)], ["dna"], PATCH, flips=False, augment=augment)
    factors = []
    for epoch in range(30):
        along_y, along_x = slopes(patches[epoch, 0], "x") / [PATCH[2], 1]
        assert along_y * along_x == pytest.approx(1, abs=0.01)
        factors.append(along_x)
    assert 0.66 < min(factors) < 0.9
    assert 1.1 < max(factors) < 1.51


def test_planes_are_warped_as_scipy_does():
    rng = np.random.default_rng(0)
    planes, source = rng.normal(size=(1, 2, 12, 20)), np.array([[0.8, -0.5], [0.3, 1.1]])
    backwards = source[::-1, ::-1]  # scipy's axes are Y X
    middle = (np.array(planes.shape[2:]) - 1) / 2
    shift = middle - backwards @ middle

    def slow(plane):
        return affine_transform(plane, backwards, shift, order=1, mode="grid-constant")

    expected = np.stack([slow(plane) for plane in planes[0]])[None]
    np.testing.assert_allclose(_warp(torch.from_numpy(planes), source, False), expected, atol=1e-9)
    mask = _warp(torch.ones(1, 12, 20), source, True)[0].numpy()
    np.testing.assert_array_equal(mask, slow(np.ones((12, 20))) > 0.999)
    assert 0.2 < mask.mean() < 0.95


def test_augmentation_that_cannot_be_is_refused(make_image):
    for name in ("zoom", "stretch"):
        with pytest.raises(ValueError, match=rf"patches\.augment\.{name} is 0.5; give 1 \(none\)"):
            Augmentation(**{name: 0.5})
    for name in ("jitter", "noise"):
        with pytest.raises(ValueError, match=rf"patches\.augment\.{name} is -1; give 0 \(none\)"):
            Augmentation(**{name: -1})
    turned = Augmentation(quarter_turns=True)
    with pytest.raises(ValueError, match=r"patches of 8 x 9 \(Y x X\) cannot be turned; give"):
        CellPatches([make_image((9, 12, 14))], ["dna"], (4, 8, 9), augment=turned)


def test_images_that_cannot_be_used_are_named(make_image):
    with pytest.raises(ValueError, match=r"a is of task 'dna'; known are tom20, zo1"):
        CellPatches([make_image((5, 9, 9))], ["tom20", "zo1"])
    with pytest.raises(ValueError, match=r"a has 5 planes but a patch 4; .* patch of 5 or more"):
        CellPatches([make_image((5, 9, 9), is_2d=True)], ["dna"], PATCH)
    mixed = [make_image((4, 9, 9), "a", is_2d=True), make_image((4, 9, 9), "b")]
    with pytest.raises(ValueError, match="stacks and others single planes"):
        CellPatches(mixed, ["dna"], PATCH)
    with pytest.raises(IndexError, match="patch 1 of 1"):
        CellPatches([make_image((5, 9, 9))], ["dna"], PATCH)[0, 1]
