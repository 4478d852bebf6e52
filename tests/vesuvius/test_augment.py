from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vesuvius.augment import Augmentation, AugmentConfig

NOTHING = {"flip": 0, "rotate90": 0, "brightness_contrast": 0, "noise": 0, "layer_dropout": 0}
EVERYTHING = AugmentConfig(brightness_contrast=0.3, noise=0.1, layer_dropout=2)


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
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)
