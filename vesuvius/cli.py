"""The `vesuvius` program: its commands, none of which is imported before it runs."""

from __future__ import annotations

from core.terminal import Command, run

DESCRIPTION = """
Find ink in micro-CT of carbonised papyrus: from a fragment to a Kaggle submission.

  vesuvius demo                                                all of it on simulated papyrus

Or step by step, with your own fragments or simulated ones:

  1. vesuvius simulate data/one --size 768 768 --seed 1        a fragment to train on
  2. vesuvius simulate data/a --size 768 768 --seed 2          a fragment to predict
  3. vesuvius prepare data/one --out prepared                  layers to one fast volume
  4. vesuvius analyze data/one --out look                      what it holds, on one page
  5. vesuvius train small --data prepared --out runs/small     a model
  6. vesuvius predict runs/small data/a --out predictions/a    an ink map
  7. vesuvius submit predictions/a --out submission.csv        what Kaggle accepts
  8. vesuvius evaluate predictions/a --out scores/a            how good the map is, if a has a label
  9. vesuvius export runs/small --out ink.onnx                 the model without this program
 10. vesuvius figure experts runs/small --out experts.png      which of its experts the model uses

For Kaggle, where code runs offline on hidden fragments (docs/kaggle.md):

  vesuvius kaggle download                                     the competition's data
  vesuvius package runs/small --out build --dry-run            what to upload, tried here first
  vesuvius kaggle push build                                   the upload, and the score

Is it any good? Can volumes without labels help?

  vesuvius control runs/small --data prepared --out control    false labels: is ink invented?
  vesuvius compare --out comparison                            every recipe on the same fragments
  vesuvius pretrain small --data prepared --out mae            an encoder for train --pretrained mae
"""

COMMANDS = {
    "simulate": Command(
        "write a synthetic fragment in Kaggle layout", "vesuvius.simulate:simulate"
    ),
    "prepare": Command("turn fragments into volumes that read fast", "vesuvius.prepare:prepare"),
    "analyze": Command(
        "show what fragments hold: intensities, depth, coverage, ink", "vesuvius.analyze:analyze"
    ),
    "train": Command("train a recipe on prepared volumes", "vesuvius.train:TrainCommand"),
    "pretrain": Command(
        "train a recipe's encoder on volumes without labels", "vesuvius.pretrain:PretrainCommand"
    ),
    "predict": Command("map the ink of a fragment, segment or volume", "vesuvius.predict:predict"),
    "evaluate": Command(
        "score ink maps, or a run's held-out pieces, against labels", "vesuvius.evaluate:evaluate"
    ),
    "figure": Command(
        "draw what a model does: its experts, its decoders, its samples", "vesuvius.figure:FIGURES"
    ),
    "control": Command(
        "train a run's recipe on shifted labels: is ink invented?", "vesuvius.control:control"
    ),
    "compare": Command(
        "train recipes at equal budget, several seeds, one table", "vesuvius.compare:compare"
    ),
    "export": Command(
        "write a model as an ONNX file or torch archive that runs alone", "vesuvius.export:export"
    ),
    "submit": Command("turn ink maps into a submission", "vesuvius.submission:submit"),
    "package": Command(
        "pack runs as a Kaggle dataset and kernel, and try it offline", "vesuvius.package:package"
    ),
    "kaggle": Command(
        "download the data, push, submit, see scores", "vesuvius.kaggle_commands:KAGGLE"
    ),
    "demo": Command("run every step on simulated papyrus and score it", "vesuvius.demo:demo"),
}


def main() -> int:
    """Run the command named on the command line and return its exit code."""
    return run("vesuvius", DESCRIPTION, COMMANDS)
