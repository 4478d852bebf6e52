"""Choose 36,000 patches from the real label of fragment 1, on one core.

Run `OMP_NUM_THREADS=1 python benchmarks/sampling.py [SAMPLES]`, where SAMPLES is the folder of real
samples (its default is ../shared/data). Each mixture is drawn in a fresh process, whose peak memory
is stored beside its seconds in benchmarks/results/sampling.json. The label and the mask, 52 million
pixels each, are part of that memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from machine import machine

from core.files import write_json
from vesuvius.folds import Piece
from vesuvius.fragment import read_binary_png
from vesuvius.sampling import SamplingConfig, sample_points

HERE = Path(__file__).parent
OFF = {"bucket_cap": 0, "num_void": 0}
MIXTURES = {
    "24,000 in 400 buckets and 12,000 void": {
        "num_buckets": 400, "bucket_cap": 60, "num_void": 12_000,
    },
    "36,000 edges": OFF | {"num_edges": 36_000},
    "36,000 of every position": OFF | {"num_raw": 36_000},
    "36,000 of a grid of 16 px": OFF | {"num_grid": 36_000, "grid_step": 16},
}  # fmt: skip


def draw(samples: Path, mixture: str) -> dict:
    """Return seconds, patches and peak memory of one draw in this process."""
    cv2.setNumThreads(1)
    label = read_binary_png(samples / "kaggle_fragment_1" / "inklabels.png")
    mask = read_binary_png(samples / "kaggle_fragment_1" / "mask.png")
    piece = Piece("1", 0, label.shape[0], 0, label.shape[1], "train")
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = perf_counter()
    config = SamplingConfig(patch_size=64, **MIXTURES[mixture])
    points = sample_points(label, mask, piece, config, np.random.default_rng(0))
    seconds = perf_counter() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "shape": list(label.shape),
        "num_patches": len(points),
        "seconds": round(seconds, 2),
        "mib_before": round(before_mib),
        "peak_mib": round(peak_mib),
    }


def main() -> None:
    """Measure, print and store; with the name of a mixture, draw it in this process."""
    default = HERE.parents[1] / "shared" / "data"
    samples = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if len(sys.argv) > 2:
        print(json.dumps(draw(samples, sys.argv[2])))
        return
    results = {}
    for mixture in MIXTURES:
        command = [sys.executable, __file__, str(samples), mixture]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[mixture] = json.loads(done.stdout)
        print(f"{mixture}: {results[mixture]}")
    write_json(HERE / "results" / "sampling.json", {"machine": machine(), "draws": results})


if __name__ == "__main__":
    main()
