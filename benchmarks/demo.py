"""What the demo reaches and how long it takes, over several seeds.

Every seed simulates its own fragments, trains its own model and is scored on its own unseen
fragments. Stores every run's scores and the times of its steps; runs in FOLDER are continued.

    python benchmarks/demo.py --seeds 0 1 2 --work FOLDER
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path

import torch

from core.files import read_json, write_json
from vesuvius.demo import demo


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        out = options.work / f"seed_{seed}"
        demo(out, seed)
        scores = read_json(out / "scores.json")
        runs.append({"seed": seed, "total_s": sum(scores["seconds"].values()), **scores})
    result = {
        "what": "vesuvius demo: F0.5 on two unseen simulated fragments, pooled",
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "median": {
            name: statistics.median(run[name] for run in runs)
            for name in ("f05", "baseline_f05", "all_ink_f05", "total_s")
        },
        "runs": runs,
    }
    write_json(Path(__file__).parent / "results" / "demo.json", result)
    print(result["median"])


if __name__ == "__main__":
    main()
