"""The `ssp` program: its commands, none of which is imported before it runs."""

from __future__ import annotations

from core.terminal import Command, run

DESCRIPTION = """
Subcellular structure prediction: fluorescence from transmitted light.

  ssp simulate cells --images 4                            synthetic cells, to try everything
  ssp prepare cells --out data                             your images, or these, to fast volumes
  ssp predict repmode.p cells.tif --out fluorescence       one TIFF per structure
"""

COMMANDS = {
    "simulate": Command(
        "write synthetic cells in transmitted light and fluorescence", "ssp.simulate:simulate"
    ),
    "prepare": Command("turn lists of images into volumes that read fast", "ssp.prepare:prepare"),
    "predict": Command(
        "predict fluorescence from a transmitted-light stack with an official RepMode checkpoint",
        "ssp.predict:predict",
    ),
    "export": Command(
        "write one task as an ONNX file or torch archive that runs alone", "ssp.export:export"
    ),
}


def main() -> int:
    """Run the command named on the command line and return its exit code."""
    return run("ssp", DESCRIPTION, COMMANDS)
