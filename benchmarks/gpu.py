"""Training on a GPU: does it fit a 12 GB card, and how many samples a second?

Two configurations under automatic mixed precision, with AdamW, whole steps:

- paper: batch 8 of 32x128x128, width 32, mixed tasks; also as per-sample merging, the official way,
  without the memory limit, which it needs to be without;
- ink: 64x64x64, one task, 2D decoder, width 32; the largest batch that fits is searched from 32 on.

The allocator itself is limited to 12 GB, so that what runs here runs on such a card. The ways run
in turns in one process, each with and without `torch.compile`. Stored under the card's name.

    python benchmarks/gpu.py                                    on a machine with a GPU
    python benchmarks/gpu.py --device cpu --tiny                to see it work anywhere
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine
from reference import set_computation, use_per_sample_merging
from torch import Tensor

from core.files import write_json
from core.gatrep import TaskGroups
from core.unet3d import RepModeUNet, TaskConditioned
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode import build as build_network

LIMIT_GB = 12
PAPER_TASKS = (0, 3, 5, 5, 7, 8, 10, 11)  # a mixed batch: seven distinct tasks of twelve
PAPER_TARGET = 3.0
INK_TARGET_BATCH = 32
WARMUP_STEPS = 3


@dataclass(frozen=True)
class Sizes:
    """How large the networks and batches are.

    Attributes:
        width: Base channels.
        paper_shape: Patch of the paper's configuration (Z, Y, X).
        ink_shape: Patch of the ink configuration (Z, Y, X).
        ink_batches: Batches to try, ascending.
        steps: Timed steps of a turn.
    """

    width: int = 32
    paper_shape: tuple[int, int, int] = (32, 128, 128)
    ink_shape: tuple[int, int, int] = (64, 64, 64)
    ink_batches: tuple[int, ...] = (32, 40, 48, 56, 64)
    steps: int = 10


TINY = Sizes(2, (16, 32, 32), (16, 32, 32), (2, 4), 1)


class Training:
    """A network with its optimiser, and one batch to train on again and again."""

    def __init__(
        self, model: TaskConditioned, x: Tensor, tasks: list[int], is_compiled: bool
    ) -> None:
        self.device = x.device
        self.network = model.network.to(self.device).train()
        self.run = torch.compile(self.network, fullgraph=True) if is_compiled else self.network
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.precision = torch.bfloat16
        # Made outside: reading the tasks off the device is no part of a graph. In a compiled
        # network each sample is a group of its own, so that one graph serves every mixed batch.
        groups = TaskGroups.of(tasks, self.device)
        self.x, self.groups = x, groups.each_alone() if is_compiled else groups

    def step(self) -> None:
        """Do one whole training step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.precision):
            loss = self.run(self.x, self.groups).float().square().mean()
        loss.backward()
        self.optimizer.step()


# How to make each way of training, and the limit of its memory in GB, if any.
Ways = dict[str, tuple[Callable[[], Training], float | None]]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing is stored")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    device, sizes = torch.device(options.device), TINY if options.tiny else Sizes()
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    result: dict[str, Any] = {
        "what": "training steps under bf16 autocast with AdamW; samples per second, GB at the peak",
        "machine": machine(device),
        "limit_gb": LIMIT_GB,
    }
    card = re.sub(r"\W+", "_", result["machine"].get("card", device.type)).lower()
    for part, measure in (("paper", _paper), ("ink", _ink)):
        result[part] = measure(device, sizes, options.repeats)
        print(part, result[part])
        if not options.tiny:
            write_json(Path(__file__).parent / "results" / f"gpu_{card}.json", result)


def _paper(device: torch.device, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure the paper's configuration."""
    x = torch.randn(len(PAPER_TASKS), 1, *sizes.paper_shape, device=device)

    def training(way: str, is_compiled: bool = False) -> Training:
        model = RepModeUNet(12, sizes.width)
        if way == "per-sample":
            use_per_sample_merging(model)
        else:
            set_computation(model, way)
        return Training(model, x, list(PAPER_TASKS), is_compiled)

    ways: Ways = {
        "per-sample": (lambda: training("per-sample"), None),
        "auto": (lambda: training("auto"), LIMIT_GB),
        "auto, compiled": (lambda: training("auto", is_compiled=True), LIMIT_GB),
    }
    rows = _in_turns(ways, len(x), sizes.steps, repeats, device)
    ours, theirs = (rows[way].get("samples_per_s") for way in ("auto", "per-sample"))
    ratio = ours / theirs if ours and theirs else None
    return {"batch_size": len(x), "ways": rows, "auto_to_per_sample": ratio, "target": PAPER_TARGET}


def _ink(device: torch.device, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure the ink configuration at every batch that fits."""
    found: dict[int, Any] = {}
    for batch in sizes.ink_batches:
        x = torch.randn(batch, 1, *sizes.ink_shape, device=device)
        config = RepModeConfig(base_channels=sizes.width)

        def training(is_compiled: bool, x: Tensor = x, config: RepModeConfig = config) -> Training:
            model = build_network(config, sizes.ink_shape[0], num_tasks=1)
            return Training(model, x, [0] * len(x), is_compiled)

        ways: Ways = {
            "auto": (lambda training=training: training(False), LIMIT_GB),
            "auto, compiled": (lambda training=training: training(True), LIMIT_GB),
        }
        found[batch] = _in_turns(ways, batch, sizes.steps, repeats, device)
        if "failure" in found[batch]["auto"]:
            break
    fitting = [batch for batch, rows in found.items() if "failure" not in rows["auto"]]
    return {"batches": found, "largest_batch": max(fitting, default=0), "target": INK_TARGET_BATCH}


def _in_turns(
    ways: Ways,
    batch: int,
    num_steps: int,
    repeats: int,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Measure each way `repeats` times in turns; at any time one network alone is on the card."""
    torch.compiler.reset()  # so that no graph is of another batch's sizes
    rates: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = dict.fromkeys(ways, 0)
    failures: dict[str, str] = {}
    for _ in range(repeats):
        for name in [name for name in ways if name not in failures]:
            make, limit_gb = ways[name]
            _start_counting(device, limit_gb)
            try:
                rates[name].append(batch / _seconds_per_step(make(), num_steps))
            except RuntimeError as error:  # out of memory, also inside the compiler
                failures[name] = " ".join(str(error).split())[:200]
            peaks[name] = max(peaks[name], _peak_bytes(device))
    return {name: _row(rates[name], peaks[name], failures.get(name)) for name in ways}


def _row(rates: list[float], peak: int, failure: str | None) -> dict[str, Any]:
    """Return what was found of one way."""
    if failure is not None:
        return {"failure": failure, "peak_gb": peak / 1e9}
    spread = [min(rates), max(rates)]
    return {"samples_per_s": statistics.median(rates), "spread": spread, "peak_gb": peak / 1e9}


def _seconds_per_step(training: Training, num_steps: int) -> float:
    for _ in range(WARMUP_STEPS):
        training.step()
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(num_steps):
        training.step()
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started_s) / num_steps


def _start_counting(device: torch.device, limit_gb: float | None) -> None:
    """Empty the card and limit what the allocator may reserve."""
    if device.type != "cuda":
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_gb or 1e6) * 1e9 / total), device)


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    main()
