"""Export: one task of an official RepMode checkpoint as one file that runs without this project.

Shape legend: N tiles, Z Y X voxels; each of one channel.
"""

from __future__ import annotations

from pathlib import Path

import torch

from core.deploy import specialize
from core.export import Precision, check_target
from core.export import export as export_network
from core.official import load_official_checkpoint
from core.provenance import collect, file_hash
from core.signature import Input, Signature
from ssp.predict import STRIDE, TILE

MULTIPLE = 16  # an official network halves its input four times
AXES = ("N", 1, "Z", "Y", "X")
SIGNATURE = Signature(
    inputs=(Input("transmitted_light", torch.float32, AXES, -3, 3),),
    output="fluorescence",
    output_axes=AXES,
    multiples=dict.fromkeys("ZYX", MULTIPLE),
)


def export(
    checkpoint: Path,
    /,
    task: str,
    out: Path,
    precision: Precision = "float32",
) -> None:
    """Write one task of an official RepMode checkpoint as one file that runs without this project.

    The file takes float32 tiles (N, 1, Z, Y, X) of a z-scored transmitted-light stack, of any
    number and any lengths that are multiples of 16, and returns fluorescence of the same shape, in
    standard deviations. It is loaded back and compared with the network before it is kept. Its
    metadata is JSON, under "repmode" in ONNX and in the extra file "repmode.json" of an archive.

    Args:
        checkpoint: Official checkpoint (.p).
        task: Name of the structure to predict.
        out: File to write: .onnx for onnxruntime, .pt2 for torch.export.load.
        precision: In which the kernels are stored, two bytes each in bf16 and fp16; arithmetic is
            in float32, and what the rounding changes is measured on noise.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be read, the task is unknown, or `out` is of another kind or
            exists.
        RuntimeError: If the libraries for ONNX are missing, or the file differs from the network.
    """
    check_target(out)
    model, known = load_official_checkpoint(checkpoint)
    if task not in known:
        raise ValueError(f"unknown task {task}; this checkpoint knows {', '.join(known)}")
    facts = {
        "task": task,
        "checkpoint_sha256": file_hash(checkpoint),
        "intensity": "z-score of the whole stack, before it is cut into tiles",
        "tile": list(TILE),
        "stride": list(STRIDE),
    }
    export_network(
        specialize(model, known.index(task)), SIGNATURE, out, collect(**facts), precision
    )
