"""What a prediction costs as papyrus grows in the same bounding box, and the box around it.

A tiny network maps squares of papyrus of 1 to 100 % of one bounding box, and then one square in
boxes of 1 to 100 times its area. Each prediction has a process of its own; time is that of
`predict` after the libraries are imported, in processor time too, which other programs disturb
little. Stores the numbers and a plot.

    python benchmarks/scale_area.py --work FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from machine import machine
from PIL import Image
from resident import measure
from untrained import write_untrained

from core.files import read_json, write_json
from vesuvius.predict import predict
from vesuvius.recipes import small

NUM_LAYERS = 16
BOX = 2048
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the box that are papyrus
PAPYRUS = 512
BOXES = (512, 1619, 5120)  # 1, 10 and 100 times the area
TILE = 64
BAND_ROWS = 64
HERE = Path(__file__).parent


def write_fragment(folder: Path, side: int, papyrus: int) -> None:
    """Write layers of which a square in the middle holds noise and the rest nothing."""
    (folder / "surface_volume").mkdir(parents=True)
    start = (side - papyrus) // 2
    rng = np.random.default_rng(0)
    for z in range(NUM_LAYERS):
        noise = rng.integers(0, 2**16, (BAND_ROWS, papyrus), np.uint16)
        layer = tifffile.memmap(
            folder / "surface_volume" / f"{z:02}.tif", shape=(side, side), dtype=np.uint16
        )
        for y in range(start, start + papyrus, BAND_ROWS):
            rows = min(BAND_ROWS, start + papyrus - y)
            layer[y : y + rows, start : start + papyrus] = noise[:rows]
        layer.flush()
    mask = np.zeros((side, side), np.uint8)
    mask[start : start + papyrus, start : start + papyrus] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def predict_one(work: Path) -> None:
    """Predict the fragment and write what it took; the process is for that alone."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    predict(
        work / "tiny.safetensors", work / "a", out=work / "out", tile_size=TILE, stride=TILE,
        device="cpu",
    )  # fmt: skip
    taken = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    write_json(work / "taken.json", {name: round(value, 2) for name, value in taken.items()})


def measure_one(work: Path, side: int, papyrus: int) -> dict[str, Any]:
    """Return what one prediction takes."""
    write_fragment(work / "a", side, papyrus)
    found = measure(__file__, "--work", work, "--one")
    case = {"box": side, "papyrus": papyrus, "papyrus_pixels": papyrus**2, "box_pixels": side**2}
    case |= {**read_json(work / "taken.json"), "peak_private_mib": found["peak_private_mib"]}
    for folder in ("a", "out"):
        shutil.rmtree(work / folder)
    print(case, flush=True)
    return case


def plot(path: Path, grown: list[dict[str, Any]], boxed: list[dict[str, Any]]) -> None:
    """Draw processor time and memory of both series against their areas."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = {"cpu_s": "processor time, s", "peak_private_mib": "private memory, MiB"}
    side = f"{BOX} x {BOX}"
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        for cases, area, told, mark in (
            (grown, "papyrus_pixels", f"papyrus grows in a box of {side}", "o-"),
            (boxed, "box_pixels", f"the box grows around {PAPYRUS} x {PAPYRUS} of papyrus", "s--"),
        ):
            axis.plot(
                [each[area] for each in cases], [each[name] for each in cases], mark, label=told
            )
        axis.set(xscale="log", xlabel="area of what grows, pixels", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(yscale="log", ylim=(0.1, 10))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].legend(fontsize=8)
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, store and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--one", action="store_true", help="in this process")
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    work: Path = options.work
    if options.one:
        predict_one(work)
        return
    work.mkdir(parents=True)
    try:
        recipe = small()
        network = replace(recipe.network, base_channels=2, num_stages=2)
        window = replace(recipe.window, num_layers=8)
        tiny = replace(recipe, network=network, window=window)
        write_untrained(work / "tiny.safetensors", tiny, NUM_LAYERS)
        grown = [measure_one(work, BOX, round(BOX * share**0.5)) for share in SHARES]
        boxed = [measure_one(work, box, PAPYRUS) for box in BOXES]
    finally:
        shutil.rmtree(work)
    result = {
        "what": "a prediction by a tiny network against the area of papyrus and of its box",
        "layers": NUM_LAYERS,
        "tile": TILE,
        "papyrus_grows": grown,
        "box_grows": boxed,
        "note": options.note,
        "machine": machine(),
    }
    write_json(HERE / "results" / "scale_area.json", result)
    plot(HERE.parent / "docs" / "images" / "scale_area.png", grown, boxed)


if __name__ == "__main__":
    main()
