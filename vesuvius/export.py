"""Export: a trained ink model as one file that torch or onnxruntime runs alone.

Shape legend: N tiles, Z layers of the window, Y X pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.deploy import specialize
from core.export import Precision, check_target
from core.export import export as export_network
from core.provenance import collect
from core.signature import Input, Signature
from vesuvius.inkmap import InkModel, ink_probability, load_model
from vesuvius.recipes import InkRecipe

# Least and largest offset and scale to check with: those of fragments, thin windows and thick.
NORMALISATION = {
    "raw": ((0, 0), (1 / 255, 1 / 255)),
    "zscore": ((96, 160), (0.01, 0.1)),
    "percentile": ((0, 160), (1 / 255, 0.05)),
}
INTENSITY = {
    "raw": "offset 0, scale 1/255",
    "zscore": "offset is the mean and scale is 1 / standard deviation of the fragment's values, "
    "inside its papyrus mask and over the layers of the window",
    "percentile": "offset and 1 / scale are the lower percentile of the fragment's values and the "
    "distance to the upper one, inside its papyrus mask and over the layers of the window; the "
    "file clips what it computes from them to 0..1",
}


class InkTiles(nn.Module):
    """A plain ink network that takes the voxels of a fragment and how to normalise them.

    Args:
        network: Normalised volumes (N, 1, Z, Y, X) to logits (N, 1, Y, X).
        is_clipped: Whether normalised values are clipped to 0..1.
    """

    def __init__(self, network: nn.Module, is_clipped: bool = False) -> None:
        super().__init__()
        self.network = network
        self.is_clipped = is_clipped

    def forward(self, tiles_NZYX: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        """Return probabilities (N, 1, Y, X) of tiles (N, Z, Y, X) in 0..255."""
        return ink_probability(self.network, tiles_NZYX, offset, scale, self.is_clipped)


def export(
    run: Path,
    /,
    out: Path,
    task: str | None = None,
    precision: Precision = "float32",
) -> None:
    """Write a trained model as one file that runs without this project.

    The file takes uint8 tiles (N, Z, Y, X) of the window's layers, of any number N and any size
    that its metadata allows, and as scalars the offset and scale that normalise the fragment, as
    provenance.json of a prediction gives them; it returns probabilities (N, 1, Y, X). It is loaded
    back and compared with the model before it is kept. Its metadata, JSON under "repmode" in ONNX
    and in the extra file "repmode.json" of an archive, tells axes, layers, threshold and origin.

    Args:
        run: Run folder of `vesuvius train`, or one of its checkpoints.
        out: File to write: .onnx for onnxruntime, .pt2 for torch.export.load.
        task: Name of the task to export, "unknown" for the mean gate of those for ink; by default
            the only task for ink.
        precision: In which the kernels are stored, two bytes each in bf16 and fp16; arithmetic is
            in float32, and what the rounding changes is measured on noise.

    Raises:
        FileNotFoundError: If the run does not exist.
        ValueError: If `out` is of another kind or exists, or the task is unknown.
        RuntimeError: If the libraries for ONNX are missing, or the file differs from the model.
    """
    check_target(out)
    model = load_model(run)
    is_clipped = model.recipe.window.intensity == "percentile"
    task = model.tasks.choose(task)
    network = InkTiles(specialize(model.network, model.tasks.gates(task)), is_clipped)
    export_network(
        network, signature_of(model.recipe), out, collect(**_facts(model, task)), precision
    )


def signature_of(recipe: InkRecipe) -> Signature:
    """Return what the exported model of a recipe takes and returns."""
    multiple = recipe.network.multiple
    offset, scale = NORMALISATION[recipe.window.intensity]
    return Signature(
        inputs=(
            Input("tiles", torch.uint8, ("N", recipe.window.num_layers, "Y", "X"), 0, 255),
            Input("offset", torch.float32, (), *offset),
            Input("scale", torch.float32, (), *scale),
        ),
        output="prob",
        output_axes=("N", 1, "Y", "X"),
        multiples={"Y": multiple, "X": multiple},
    )


def _facts(model: InkModel, task: str) -> dict[str, Any]:
    """Return what the file says about the model."""
    window = model.recipe.window
    return {
        "task": task,
        "checkpoint_sha256": model.sha256,
        "threshold": model.threshold,
        "num_layers": window.num_layers,
        "first_layer": "centred on the sheet" if window.z_start is None else window.z_start,
        "layer_order": "as stored",
        "values": "0..255; 16-bit layers are value >> 8",
        "intensity": window.intensity,
        "percentiles": list(window.percentiles) if window.intensity == "percentile" else None,
        "normalisation": f"(tiles - offset) * scale; {INTENSITY[window.intensity]}",
    }
