"""Time RLE encoding and decoding of a mask as large as fragment 2, on one core.

Run `python benchmarks/rle.py [SAMPLES]`, where SAMPLES is the folder of real samples (its default
is ../shared/data). Prints medians and writes them to benchmarks/results/rle.json.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import numpy as np

from core.files import write_json
from vesuvius.rle import decode, encode
from vesuvius.submission import read_submission

SHAPE = (14830, 9506)  # fragment 2, the largest of the competition
REPEATS = 7
HERE = Path(__file__).parent


def tiled_label(samples: Path) -> np.ndarray:
    """Return the real label of fragment 1, repeated until it fills SHAPE."""
    text = read_submission(samples / "kaggle_fragment_1" / "inklabels_rle.csv")["1"]
    label = decode(text, (8181, 6330))
    return np.tile(label, (2, 2))[: SHAPE[0], : SHAPE[1]].copy()


def random_strokes(num_strokes: int = 60_000) -> np.ndarray:
    """Return short thin strokes all over SHAPE: far more runs than a real label has."""
    rng = np.random.default_rng(0)
    canvas = np.zeros(SHAPE, dtype=np.uint8)
    ends = rng.integers(0, SHAPE[::-1], size=(num_strokes, 2))
    for start, offset in zip(ends, rng.integers(-60, 61, size=(num_strokes, 2)), strict=True):
        cv2.line(canvas, start.tolist(), (start + offset).tolist(), 1, thickness=3)
    return canvas.astype(bool)


def timings(mask: np.ndarray) -> dict:
    """Return the median seconds of encoding and decoding `mask`, checked to be exact."""
    encode_s, decode_s = [], []
    for _ in range(REPEATS):
        start = perf_counter()
        text = encode(mask)
        encoded = perf_counter()
        decoded = decode(text, SHAPE)
        decode_s.append(perf_counter() - encoded)
        encode_s.append(encoded - start)
        if not np.array_equal(decoded, mask):
            raise RuntimeError("decode(encode(mask)) differs from mask")
    return {
        "num_runs": len(text.split()) // 2,
        "encode_s": round(median(encode_s), 3),
        "decode_s": round(median(decode_s), 3),
    }


def main() -> None:
    """Measure, print and store."""
    samples = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "shared" / "data"
    results = {"random strokes": timings(random_strokes())}
    if samples.is_dir():
        results["real label, tiled"] = timings(tiled_label(samples))
    for case, result in results.items():
        print(f"{case}: {result}")
    machine = f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}"
    report = {"shape": SHAPE, "repeats": REPEATS, "machine": machine, "median": results}
    write_json(HERE / "results" / "rle.json", report)


if __name__ == "__main__":
    main()
