"""A whole fragment at real size through every command: time, peak memory, score.

Simulates papyrus over a real ink label and papyrus mask, prepares it, predicts it with a trained
run from its TIFF layers and from the prepared volume, checks that both give the same bits, submits
and scores the submission against the label.

    python benchmarks/full_size.py RUN INKLABELS.png MASK.png --work FOLDER

needs about 11 GB of disk for a fragment of 8181 x 6330 x 65 voxels.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from resident import measure

from core.files import write_json
from vesuvius import rle
from vesuvius.demo import f05
from vesuvius.fragment import read_binary_png
from vesuvius.submission import read_submission

NAME = "full"


def main() -> None:
    """Run every command, measure, score, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of `vesuvius train`")
    parser.add_argument("ink_label", type=Path)
    parser.add_argument("papyrus_mask", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    shapes = ["--ink-label", options.ink_label, "--papyrus-mask", options.papyrus_mask]
    work: Path = options.work
    csv = work / "submission.csv"
    commands = {
        "simulate": ["simulate", work / NAME, *shapes, "--seed", str(options.seed)],
        "prepare": ["prepare", work / NAME, "--out", work],
        "predict from TIFF layers": [
            "predict", options.run, work / NAME, "--out", work / "pred", "--stride", "96",
        ],
        "predict from the prepared volume": [
            "predict", options.run, work / f"{NAME}.vol", "--out", work / "pred2", "--stride", "96",
        ],
        "submit": ["submit", work / "pred", "--out", csv],
    }  # fmt: skip
    measured = {name: measure("-m", "vesuvius", *command) for name, command in commands.items()}
    label = read_binary_png(options.ink_label)
    mask = read_binary_png(options.papyrus_mask)
    submitted = rle.decode(read_submission(csv)[NAME], label.shape)
    result = {
        "what": "simulated papyrus over a real label and mask, at full size",
        "shape_ZYX": [65, *label.shape],
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "commands": measured,
        "same_bits": (work / "pred" / "prob.tif").read_bytes()
        == (work / "pred2" / "prob.tif").read_bytes(),
        "f05": f05([(submitted, label & mask)]),
    }
    write_json(Path(__file__).parent / "results" / "full_size.json", result)
    print(result)


if __name__ == "__main__":
    main()
