"""Kaggle kernel: prepare the competition's training fragments and train a recipe, offline.

`vesuvius package`, without a run, fills a dataset with wheels. This script finds it, and `vesuvius`
installs them, prepares every fragment of the train folder and trains until the time is up. The run
is in working/run. To continue it in another session, add this kernel's output to its inputs.
"""

import glob
import os
import sys
from pathlib import Path

RECIPE = "buckets"
OPTIONS = ["--training.checkpoint-every-steps=200"]  # as for `vesuvius train`
BUDGET_S = 8.5 * 3600  # a session that runs out of time loses its output, so training stops first
ROOT = Path(os.environ.get("VESUVIUS_KAGGLE_ROOT", "/kaggle"))  # a dry run has another

wheels = glob.glob("input/**/repmode_vesuvius-*.whl", root_dir=ROOT, recursive=True)
if len(wheels) != 1:
    sys.exit(f"{len(wheels)} packages of vesuvius are among the inputs; add one such dataset")
sys.path.insert(0, str(ROOT / wheels[0]))  # Python imports from a wheel as it is

from vesuvius.kernel import train  # noqa: E402

train(ROOT, RECIPE, OPTIONS, BUDGET_S)
