"""A real CZI through the commands: prepared, trained on, scored and predicted, in minutes.

    python benchmarks/real_czi.py FOLDER --work WORK

FOLDER holds a time series of a dividing cell in two channels, 3 x 5 x 170 x 240 voxels (T Z Y X). A
small RepMode learns one channel from the other: trained on the first time, validated on the second,
scored on the third. It is the same cell a moment later, so the score says that files, sizes and
commands fit together, not how well such a network does on other cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from machine import machine
from resident import measure

from core.files import read_json, write_json
from ssp.readers import open_stack

SIGNAL, TARGET, TASK = "LED555", "LED470", "LED470"
TRAIN = """
    --network.backbone.base-channels 4 --network.backbone.num-stages 2 --patches.size 6 32 32
    --patches.passes-per-epoch 40 --training.epochs 5 --training.batch-size 4
    --training.learning-rate 2e-3 --training.final-lr-factor 0.01
"""
RESULT = Path(__file__).parent / "results" / "real_czi.json"


def main() -> None:
    """Run every command, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    options = parser.parse_args()
    path, work = next(options.folder.glob("*.czi")), options.work
    work.mkdir(parents=True, exist_ok=True)
    data, run, scores, out = (work / name for name in ("data", "run", "scores", "predicted"))
    commands: dict[str, list[Any]] = {
        "prepare": [write_list(work, path), "--out", data],
        "train": ["repmode", "--data", data, "--out", run, *TRAIN.split()],
        "evaluate": [run, "--data", data, "--out", scores],
        "predict": [run, path, "--channel", SIGNAL, "--time", "2", "--out", out],
    }
    measured = {name: measure("-m", "ssp", name, *given) for name, given in commands.items()}
    source, found = open_stack(path, time=2), open_stack(out / f"{TASK}.ome.tif")
    result = {
        "what": "one channel of a dividing cell from the other: first time to third",
        "machine": machine(),
        "source": {"shape_CZYX": list(source.shape), "voxel_size_um": source.voxel_size_um},
        "predicted": {"shape_CZYX": list(found.shape), "voxel_size_um": found.voxel_size_um},
        "commands": measured,
        "scores": read_json(scores / "scores.json")["tasks"][TASK],
    }
    write_json(RESULT, result)
    print(result)


def write_list(work: Path, path: Path) -> Path:
    """Write the list of images, a row for each time."""
    splits = ("train", "val", "test")
    rows = [f"{path.resolve()},{SIGNAL},{TARGET},{time},{s}" for time, s in enumerate(splits)]
    listed = work / f"{TASK}.csv"
    listed.write_text("\n".join(["path_czi,channel_signal,channel_target,time,split", *rows]))
    return listed


if __name__ == "__main__":
    main()
