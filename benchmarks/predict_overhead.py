"""What `predict` costs over its network alone on the same tiles.

Alone means the plain network of the recipe `small`, with its normalisation and sigmoid, on the very
batches that the command gives it, all in memory. The command is called in the same process: opening
the fragment, its statistics and layer order, reading from TIFF layers, blending, writing, picture.
Both take turns; compared are medians, of wall time and of processor time, which other programs
disturb less and in which reading in a thread of its own hides nothing.

    python benchmarks/predict_overhead.py --work FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from untrained import write_untrained

from core.files import write_json
from core.inference import Corner, Predict
from core.uncertainty import Member, predictor
from vesuvius import predict as command
from vesuvius.recipes import small
from vesuvius.simulate import simulate

Batch = tuple[np.ndarray, Sequence[Corner]]


class Recorder:
    """Stands in for the predictor of the command and keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._predict: Predict | None = None

    def __call__(self, members: Sequence[Member], device: str) -> Predict:
        """Return a predictor of these members that keeps its batches."""
        self._predict = predictor(members, device)
        return self.predict

    def predict(self, batch: np.ndarray, corners: Sequence[Corner]) -> np.ndarray:
        """Predict a batch and keep it."""
        assert self._predict is not None
        self.batches.append((batch, corners))
        return self._predict(batch, corners)

    def repeat(self) -> None:
        """Predict all batches again and do nothing with the result."""
        assert self._predict is not None
        for batch in self.batches:
            self._predict(*batch)


def timed(job: Callable[[], object]) -> dict[str, float]:
    """Return wall and processor time of a job."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    job()
    taken = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    return {name: round(value, 2) for name, value in taken.items()}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 256), metavar=("H", "W"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True)
    try:
        simulate(work / "a", size=tuple(options.size))
        run = write_untrained(work / "small.safetensors", small())

        recorder = command.predictor = Recorder()

        def predict() -> None:
            shutil.rmtree(work / "out", ignore_errors=True)
            recorder.batches.clear()
            command.predict(run, work / "a", out=work / "out", device="cpu")

        turns: list[dict[str, Any]] = []
        for _ in range(options.turns):
            turn = {"predict": timed(predict)}
            turn["network"] = timed(recorder.repeat)
            turns.append(turn)
            print(turn, flush=True)
    finally:
        shutil.rmtree(work)
    medians = {
        way: {unit: statistics.median(turn[way][unit] for turn in turns) for unit in turns[0][way]}
        for way in turns[0]
    }
    result = {
        "what": "vesuvius predict against its network alone on the same tiles, recipe small",
        "shape_ZYX": [65, *options.size],
        "tiles": sum(len(batch) for batch, _ in recorder.batches),
        "ratio_of_medians": {
            unit: round(medians["predict"][unit] / medians["network"][unit], 3)
            for unit in ("wall_s", "cpu_s")
        },
        "medians": medians,
        "turns": turns,
        "note": options.note,
        "machine": machine(),
    }
    write_json(Path(__file__).parent / "results" / "predict_overhead.json", result)
    print(result)


if __name__ == "__main__":
    main()
