"""The patches of the first recipes stay what they were, to the last bit.

The hashes were made by `python -m tests.vesuvius.test_golden_patches` at version 0.1.0, before
sampling and augmentation gained options. A change that is meant to alter these patches runs it
again and says so in the changelog.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.vesuvius.test_dataset import write_volume
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.folds import Piece
from vesuvius.inkmap import Window
from vesuvius.recipes import RECIPES, InkRecipe
from vesuvius.sampling import sample_fragments

SHAPE = (300, 280, 66)
GOLDEN = {
    "small": "dc5d9dfe1074c74c79c775fadf6426396ad08bbe0378c85f6ff87bee2bda2e1c",
    "buckets": "225b9829b9d49dc1e9b0a7237087db5bccd543f57a011607111ce7d0933707ef",
}


def patches_hash(recipe: InkRecipe, folder: Path) -> str:
    """Return a hash of the points of a fragment and of its first patches in two epochs."""
    volume = write_volume(folder, 5, SHAPE)
    label = np.zeros(SHAPE[:2], np.uint8)
    for x, width in ((40, 6), (100, 20), (190, 45)):
        cv2.line(label, (x, 20), (x + 30, 270), 1, width)
    np.save(folder / "ink_label.npy", label.astype(bool))
    piece = Piece("1", 10, 290, 0, 280, "train")
    volumes = {"1": type(volume)(**vars(volume) | {"ink_label": label.astype(bool)})}
    points = sample_fragments(volumes, [piece], recipe.sampling, seed=3)["1"]
    window = Window.of(volume.statistics, recipe.window)
    source = PatchSource(volumes["1"], points, **asdict(window))
    dataset = InkPatches([source], 64, 3, recipe.augment, recipe.window.z_shift)
    digest = hashlib.sha256(points.astype("<i4").tobytes())
    for key in ((epoch, index) for epoch in (0, 1) for index in range(0, 40, 3)):
        for tensor in dataset[key].values():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_patches_of_a_recipe_stay_bit_for_bit(name, tmp_path):
    assert patches_hash(RECIPES[name](), tmp_path / "1.vol") == GOLDEN[name]


if __name__ == "__main__":
    import tempfile

    for recipe_name in GOLDEN:
        with tempfile.TemporaryDirectory() as root:
            print(recipe_name, patches_hash(RECIPES[recipe_name](), Path(root) / "1.vol"))
