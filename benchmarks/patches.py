"""Training patches of 64 x 64 x 64 per second, on one core: plain, and with the seed's changes.

Run `NO_ALBUMENTATIONS_UPDATE=1 OMP_NUM_THREADS=1 python benchmarks/patches.py`. A volume of noise
is prepared and read once, so that the system's cache is warm; seconds are those of the process, so
that other work on the machine counts little. "augmentation alone" leaves out reading and
normalising. Prints medians of several rounds and writes them to benchmarks/results/patches.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time

import albumentations as A
import cv2
import numpy as np
import torch
from machine import machine

from core.files import write_json
from vesuvius.augment import SEED_AUGMENTATION, Augmentation, AugmentConfig
from vesuvius.dataset import InkPatches, PatchSource
from vesuvius.prepared import FORMAT_VERSION, PreparedVolume, open_prepared
from vesuvius.recipes import small

SHAPE = (1500, 1500, 65)
SIZE = 64
ROUNDS = 7
OFF = AugmentConfig(flip=0.0, rotate90=0.0, brightness_contrast=0.0)
CONFIGS = {
    "no augmentation": None,
    "recipe small (flips, quarter turns)": small().augment,
    "seed's list": SEED_AUGMENTATION,
    "seed's list and all changes along z": replace(
        SEED_AUGMENTATION, layer_dropout=2, z_reverse=0.5, z_run=0.5
    ),
    "seed's list, half mixed with another patch": replace(
        SEED_AUGMENTATION, mixup=0.25, cutmix=0.25
    ),
}


def write_volume(folder: Path) -> PreparedVolume:
    """Write a prepared volume of noise."""
    rng = np.random.default_rng(0)
    np.save(folder / "volume.npy", rng.integers(0, 256, size=SHAPE, dtype=np.uint8))
    np.save(folder / "papyrus_mask.npy", np.ones(SHAPE[:2], bool))
    np.save(folder / "ink_label.npy", rng.random(SHAPE[:2]) > 0.7)
    np.save(folder / "layer_histograms.npy", np.ones((SHAPE[2], 256), np.int64))
    info = {"format_version": FORMAT_VERSION, "name": "1", "shape": SHAPE, "has_ink_label": True}
    (folder / "volume.json").write_text(json.dumps(info))
    return open_prepared(folder)


def per_second(make: Callable[[int], object], number: int) -> float:
    """Return how many a second of this process makes, median of rounds."""
    rates = []
    for turn in range(ROUNDS):
        start = process_time()
        for index in range(number):
            make(turn * number + index)
        rates.append(number / (process_time() - start))
    return round(median(rates), 1)


def warps_per_second(patch: np.ndarray, maps: np.ndarray) -> dict[str, float]:
    """Return the rates of a turn and a grid distortion: of coordinates, and of all layers."""
    augment = Augmentation(replace(OFF, shift_scale_rotate=1.0, grid_distortion=1.0), 128)
    direct = A.Compose(
        [
            A.Affine(scale=(0.85, 1.15), translate_percent=(-0.15, 0.15), rotate=(-360, 360), p=1),
            A.GridDistortion(p=1),
        ]
    )
    return {
        "turn and grid distortion, as one warp": per_second(
            lambda i: augment(patch, maps, np.random.default_rng(i)), 150
        ),
        "turn and grid distortion, by albumentations": per_second(
            lambda i: direct(image=patch, mask=maps), 150
        ),
    }


def main() -> None:
    """Measure, print and store."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rates = {}
    with tempfile.TemporaryDirectory() as root:
        volume = write_volume(Path(root))
        corners = np.random.default_rng(1).integers(0, SHAPE[0] - SIZE, size=(5000, 2))
        source = PatchSource(volume, corners.astype(np.int32), 0, SIZE, 128.0, 1 / 40)
        volume.volume.max()
        for name, config in CONFIGS.items():
            dataset = InkPatches([source], SIZE, 0, config)
            number = 300 if config else 2000
            rates[name] = per_second(lambda i, d=dataset: d[divmod(i, 5000)], number)
            print(f"{name}: {rates[name]} patches/s")
        patch = np.ascontiguousarray(volume.volume[:SIZE, :SIZE, :SIZE])
        maps = np.ones((SIZE, SIZE, 2), np.uint8)
        augment = Augmentation(SEED_AUGMENTATION, 128)
        rates["seed's list, augmentation alone"] = per_second(
            lambda i: augment(patch, maps, np.random.default_rng(i)), 300
        )
        rates |= warps_per_second(patch, maps)
    print(rates)
    report = {"patch": [SIZE] * 3, "rounds": ROUNDS, "machine": machine(), "patches_per_s": rates}
    write_json(Path(__file__).parent / "results" / "patches.json", report)


if __name__ == "__main__":
    main()
