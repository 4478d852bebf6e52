"""Is the choice between merging and gating the faster one, layer by layer?

Times a training step of single mixtures, forward and backward, both ways and as one plain
convolution of the same size, at the shapes that the levels of the paper's network have, and says
which way `core.choice` takes, whose constants were fitted to an earlier run of such layers.

    python benchmarks/layers.py        two minutes on two cores
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from core.choice import cheaper
from core.convolution import convolve_same
from core.files import write_json
from core.gatrep import (
    REPMODE_EXPERTS,
    TaskGroups,
    convolve_gated,
    convolve_merged,
    live_window,
)
from core.mode import MoDE

REPEATS = 5
BATCHES = (((16, 32, 32), 4), ((32, 64, 64), 2))  # every sample another task
WIDTHS = (32, 64, 128, 256, 512)


def main() -> None:
    """Measure, print and store."""
    rows = [
        _measure(width, tuple(max(1, length >> level) for length in shape), batch_size)
        for shape, batch_size in BATCHES
        for level, width in enumerate(WIDTHS)
    ]
    for row in rows:
        print(row)
    wrong = [row for row in rows if row["chosen_to_faster"] > 1.1]
    print(f"{len(rows) - len(wrong)} of {len(rows)} choices within 10 % of the faster way")
    result = {"what": "training step of one mixture, seconds", "machine": machine(), "layers": rows}
    write_json(Path(__file__).parent / "results" / "layers.json", result)


def _measure(width: int, lengths: tuple[int, ...], batch_size: int) -> dict[str, Any]:
    """Time one layer in turns."""
    block = MoDE(width, width, num_tasks=batch_size)
    x = torch.randn(batch_size, width, *lengths, requires_grad=True)
    groups = TaskGroups.of(range(batch_size))
    gates, _ = block.gate(x, groups)
    gates = gates.detach().requires_grad_()
    kernels = tuple(block.kernels)
    plain = torch.randn(width, width, *live_window(5, lengths), requires_grad=True)
    arguments = (x, kernels, REPMODE_EXPERTS, gates, groups)
    steps: dict[str, Callable[[], object]] = {
        "merged": lambda: _gradients(convolve_merged(*arguments), [x, gates, *kernels]),
        "gated": lambda: _gradients(convolve_gated(*arguments), [x, gates, *kernels]),
        "plain": lambda: _gradients(convolve_same(x, plain), [x, plain]),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS + 1):
        for name, step in steps.items():
            started_s = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started_s)
    medians = {name: statistics.median(measured[1:]) for name, measured in times.items()}
    way = cheaper(x.shape, width, REPMODE_EXPERTS, batch_size)
    faster = min(medians["merged"], medians["gated"])
    return {
        "shape": list(x.shape),
        "seconds": medians,
        "chosen": way,
        "chosen_to_faster": medians[way] / faster,
    }


def _gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output.sum(), inputs)


if __name__ == "__main__":
    main()
