from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vesuvius.augment import AugmentConfig
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.mixing import cutmix, mixup
from vesuvius.prepared import FORMAT_VERSION, PreparedVolume, open_prepared

EVERYTHING = AugmentConfig(
    brightness_contrast=0.3, noise=0.1, layer_dropout=2, shift_scale_rotate=0.5, noise_or_blur=0.5,
    grid_distortion=0.5, coarse_dropout=0.5, z_reverse=0.5, z_run=0.5, mixup=0.4, cutmix=0.4,
)  # fmt: skip
NOTHING = AugmentConfig(0, 0, 0)


def write_volume(folder: Path, seed: int, shape: tuple[int, int, int]) -> PreparedVolume:
    """Write a prepared volume of noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    np.save(folder / "volume.npy", rng.integers(0, 256, size=shape, dtype=np.uint8))
    np.save(folder / "papyrus_mask.npy", rng.random(shape[:2]) > 0.2)
    np.save(folder / "ink_label.npy", rng.random(shape[:2]) > 0.7)
    np.save(folder / "layer_histograms.npy", np.ones((shape[2], 256), dtype=np.int64))
    info = {
        "format_version": FORMAT_VERSION,
        "name": folder.stem,
        "shape": shape,
        "has_ink_label": True,
    }
    (folder / "volume.json").write_text(json.dumps(info))
    return open_prepared(folder)


@pytest.fixture
def volumes(tmp_path) -> list[PreparedVolume]:
    return [
        write_volume(tmp_path / "1.vol", 1, (40, 50, 12)),
        write_volume(tmp_path / "2.vol", 2, (60, 30, 10)),
    ]


@pytest.fixture
def sources(volumes) -> list[PatchSource]:
    one = np.array([[0, 0], [24, 34], [3, 7]], dtype=np.int32)
    two = np.array([[44, 14], [5, 6]], dtype=np.int32)
    return [
        PatchSource(volumes[0], one, 2, 8, offset=100.5, scale=1 / 50, task=1),
        PatchSource(volumes[1], two, 4, 10, offset=0.0, scale=1 / 255, task=0),
    ]


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_patches_are_the_voxels_at_their_points(sources):
    dataset = InkPatches(sources, 16, seed=0)
    assert len(dataset) == 5
    expected = [(source, point) for source in sources for point in source.points.tolist()]
    for index, (source, (y, x)) in enumerate(expected):
        sample = dataset[(0, index)]
        volume = source.volume
        patch = volume.volume[y : y + 16, x : x + 16, source.z_start : source.z_stop]
        x_ZYX = (patch.transpose(2, 0, 1).astype(np.float64) - source.offset) * source.scale
        np.testing.assert_allclose(sample["x"][0], x_ZYX, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(sample["label"][0], volume.ink_label[y : y + 16, x : x + 16])
        np.testing.assert_array_equal(
            sample["valid"][0], volume.papyrus_mask[y : y + 16, x : x + 16]
        )
        assert sample["task"] == source.task


def test_clipped_patches_lie_in_0_to_1(sources):
    source = replace(sources[0], is_clipped=True)
    clipped = InkPatches([source], 16, 0)[(0, 1)]["x"]
    plain = InkPatches(sources[:1], 16, 0)[(0, 1)]["x"]
    assert plain.min() < -1
    assert plain.max() > 2
    assert torch.equal(clipped, plain.clamp(0, 1))


def test_shapes_and_types_are_those_of_the_model(sources):
    sample = InkPatches(sources, 16, seed=0, augment=EVERYTHING)[(0, 0)]
    assert {name: (tuple(t.shape), t.dtype) for name, t in sample.items()} == {
        "x": ((1, 6, 16, 16), torch.float32),
        "task": ((), torch.int64),
        "label": ((1, 16, 16), torch.float32),
        "valid": ((1, 16, 16), torch.float32),
    }
    assert all(tensor.is_contiguous() for tensor in sample.values())


def test_a_patch_is_a_function_of_seed_epoch_and_index(sources):
    def make(seed: int) -> InkPatches:
        return InkPatches(sources, 16, seed, EVERYTHING, z_shift=2)

    keys = [(epoch, index) for epoch in range(8) for index in range(5)]
    dataset, other = make(0), make(0)
    first = {key: dataset[key] for key in keys}
    assert all(equal(other[key], first[key]) for key in reversed(keys))
    assert not all(equal(make(1)[key], first[key]) for key in keys)
    assert not all(equal(first[(0, i)], first[(1, i)]) for i in range(5))


def test_the_window_shifts_within_the_volume(sources):
    """Source 0 has layers 2:8 of 12, source 1 has 4:10 of 10: it can only go up to 10."""
    dataset = InkPatches(sources, 16, seed=0, z_shift=3)
    for index, (y, x), allowed in ((0, (0, 0), {-2, -1, 0, 1, 2, 3}), (4, (5, 6), {-3, -2, -1, 0})):
        source = sources[index == 4]
        found = set()
        for epoch in range(60):
            raw = dataset[(epoch, index)]["x"][0].numpy() / source.scale + source.offset
            layers = source.volume.volume[y : y + 16, x : x + 16].transpose(2, 0, 1)
            starts = range(len(layers) - 5)
            z = next(z for z in starts if np.allclose(raw, layers[z : z + 6], atol=1e-3))
            found.add(z - source.z_start)
        assert found == allowed


def test_label_and_mask_move_with_the_voxels(tmp_path):
    """A volume that shows its own label and mask stays in agreement with them."""
    volume = write_volume(tmp_path / "1.vol", 1, (40, 40, 4))
    voxels = np.load(volume.path / "volume.npy", mmap_mode="r+")
    voxels[..., 0] = volume.ink_label
    voxels[..., 1] = volume.papyrus_mask
    source = PatchSource(volume, np.array([[3, 5]], dtype=np.int32), 0, 2, 0.0, 1.0)
    dataset = InkPatches([source], 16, 0, AugmentConfig(brightness_contrast=0))
    for epoch in range(30):
        sample = dataset[(epoch, 0)]
        assert torch.equal(sample["x"][0, 0], sample["label"][0])
        assert torch.equal(sample["x"][0, 1], sample["valid"][0])


def test_blanked_layers_are_zero_for_the_network(sources):
    config = AugmentConfig(0, 0, 0, 0, layer_dropout=1)
    dataset = InkPatches(sources, 16, 0, config)
    smallest = [dataset[(epoch, 0)]["x"].abs().amax(dim=(0, 2, 3)).min() for epoch in range(10)]
    assert min(smallest) <= 0.5 * sources[0].scale  # half an intensity step, by rounding the offset


def pair(one: int, two: int, label: int, size: int = 16) -> list[dict[str, torch.Tensor]]:
    """Return samples of one value each, the first without ink."""
    return [
        {
            "x": torch.full((1, 4, size, size), float(value)),
            "task": torch.tensor(0),
            "label": torch.full((1, size, size), float(ink)),
            "valid": torch.ones(1, size, size),
        }
        for value, ink in ((one, 0), (two, label))
    ]


def test_mixup_weighs_voxels_and_label_alike():
    sample, other = pair(2, 10, 1)
    other["valid"][:, :3] = 0
    mixed = mixup(sample, other, 0.75)
    assert (mixed["x"] == 4).all()
    assert (mixed["label"] == 0.25).all()
    assert torch.equal(mixed["valid"], other["valid"])


@pytest.mark.parametrize(("share", "side"), [(0, 0), (0.25, 8), (0.5, 11), (1, 16)])
def test_cutmix_takes_a_rectangle_with_its_label(share, side):
    sample, other = pair(2, 10, 1)
    other["valid"][:, :, 5] = 0
    corners = set()
    for seed in range(30):
        mixed = cutmix(sample, other, share, np.random.default_rng(seed))
        is_other = mixed["label"][0] == 1
        assert is_other.sum() == side**2
        assert torch.equal(mixed["x"][0] == 10, is_other.expand(4, 16, 16))
        assert torch.equal(mixed["valid"][0] == 0, is_other & (other["valid"][0] == 0))
        if side:
            rows, columns = is_other.any(1).nonzero()[:, 0], is_other.any(0).nonzero()[:, 0]
            assert len(rows) == len(columns) == side
            corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 12 or side in (0, 16)
    assert (sample["x"] == 2).all()


def test_patches_are_mixed_with_others_of_their_task_as_often_as_asked(sources):
    """Of task 1 there are 200 patches, so hardly one meets itself; those of task 0 lie in 0..1."""
    many = np.random.default_rng(0).integers(0, 24, size=(200, 2)).astype(np.int32)
    sources = [replace(sources[0], points=many), sources[1]]
    config = replace(NOTHING, mixup=0.3, cutmix=0.2)
    dataset, plain = InkPatches(sources, 16, 0, config), InkPatches(sources, 16, 0)
    kinds = {"plain": 0, "mixup": 0, "cutmix": 0}
    for key in ((epoch, index) for epoch in (0, 1) for index in range(200)):
        sample, alone = dataset[key], plain[key]
        is_cut = set(sample["label"].unique().tolist()) <= {0.0, 1.0}
        is_plain = equal(sample, alone)
        kinds["plain" if is_plain else "cutmix" if is_cut else "mixup"] += 1
    np.testing.assert_allclose([*kinds.values()], [200, 120, 80], atol=35)
    for key in ((epoch, index) for epoch in range(20) for index in (200, 201)):
        sample = dataset[key]
        assert sample["task"] == 0
        assert 0 <= sample["x"].min() <= sample["x"].max() <= 1


def test_a_pickled_dataset_is_small_and_the_same(sources):
    dataset = InkPatches(sources, 16, 0, EVERYTHING)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3_000  # the volumes alone have 42,000 voxels
    assert equal(pickle.loads(pickled)[(3, 4)], dataset[(3, 4)])


def test_workers_give_the_same_patches(sources):
    dataset = InkPatches(sources, 16, 0, EVERYTHING, z_shift=1)
    keys = [(2, index) for index in (4, 0, 3, 1)]
    loader = DataLoader(
        dataset, batch_size=2, sampler=keys, num_workers=1, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert [batch["x"].shape for batch in batches] == [(2, 1, 6, 16, 16)] * 2
    for number, key in enumerate(keys):
        sample = {name: t[number % 2] for name, t in batches[number // 2].items()}
        assert equal(sample, dataset[key])


def test_what_does_not_fit_is_refused(volumes, sources):
    far = np.array([[25, 0]], dtype=np.int32)
    volume = volumes[0]
    cases = [
        ([], None, "no patches to draw from"),
        ([PatchSource(volume, far[:0], 0, 6, 0.0, 1.0)], None, "no patches to draw from"),
        ([PatchSource(volume, far, 0, 6, 0.0, 1.0)], None, r"16 px lies outside .*1\.vol, .*40 x"),
        ([PatchSource(volume, far - 26, 0, 6, 0.0, 1.0)], None, r"lies outside .*1\.vol"),
        ([PatchSource(volume, far - 9, 8, 14, 0.0, 1.0)], None, r"layers 8:14 .*1\.vol, which has"),
        ([sources[0], PatchSource(volume, far - 9, 0, 5, 0.0, 1.0)], None, r"\[5, 6\] layers"),
        (sources, AugmentConfig(layer_dropout=6), "layer_dropout 6 would blank all 6 layers"),
    ]
    for bad, augment, message in cases:
        with pytest.raises(ValueError, match=message):
            InkPatches(bad, 16, 0, augment)
    dataset = InkPatches(sources, 16, 0)
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"patch {index} of 5"):
            dataset[(0, index)]


def test_a_volume_without_label_is_refused(tmp_path):
    volume = write_volume(tmp_path / "1.vol", 1, (40, 40, 4))
    info = json.loads((volume.path / "volume.json").read_text())
    (volume.path / "volume.json").write_text(json.dumps(info | {"has_ink_label": False}))
    source = PatchSource(
        open_prepared(volume.path), np.zeros((1, 2), dtype=np.int32), 0, 4, 0.0, 1.0
    )
    with pytest.raises(ValueError, match=r"1\.vol has no ink label"):
        InkPatches([source], 16, 0)
