"""How much memory does a training step need, by model, and is the model right?

`core.memory` runs a step on tensors without values. Here its count is held against real steps on
the CPU: against what autograd keeps, and against the growth of the resident memory of a process
that does one step. Then it tells what the paper's configuration and the ink configuration would
ask of a card, in bf16 as autocast gives it, and the largest ink batch that stays below 12 GB.

    python benchmarks/training_memory.py        about five minutes on two cores
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine, peak_resident_mib

from core.convolution import direct_only
from core.files import write_json
from core.memory import step_memory
from core.unet3d import RepModeUNet
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode import build as build_network

MIB = 2**20
LIMIT = 12 * 10**9  # bytes of a 12 GB card
PAPER = partial(RepModeUNet, 12, 32)
# Width 32 as in the seed project's code, which reached a batch of 7.
INK = partial(build_network, RepModeConfig(base_channels=32), 64, 1)
CHECKED = (((4, 1, 16, 32, 32), 4), ((2, 1, 32, 64, 64), 2), ((1, 1, 32, 128, 128), 1))


def main() -> None:
    """Check the model, predict, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(_resident_growth(*CHECKED[options.step[0]], is_half=bool(options.step[1])))
        return
    checks = [_check(index, is_half) for index in range(len(CHECKED)) for is_half in (False, True)]
    result = {
        "what": "memory of a training step in MiB; peak with weights, gradients, AdamW's state",
        "machine": machine(),
        "checks": checks,
        "predictions": _predictions(),
    }
    for row in (*checks, *result["predictions"]):
        print(row)
    write_json(Path(__file__).parent / "results" / "training_memory.json", result)


def _check(index: int, is_half: bool) -> dict[str, Any]:
    """Hold the prediction against a process that does the step."""
    shape, num_distinct = CHECKED[index]
    autocast = torch.bfloat16 if is_half else None
    tasks = list(range(num_distinct))
    predicted = step_memory(PAPER, shape, tasks, autocast)
    command = [sys.executable, __file__, "--step", str(index), str(int(is_half))]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    without_optimizer = (predicted.peak - predicted.optimizer) / MIB
    return {
        "shape": list(shape),
        "precision": "bf16" if is_half else "float32",
        "predicted_mib": without_optimizer,
        "resident_growth_mib": grown,
        "measured_to_predicted": grown / without_optimizer,
    }


def _resident_growth(shape: tuple[int, ...], num_distinct: int, is_half: bool) -> float:
    """Return how much the peak resident memory grows, MiB, from before the network to a step."""
    before = peak_resident_mib()
    model = PAPER().train()
    x, tasks = torch.randn(shape), torch.arange(num_distinct)
    with direct_only():
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = model(x, tasks).float().square().mean()
        loss.backward()
    return peak_resident_mib() - before


def _predictions() -> list[dict[str, Any]]:
    """Return what the two configurations would need on a card."""
    rows = []
    for precision in (None, torch.bfloat16):
        memory = step_memory(PAPER, (8, 1, 32, 128, 128), list(range(8)), precision)
        rows.append(_prediction("paper: 32x128x128, eight tasks", 8, precision, memory))
    batch = 8
    while True:
        memory = step_memory(INK, (batch, 1, 64, 64, 64), [0] * batch, torch.bfloat16)
        if memory.peak > LIMIT:
            return rows
        rows.append(_prediction("ink: 64x64x64, one task", batch, torch.bfloat16, memory))
        batch += 8


def _prediction(
    name: str, batch: int, precision: torch.dtype | None, memory: Any
) -> dict[str, Any]:
    """Return one row."""
    return {
        "configuration": name,
        "batch_size": batch,
        "precision": "float32" if precision is None else "bf16",
        **{f"{part}_mib": round(value / MIB) for part, value in asdict(memory).items()},
        "is_within_12_gb": memory.peak <= LIMIT,
    }


if __name__ == "__main__":
    main()
