"""Training patches of 32 x 128 x 128 per second, on one core, out of prepared volumes.

Run `OMP_NUM_THREADS=1 python benchmarks/ssp_patches.py`. Volumes of noise, of the size of the
official images after resampling, are stored as `ssp prepare` stores them and read once, so that the
system's cache is warm; seconds are those of the process, so that other work on the machine counts
little. Prints medians of several rounds and writes them to benchmarks/results/ssp_patches.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch
from machine import machine

from core.files import write_json
from ssp.dataset import PATCH_SIZE, CellPatches
from ssp.prepared import DTYPE, Image, Volume

SHAPE = (65, 232, 344)
NUM_IMAGES = 8
PATCHES = 100
ROUNDS = 7


def write_image(folder: Path, number: int) -> Image:
    """Store a signal and a target of noise."""
    rng = np.random.default_rng(number)
    volumes = []
    for kind in ("signal", "target"):
        path = folder / f"{number}-{kind}.npy"
        np.save(path, rng.standard_normal(SHAPE, np.float32).astype(DTYPE))
        volumes.append(Volume(path, SHAPE, None, 0.0, 1.0, "noise", 0, SHAPE, None))
        volumes[-1].open().max()
    return Image(str(number), "dna", "train", *volumes)


def per_second(patches: CellPatches) -> float:
    """Return how many patches a second of this process makes, median of rounds."""
    rates = []
    for epoch in range(ROUNDS):
        start = process_time()
        for index in range(PATCHES):
            patches[epoch * PATCHES + index, index % len(patches)]
        rates.append(PATCHES / (process_time() - start))
    return round(median(rates), 1)


def main() -> None:
    """Measure, print and store."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        images = [write_image(Path(root), number) for number in range(NUM_IMAGES)]
        rates = {
            name: per_second(CellPatches(images, ["dna"], flips=flips))
            for name, flips in (("with flips", True), ("without flips", False))
        }
    print(rates)
    report = {"patch": list(PATCH_SIZE), "volume": list(SHAPE), "rounds": ROUNDS}
    report |= {"machine": machine(), "patches_per_s": rates}
    write_json(Path(__file__).parent / "results" / "ssp_patches.json", report)


if __name__ == "__main__":
    main()
