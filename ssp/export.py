"""Export: one task of a trained model as one file that runs without this project.

Shape legend: N tiles, Z Y X voxels; each of one channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.export import Precision, check_target
from core.export import export as export_network
from core.provenance import collect
from core.signature import Input, Signature
from ssp.mapping import Field
from ssp.model import CellModel, load_model
from ssp.networks.registry import for_task


def export(
    run: Path,
    /,
    task: str,
    out: Path,
    precision: Precision = "float32",
) -> None:
    """Write one task of a trained model as one file that runs without this project.

    The file takes float32 tiles (N, 1, Z, Y, X) of a z-scored transmitted-light stack, of any
    number and any lengths that can be halved as often as the network does (multiples of 16 for the
    paper's), and returns fluorescence of the same shape, in standard deviations; a model of maps
    takes its number of planes and returns (N, 1, Y, X). It is loaded back and compared with the
    network before it is kept. Its metadata is JSON, under "repmode" in ONNX and in the extra file
    "repmode.json" of an archive.

    Args:
        run: Run folder of `ssp train` or `ssp extend`, one of its checkpoints, or an official
            checkpoint (.p).
        task: Name of the structure to predict.
        out: File to write: .onnx for onnxruntime, .pt2 for torch.export.load.
        precision: In which the kernels are stored, two bytes each in bf16 and fp16; arithmetic is
            in float32, and what the rounding changes is measured on noise.

    Raises:
        FileNotFoundError: If the run does not exist.
        ValueError: If it cannot be read, the task is unknown, or `out` is of another kind or
            exists.
        RuntimeError: If the libraries for ONNX are missing, or the file differs from the network.
    """
    check_target(out)
    model = load_model(run)
    (name,) = model.choose((task,))
    plain = for_task(model.network, model.tasks.index(name))
    signature = signature_of(model.multiple, model.num_layers)
    export_network(plain, signature, out, collect(**_facts(model, name)), precision)


def signature_of(multiple: int, num_layers: int | None = None) -> Signature:
    """Return what an exported task takes and returns.

    Args:
        multiple: Of what lengths must be.
        num_layers: Z of the stacks that a map is predicted of; None if stacks are predicted.
    """
    space = ("Y", "X") if num_layers else ("Z", "Y", "X")
    planes = (num_layers,) if num_layers else ()
    return Signature(
        inputs=(Input("transmitted_light", torch.float32, ("N", 1, *planes, *space), -3, 3),),
        output="fluorescence",
        output_axes=("N", 1, *space),
        multiples=dict.fromkeys(space, multiple),
    )


def _facts(model: CellModel, task: str) -> dict[str, Any]:
    """Return what the file says about the model."""
    shape = (model.num_layers or model.tile[0], *model.tile[1:])
    plan = Field(shape, model.tile, model.target, model.num_layers).plan
    known = model.facts.get(task)
    return {
        "task": task,
        "checkpoint_sha256": model.sha256,
        "intensity": "z-score of the whole stack, before it is cut into tiles",
        "voxel_size_um": model.voxel_size_um,
        "target_mean": known.mean if known else None,
        "target_std": known.std if known else None,
        "tile": list(plan.tile),
        "stride": list(plan.stride),
    }
