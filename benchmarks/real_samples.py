"""Real files through the commands: a scroll crop as TIFF layers and as OME-Zarr, 16-bit slices.

    python benchmarks/real_samples.py RUN SAMPLES --work FOLDER

SAMPLES holds `scroll1_crop/` (layers/, mask.png, segment.ome.zarr) and `uint16_layers/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
from resident import measure

from core.files import read_json, write_json
from vesuvius.fragment import read_binary_png
from vesuvius.inkmap import load_model
from vesuvius.prepared import open_prepared


def main() -> None:
    """Run every command, measure, compare, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of `vesuvius train`")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    options = parser.parse_args()
    crop, slices = options.samples / "scroll1_crop", options.samples / "uint16_layers"
    layers, zarr = options.work / "layers", options.work / "zarr"
    mask = ["--mask", crop / "mask.png"]
    commands = {
        "predict TIFF layers": ["predict", options.run, crop, "--out", layers],
        "predict OME-Zarr": [
            "predict", options.run, crop / "segment.ome.zarr", *mask, "--out", zarr,
        ],
        "prepare 16-bit slices": ["prepare", slices, "--out", options.work],
    }  # fmt: skip
    measured = {name: measure("-m", "vesuvius", *command) for name, command in commands.items()}
    prob = tifffile.imread(layers / "prob.tif")
    mask_YX = read_binary_png(crop / "mask.png")
    files = sorted(slices.glob("*.tif"))
    voxels_ZYX = np.stack([tifffile.imread(file) for file in files])
    stored_YXZ = open_prepared(options.work / "uint16_layers.vol").volume
    result = {
        "commands": measured,
        "same_bits_from_layers_and_zarr": np.array_equal(prob, tifffile.imread(zarr / "prob.tif")),
        "window": read_json(layers / "provenance.json")["window"],
        "called_ink": float((prob[mask_YX] >= load_model(options.run).threshold).mean()),
        "slices_ZYX": list(voxels_ZYX.shape),
        "slices_range": [int(voxels_ZYX.min()), int(voxels_ZYX.max())],
        "slices_equal": np.array_equal(stored_YXZ, (voxels_ZYX >> 8).transpose(1, 2, 0)),
    }
    write_json(Path(__file__).parent / "results" / "real_samples.json", result)
    print(result)


if __name__ == "__main__":
    main()
