"""The `ssp` program: its commands, none of which is imported before it runs."""

from __future__ import annotations

from core.terminal import Command, run

DESCRIPTION = """
Subcellular structure prediction: fluorescence from transmitted light.

With your own images, or simulated ones:

  1. ssp simulate cells --images 4                         synthetic cells, to try everything
  2. ssp prepare cells --out data                          images to volumes that read fast
  3. ssp train repmode --data data --out runs/repmode      one network for all structures
  4. ssp evaluate runs/repmode --data data --out scores    how good it is on test images
  5. ssp predict runs/repmode cells.czi --out fluorescence one image per structure
  6. ssp extend runs/repmode --data more --task golgi --out runs/more
  7. ssp export runs/repmode --task dna --out dna.onnx     a structure without this program

Official RepMode checkpoints predict, are scored, extended and exported alike:

  ssp predict repmode.p cells.czi --out fluorescence
"""

COMMANDS = {
    "simulate": Command(
        "write synthetic cells in transmitted light and fluorescence", "ssp.simulate:simulate"
    ),
    "prepare": Command("turn lists of images into volumes that read fast", "ssp.prepare:prepare"),
    "train": Command("train a method on prepared images of all tasks", "ssp.train:TrainCommand"),
    "evaluate": Command("score a model on prepared images", "ssp.evaluate:evaluate"),
    "predict": Command(
        "predict fluorescence from a transmitted-light image of any format", "ssp.predict:predict"
    ),
    "extend": Command("teach a trained model one structure more", "ssp.extend:extend"),
    "experiment": Command(
        "repeat the paper's tables and figures, on your images or simulated cells",
        "ssp.experiment:EXPERIMENTS",
    ),
    "demo": Command("simulate, train, score and predict; ends with a page", "ssp.demo:demo"),
    "export": Command(
        "write one task as an ONNX file or torch archive that runs alone", "ssp.export:export"
    ),
}


def main() -> int:
    """Run the command named on the command line and return its exit code."""
    return run("ssp", DESCRIPTION, COMMANDS)
