"""What does a step of `ssp train` take beside the bare step of its network?

RepMode of width 32 with 12 tasks, float32, trained by `ssp train` on prepared images of noise, in
the shapes of `benchmarks/gatrep.py`. Timed is all of a step: patches are read, flipped and
collated, loss, backward pass, optimiser and the checks of the loop. After each follows the bare
step on the same batch: a network of the core of its own, forward, squared error, backward, the same
optimiser. The first pair is not counted. Compared is processor time, which other programs on the
machine disturb little; wall time stands beside it.

    python benchmarks/ssp_step.py                  a few minutes on two cores
    python benchmarks/ssp_step.py --steps 1        to see it work
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tifffile
import torch
from gatrep import CASES, NUM_TASKS, WIDTH, Case
from machine import machine
from torch import Tensor

from core import training
from core.files import write_json
from core.unet3d import RepModeUNet
from ssp.losses import squared_error
from ssp.prepare import prepare
from ssp.recipes import PAPER, RECIPES, CellRecipe, PatchConfig
from ssp.train import train

RESULT = Path(__file__).parent / "results" / "ssp_step.json"
CLOCKS = {"wall_s": time.perf_counter, "processor_s": time.process_time}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="counted pairs")
    parser.add_argument("--cases", type=int, nargs="+", default=[*range(len(CASES))], help="which")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [measure(CASES[number], options.steps + 1) for number in options.cases]
    what = f"RepMode of width {WIDTH} with {NUM_TASKS} tasks, float32; seconds of a step"
    write_json(RESULT, {"what": what, "machine": machine(), "cases": cases})
    for case in cases:
        print(case["case"], {name: case[name]["overhead"] for name in CLOCKS})


def measure(case: Case, num_steps: int) -> dict[str, Any]:
    """Measure one case."""
    pairs = Pairs(RepModeUNet(NUM_TASKS, WIDTH).train())
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(training, "take_step", pairs):
        data = write_data(Path(folder), case)
        train(data, Path(folder) / "run", recipe_of(case, num_steps))
    shape = "x".join(map(str, case.shape))
    row: dict[str, Any] = {"case": f"{shape}, batch {case.batch_size}"}
    row["distinct_tasks"] = pairs.distinct_tasks[1:]
    for name in CLOCKS:
        through, bare = ([step[name] for step in of[1:]] for of in (pairs.through, pairs.bare))
        row[name] = {
            "ssp train": through,
            "bare": bare,
            "overhead": statistics.median(a / b for a, b in zip(through, bare, strict=True)) - 1,
        }
    return row


class Pairs:
    """In place of `take_step`: takes the step, then the bare one on the same batch.

    Args:
        model: The network of the bare steps.
    """

    def __init__(self, model: RepModeUNet) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
        self.take_step = training.take_step
        self.through: list[dict[str, float]] = []
        self.bare: list[dict[str, float]] = []
        self.distinct_tasks: list[int] = []

    def __call__(self, run: Any, batches: Any, num_batches: int, loss_fn: Any) -> dict[str, float]:
        """Take both steps; return what the first does."""
        seen = []

        def watched(model: Any, batch: Mapping[str, Tensor]) -> Any:
            seen.append(batch)
            return loss_fn(model, batch)

        step = partial(self.take_step, run, batches, num_batches, watched)
        losses, seconds = timed(step)
        self.through.append(seconds)
        self.bare.append(timed(partial(self.take_bare, seen[0]))[1])
        self.distinct_tasks.append(len(seen[0]["task"].unique()))
        return losses

    def take_bare(self, batch: Mapping[str, Tensor]) -> None:
        """Take the bare step on a batch."""
        self.optimizer.zero_grad()
        x = batch["x"].to(memory_format=torch.channels_last_3d)
        squared_error(self.model(x, batch["task"]), batch["label"]).backward()
        self.optimizer.step()


def timed(job: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what a job returns and its seconds by all clocks."""
    started = {name: clock() for name, clock in CLOCKS.items()}
    result = job()
    return result, {name: round(clock() - started[name], 3) for name, clock in CLOCKS.items()}


def recipe_of(case: Case, num_steps: int) -> CellRecipe:
    """Return the recipe of a run of one epoch and so many steps, twelve images in a pass."""
    passes = -(-num_steps * case.batch_size // NUM_TASKS)
    settings = replace(PAPER, epochs=1, batch_size=case.batch_size, precision="no")
    return CellRecipe(RECIPES["repmode"].network, PatchConfig(case.shape, True, passes), settings)


def write_data(folder: Path, case: Case) -> Path:
    """Prepare an image of noise for each task, twice as large as a patch, and one to validate."""
    rng = np.random.default_rng(0)
    rows = [["path_signal", "path_target", "task", "split"]]
    for number in range(NUM_TASKS + 1):
        is_last = number == NUM_TASKS
        shape = case.shape if is_last else tuple(2 * length for length in case.shape)
        names = [f"{number}-{kind}.tif" for kind in ("signal", "target")]
        for name in names:
            voxels = rng.integers(0, 4000, shape, dtype=np.uint16)
            tifffile.imwrite(folder / name, voxels, metadata={"axes": "ZYX"})
        rows.append([*names, f"task{number % NUM_TASKS}", "val" if is_last else "train"])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    prepare((folder / "list.csv",), out=folder / "data", factor=(1.0, 1.0, 1.0))
    return folder / "data"


if __name__ == "__main__":
    main()
