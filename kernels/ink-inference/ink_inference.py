"""Kaggle kernel: predict every fragment of the competition's test folder, offline.

`vesuvius package` fills a dataset with models and wheels. This script finds it, and `vesuvius`
installs the wheels, predicts whatever lies in the test folder and writes working/submission.csv.
"""

import glob
import os
import sys
from pathlib import Path

BUDGET_S = 8.5 * 3600  # of the nine hours; what does not fit is left out, and the log says so
ROOT = Path(os.environ.get("VESUVIUS_KAGGLE_ROOT", "/kaggle"))  # a dry run has another

wheels = glob.glob("input/**/repmode_vesuvius-*.whl", root_dir=ROOT, recursive=True)
if len(wheels) != 1:
    sys.exit(f"{len(wheels)} packages of vesuvius are among the inputs; add one such dataset")
sys.path.insert(0, str(ROOT / wheels[0]))  # Python imports from a wheel as it is

from vesuvius.kernel import infer  # noqa: E402

infer(ROOT, BUDGET_S)
