from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vesuvius.augment import SEED_AUGMENTATION, Augmentation, AugmentConfig

NOTHING = {"flip": 0, "rotate90": 0, "brightness_contrast": 0, "noise": 0, "layer_dropout": 0}
EVERYTHING = replace(
    SEED_AUGMENTATION, noise=0.1, layer_dropout=2, z_reverse=0.5, z_run=0.5
)  # fmt: skip


@pytest.fixture
def patch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(8, 8, 6), dtype=np.uint8)


@pytest.fixture
def maps() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, size=(8, 8, 2), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def orientations(array: np.ndarray) -> list[bytes]:
    """The eight mirror images and turns of (Y, X, ...)."""
    turned = [np.rot90(array, k) for k in range(4)]
    return [a.tobytes() for t in turned for a in (t, t[:, ::-1])]


def test_with_nothing_on_the_patch_stays_as_it_is(patch, maps):
    augment = Augmentation(AugmentConfig(**NOTHING), fill=0)
    for seed in range(20):
        changed = augment(patch, maps, rng(seed))
        np.testing.assert_array_equal(changed[0], patch)
        np.testing.assert_array_equal(changed[1], maps)


def test_all_eight_orientations_occur_and_maps_move_with_the_voxels(patch, maps):
    augment = Augmentation(AugmentConfig(**NOTHING | {"flip": 0.5, "rotate90": 0.5}), fill=0)
    voxels, labels = orientations(patch), orientations(maps)
    seen = set()
    for seed in range(200):
        changed = augment(patch, maps, rng(seed))
        number = voxels.index(changed[0].tobytes())
        assert changed[1].tobytes() == labels[number]
        seen.add(number)
    assert seen == set(range(8))


def test_the_two_flips_are_drawn_apart(patch, maps):
    augment = Augmentation(AugmentConfig(**NOTHING | {"flip": 0.5}), fill=0)
    results = [augment(patch, maps, rng(seed))[0].tobytes() for seed in range(200)]
    counts = [results.count(result) for result in set(results)]
    assert len(counts) == 4
    assert min(counts) > 25


@pytest.mark.parametrize("field", ["brightness_contrast", "noise"])
def test_changes_of_intensity_leave_the_maps_alone(patch, maps, field):
    augment = Augmentation(AugmentConfig(**NOTHING | {field: 0.2}), fill=0)
    num_changed = 0
    for seed in range(100):
        changed = augment(patch, maps, rng(seed))
        assert changed[0].dtype == np.uint8
        np.testing.assert_array_equal(changed[1], maps)
        num_changed += not np.array_equal(changed[0], patch)
    assert 30 < num_changed < 70


def test_layer_dropout_fills_whole_layers(patch, maps):
    augment = Augmentation(AugmentConfig(**NOTHING | {"layer_dropout": 2}), fill=77)
    blanked = set()
    for seed in range(100):
        changed, _ = augment(patch, maps, rng(seed))
        is_blank = (changed == 77).all(axis=(0, 1))
        np.testing.assert_array_equal(changed[..., ~is_blank], patch[..., ~is_blank])
        blanked.add(int(is_blank.sum()))
    assert blanked == {0, 1, 2}


@pytest.mark.parametrize("kind", ["noise_or_blur", "coarse_dropout", "z_reverse", "z_run"])
def test_a_change_happens_as_often_as_asked(patch, maps, kind):
    augment = Augmentation(AugmentConfig(**NOTHING | {kind: 0.3, "least_run": 0.4}), fill=0)
    changed = [not np.array_equal(augment(patch, maps, rng(i))[0], patch) for i in range(200)]
    assert 0.18 < np.mean(changed) < 0.4


def test_a_hole_is_blank_and_does_not_count(patch):
    config = AugmentConfig(**NOTHING | {"coarse_dropout": 1, "max_hole": 0.5})
    augment, maps = Augmentation(config, fill=77), np.ones((8, 8, 2), np.uint8)
    sides = set()
    for seed in range(50):
        changed, found = augment(patch, maps, rng(seed))
        is_hole = (changed == 77).all(axis=2)
        np.testing.assert_array_equal(found, np.repeat(~is_hole[..., None], 2, axis=2))
        np.testing.assert_array_equal(changed[~is_hole], patch[~is_hole])
        sides |= {int(is_hole.any(axis=0).sum()), int(is_hole.any(axis=1).sum())}
    assert max(sides) in (3, 4)  # sizes are rounded down


def test_reversal_and_runs_move_layers_alone(patch, maps):
    reversing = Augmentation(AugmentConfig(**NOTHING | {"z_reverse": 1}), fill=0)
    voxels, found = reversing(patch, maps, rng())
    np.testing.assert_array_equal(voxels, patch[..., ::-1])
    np.testing.assert_array_equal(found, maps)


def test_what_happens_follows_from_the_generator_alone(patch, maps):
    augment = Augmentation(EVERYTHING, fill=0)
    first = [augment(patch, maps, rng(seed))[0] for seed in range(20)]
    again = [Augmentation(EVERYTHING, fill=0)(patch, maps, rng(seed))[0] for seed in range(20)]
    backwards = [augment(patch, maps, rng(seed))[0] for seed in reversed(range(20))][::-1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, backwards)


def test_the_given_arrays_are_not_changed(patch, maps):
    before = patch.copy(), maps.copy()
    augment = Augmentation(EVERYTHING, fill=0)
    for seed in range(20):
        augment(patch, maps, rng(seed))
    np.testing.assert_array_equal(patch, before[0])
    np.testing.assert_array_equal(maps, before[1])


def test_importing_the_module_does_not_import_albumentations():
    code = "import sys, vesuvius.augment; sys.exit('albumentations' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": 1.5}, r"augment\.flip is 1\.5; it lies in 0\.\.1"),
        ({"noise": -0.1}, r"augment\.noise is -0\.1"),
        ({"layer_dropout": -1}, r"augment\.layer_dropout is -1"),
        ({"z_run": 2}, r"augment\.z_run is 2; it lies in 0\.\.1"),
        ({"least_run": 0}, r"augment\.least_run is 0; it is above 0, up to 1"),
        ({"max_scale": 1}, r"augment\.max_scale is 1; it is 0 up to below 1"),
        ({"max_rotation": -5}, r"augment\.max_rotation is -5; it lies in 0\.\.360"),
        ({"mix_alpha": 0}, r"augment\.mix_alpha is 0; it is above 0"),
        ({"mixup": 0.6, "cutmix": 0.5}, r"mixup 0\.6 and augment\.cutmix 0\.5 exclude each other"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)
