"""The paper's tables and figures within the tiny budget, on simulated cells.

Runs `ssp experiment` for each into FOLDER, continuing what is there, and stores its numbers in
results/ssp_NAME.json and the figures in docs/images.

    python benchmarks/ssp_experiments.py --work FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from core.files import read_json, write_json
from ssp.experiment_figures import figure6, figure7
from ssp.experiment_tables import table1, table2, table3
from ssp.study import StudyOptions

HERE = Path(__file__).parent
SEEDS = {"table1": 3, "table2": 2, "table3": 3, "figure6": 3, "figure7": 1}
COMMANDS = {command.__name__: command for command in (table1, table2, table3, figure6, figure7)}


def main() -> None:
    """Run and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    for name in options.only:
        study = StudyOptions(options.work, seeds=SEEDS[name], jobs=options.jobs)
        COMMANDS[name](study=study)
        record = read_json(options.work / f"{name}.json")
        del record["argv"]  # which names folders of this machine
        write_json(HERE / "results" / f"ssp_{name}.json", record)
        picture = options.work / f"{name}.png"
        if picture.exists():
            shutil.copy(picture, HERE.parent / "docs" / "images" / f"ssp_{name}.png")


if __name__ == "__main__":
    main()
