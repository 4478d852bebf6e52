"""The biggest fragment of the competition, simulated, through every command: memory and time.

14830 x 9506 x 65 voxels of 16 bits, 18.3 GB, are simulated in bands, predicted with the network of
the recipe `small`, whose weights are random, and prepared (9.2 GB more). A full pass would take
hours on two cores, so predictions are of a subset of the tiles: those that touch a few bands of
rows. Every tile row is read and held at full width and depth, as in a full pass. Results are stored
after each command; everything made is deleted at the end, the layers as soon as they are used.

    python benchmarks/fragment_2.py --work FOLDER

needs 29 GB of disk. Another --size tries it out and stores nothing. With --empty the layers are
holes in the disk but for the bands, and neither simulated nor prepared: the memory of predictions
at full size within minutes, stored apart.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from machine import machine
from PIL import Image
from resident import LIMIT_MIB, measure
from untrained import write_untrained

from core.files import write_json
from vesuvius.recipes import small

SIZE = (14830, 9506)
NUM_LAYERS = 65
STRIDE = 64
OF_VOXELS = ("simulate", "prepare", "predict from the prepared volume")
VIEWS = ("--tta", "--tta-reversed", "--tta-z-shift", "1", "--z-start", "24")  # 48


def band_starts(height: int, num_bands: int) -> list[int]:
    """Return where bands of 64 rows begin, spread evenly, each of which two tile rows touch."""
    middles = np.linspace(0, height, 2 * num_bands + 1).astype(int)[1::2]
    return [middle // STRIDE * STRIDE for middle in middles.tolist()]


def write_bands(path: Path, size: tuple[int, int], num_bands: int, columns: int) -> None:
    """Write a mask of bands, in the middle columns."""
    mask = np.zeros(size, np.uint8)
    left = (size[1] - columns) // 2 // STRIDE * STRIDE
    for top in band_starts(size[0], num_bands):
        mask[top : top + STRIDE, left : left + columns] = 255
    Image.fromarray(mask).save(path)


def write_empty(folder: Path, size: tuple[int, int], num_bands: int) -> None:
    """Write layers of zeros that take no disk, with noise in bands."""
    (folder / "surface_volume").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 2**16, (STRIDE, size[1]), np.uint16)
    for z in range(NUM_LAYERS):
        path = folder / "surface_volume" / f"{z:02}.tif"
        layer = tifffile.memmap(path, shape=size, dtype=np.uint16)
        for top in [*band_starts(size[0], num_bands), *band_starts(size[0], 1)]:
            layer[top : top + STRIDE] = np.roll(noise, z)
        layer.flush()
    Image.fromarray(np.full(size, 255, np.uint8)).save(folder / "mask.png")


def commands(work: Path, size: tuple[int, int]) -> dict[str, list[str | Path]]:
    """Return what is run on the fragment, by name."""
    predict = ["predict", work / "small.safetensors"]
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
    """Run every command, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    parser.add_argument("--bands", type=int, default=4, help="bands of rows that are predicted")
    parser.add_argument("--columns", type=int, default=SIZE[1], help="of each band")
    parser.add_argument("--empty", action="store_true", help="layers without voxels")
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    work, size = options.work, tuple(options.size)
    columns, name = min(options.columns, size[1]), "fragment_2" + "_empty" * options.empty
    result = {
        "what": "a fragment of the size of Kaggle's fragment 2; predictions of some of its tiles",
        "layers": "holes but for bands of noise" if options.empty else "simulated",
        "shape_ZYX": [NUM_LAYERS, *size],
        "bytes_of_layers": NUM_LAYERS * size[0] * size[1] * 2,
        "tiles": f"128 x 128 every 64 on {options.bands} bands of 64 rows and {columns} columns",
        "tiles_of_48_views": "128 x 128 every 64 on a square of 64 x 64",
        "limit_mib": LIMIT_MIB,
        "note": options.note,
        "machine": machine(),
    }
    work.mkdir(parents=True)
    try:
        write_bands(work / "bands.png", size, options.bands, columns)
        write_bands(work / "few.png", size, 1, STRIDE)
        write_untrained(work / "small.safetensors", small())
        todo = commands(work, size)
        if options.empty:
            write_empty(work / "2", size, options.bands)
            todo = {name: command for name, command in todo.items() if name not in OF_VOXELS}
        for measured in measure_all(todo, work):
            result |= measured
            if size == SIZE:
                write_json(Path(__file__).parent / "results" / f"{name}.json", result)
    finally:
        shutil.rmtree(work)
    print(result)


def measure_all(todo: dict[str, list[str | Path]], work: Path) -> Iterator[dict[str, Any]]:
    """Run commands; yield what is known after each. What is no longer needed is deleted."""
    measured: dict[str, dict[str, Any]] = {}
    for name, command in todo.items():
        measured[name] = measure("-m", "vesuvius", *command)
        print(name, measured[name], flush=True)
        if name == "prepare":
            shutil.rmtree(work / "2")
        most = max(each["peak_private_mib"] for each in measured.values())
        yield {"commands": measured, "most_private_mib": most}
    probs = [work / out / "prob.tif" for out in ("shards", "vol")]
    same = [filecmp.cmp(work / "whole" / "prob.tif", p, False) for p in probs if p.exists()]
    yield {
        "same_bits": all(same),
        "compared_with_whole": [p.parent.name for p in probs if p.exists()],
    }


if __name__ == "__main__":
    main()
