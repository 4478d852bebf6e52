"""The biggest fragment of the competition, simulated, through every command: memory and time.

14830 x 9506 x 65 voxels of 16 bits, 18.3 GB, are simulated in bands, predicted with a small model
trained for a moment, and prepared (9.2 GB more). A full pass would take hours on two cores, so
predictions are of a subset of the tiles: those that touch a few bands of rows. Every tile row is
read and held at full width and depth, as in a full pass. Results are stored after each command;
everything made is deleted at the end, the layers as soon as they are used.

    python benchmarks/fragment_2.py --work FOLDER

needs 29 GB of disk. Another --size tries it out and stores nothing.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from PIL import Image
from resident import LIMIT_MIB, measure

from core.files import write_json

SIZE = (14830, 9506)
NUM_LAYERS = 65
STRIDE = 64
VIEWS = ("--tta", "--tta-reversed", "--tta-z-shift", "1")  # 48


def write_bands(path: Path, size: tuple[int, int], num_bands: int, columns: int) -> None:
    """Write a mask of bands of 64 rows, spread evenly, each of which two tile rows touch."""
    mask = np.zeros(size, np.uint8)
    left = (size[1] - columns) // 2 // STRIDE * STRIDE
    for middle in np.linspace(0, size[0], 2 * num_bands + 1).astype(int)[1::2].tolist():
        top = middle // STRIDE * STRIDE
        mask[top : top + STRIDE, left : left + columns] = 255
    Image.fromarray(mask).save(path)


def train(work: Path) -> dict[str, Any]:
    """Train the small recipe for one short epoch on one small fragment."""
    simulated = ["simulate", work / "train" / "1", "--size", "512", "512", "--layers", NUM_LAYERS]
    measure("-m", "vesuvius", *map(str, simulated))
    measure("-m", "vesuvius", "prepare", work / "train" / "1", "--out", work / "train" / "data")
    return measure(
        "-m", "vesuvius", "train", "small", "--data", work / "train" / "data", "--out",
        work / "model", "--training.epochs", "1", "--sampling.bucket-cap", "4",
        "--sampling.num-void", "8",
    )  # fmt: skip


def commands(work: Path, size: tuple[int, int]) -> dict[str, list[str | Path]]:
    """Return what is run on the fragment, by name."""
    predict = ["predict", work / "model"]
    layers, prepared = work / "2", work / "data" / "2.vol"
    bands, few = ["--mask", work / "bands.png"], ["--mask", work / "few.png"]
    shard = [*predict, layers, "--out", work / "shards", *bands, "--shard"]
    return {
        "simulate": [
            "simulate", layers, "--size", *map(str, size), "--layers", str(NUM_LAYERS),
            "--seed", "2",
        ],
        "predict from TIFF layers": [*predict, layers, "--out", work / "whole", *bands],
        "shard 1/2": [*shard, "1/2"],
        "shard 2/2": [*shard, "2/2"],
        "merge of the shards": shard[:-1],
        "predict through 48 views": [*predict, layers, "--out", work / "views", *few, *VIEWS],
        "prepare": ["prepare", layers, "--out", work / "data"],
        "predict from the prepared volume": [*predict, prepared, "--out", work / "vol", *bands],
        "submit": ["submit", work / "whole", "--out", work / "submission.csv"],
    }  # fmt: skip


def main() -> None:
    """Train, run every command, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    parser.add_argument("--bands", type=int, default=4, help="bands of rows that are predicted")
    parser.add_argument("--columns", type=int, default=SIZE[1], help="of each band")
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    work, size = options.work, tuple(options.size)
    columns = min(options.columns, size[1])
    work.mkdir(parents=True)
    result = {
        "what": "a simulated fragment 2 through every command; predictions of a subset of tiles",
        "shape_ZYX": [NUM_LAYERS, *size],
        "bytes_of_layers": NUM_LAYERS * size[0] * size[1] * 2,
        "tiles": f"128 x 128 every 64 on {options.bands} bands of 64 rows and {columns} columns",
        "tiles_of_48_views": "128 x 128 every 64 on a square of 64 x 64",
        "limit_mib": LIMIT_MIB,
        "note": options.note,
        "machine": machine(),
    }
    measured: dict[str, dict[str, Any]] = {}
    try:
        measured["train on 512 x 512"] = train(work)
        write_bands(work / "bands.png", size, options.bands, columns)
        write_bands(work / "few.png", size, 1, STRIDE)
        for name, command in commands(work, size).items():
            measured[name] = measure("-m", "vesuvius", *command)
            print(name, measured[name], flush=True)
            result["commands"] = measured
            result["most_private_mib"] = max(each["peak_private_mib"] for each in measured.values())
            if name == "prepare":
                shutil.rmtree(work / "2")
            if size == SIZE:
                write_json(Path(__file__).parent / "results" / "fragment_2.json", result)
        probs = [work / out / "prob.tif" for out in ("whole", "shards", "vol")]
        result["same_bits_whole_shards_prepared"] = all(
            filecmp.cmp(probs[0], other, shallow=False) for other in probs[1:]
        )
    finally:
        shutil.rmtree(work)
    if size == SIZE:
        write_json(Path(__file__).parent / "results" / "fragment_2.json", result)
    print(result)


if __name__ == "__main__":
    main()
