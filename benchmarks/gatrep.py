"""How fast and how small is a training step, against per-sample merging and a plain U-Net?

Whole network, width 32, 12 tasks, float32, every sample another task; and one task in evaluation.
The ways of computing run in turns in one process; the first turn is not counted. Bytes kept for
the backward pass are those of all storages that autograd saves, weights apart. The peak is the
resident memory of a process of its own that does one step.

    python benchmarks/gatrep.py                 about ten minutes on two cores
    python benchmarks/gatrep.py --repeats 1     to see it work
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from reference import plain_unet, set_computation, use_per_sample_merging
from torch import Tensor, nn

from core.deploy import specialize
from core.files import write_json
from core.unet3d import RepModeUNet

NUM_TASKS, WIDTH = 12, 32
METHODS = ("per-sample", "merged", "gated", "auto", "plain")


@dataclass(frozen=True)
class Case:
    """Batch of a training step, and how much better than per-sample merging it is to be."""

    shape: tuple[int, int, int]
    batch_size: int
    faster: float
    smaller: float


CASES = (Case((16, 32, 32), 4, 12, 8), Case((32, 64, 64), 2, 3.5, 3))
EVAL_SHAPE, EVAL_BATCH, EVAL_FASTER = (32, 64, 64), 4, 2.5


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted turns")
    parser.add_argument("--peak-of", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        _one_step(CASES[options.peak_of[0]], METHODS[options.peak_of[1]])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    result = {
        "what": "RepMode of width 32 with 12 tasks, float32; medians of seconds, MiB",
        "machine": machine(),
        "repeats": options.repeats,
        "training": [_training(case, options.repeats) for case in CASES],
        "evaluation": _evaluation(options.repeats),
    }
    for part in (*result["training"], result["evaluation"]):
        print(_table(part), end="\n\n")
    write_json(Path(__file__).parent / "results" / "gatrep.json", result)


def _training(case: Case, repeats: int) -> dict[str, Any]:
    """Measure the training step of every method on one case."""
    model, plain = RepModeUNet(NUM_TASKS, WIDTH).train(), plain_unet(WIDTH).train()
    x, tasks = torch.randn(case.batch_size, 1, *case.shape), torch.arange(case.batch_size)
    steps = {method: _forward(method, model, plain, x, tasks) for method in METHODS}
    outputs, kept = {}, {}
    for method, forward in steps.items():
        outputs[method], kept[method] = _kept_bytes(forward, (model, plain))
    times = _in_turns({m: partial(_step, model, plain, step) for m, step in steps.items()}, repeats)
    difference = (outputs["per-sample"] - outputs["auto"]).abs().max() / outputs["auto"].std()
    rows = {
        method: _row(times, method, "per-sample")
        | {
            "kept_mib": kept[method] / 2**20,
            "kept_ratio": kept["per-sample"] / kept[method],
            "peak_resident_mib": _peak_in_own_process(case, method),
        }
        for method in METHODS
    }
    return {
        "case": f"training step, {'x'.join(map(str, case.shape))}, batch {case.batch_size}",
        "target_ratio": case.faster,
        "target_kept_ratio": case.smaller,
        "largest_output_difference_in_std": difference.item(),
        "methods": rows,
    }


def _evaluation(repeats: int) -> dict[str, Any]:
    """Measure the forward pass of one task without gradients."""
    model, plain = RepModeUNet(NUM_TASKS, WIDTH).eval(), plain_unet(WIDTH).eval()
    x, tasks = torch.randn(EVAL_BATCH, 1, *EVAL_SHAPE), torch.zeros(EVAL_BATCH, dtype=torch.long)
    special = specialize(model, 0)
    forwards = {method: _forward(method, model, plain, x, tasks) for method in METHODS}
    forwards["specialized"] = partial(special, x)
    with torch.no_grad():
        times = _in_turns(forwards, repeats)
        difference = (forwards["per-sample"]() - forwards["specialized"]()).abs().max()
    return {
        "case": f"evaluation, one task, {'x'.join(map(str, EVAL_SHAPE))}, batch {EVAL_BATCH}",
        "target_ratio": EVAL_FASTER,
        "largest_output_difference": difference.item(),
        "methods": {method: _row(times, method, "per-sample") for method in forwards},
        "specialized_to_plain": _median_ratio(times, "plain", "specialized"),
    }


def _forward(
    method: str, model: RepModeUNet, plain: nn.Module, x: Tensor, tasks: Tensor
) -> Callable[[], Tensor]:
    """Return the forward pass of a method."""

    def forward() -> Tensor:
        if method == "plain":
            return plain(x)
        if method == "per-sample":
            use_per_sample_merging(model)
        else:
            set_computation(model, method)
        return model(x, tasks)

    return forward


def _step(model: nn.Module, plain: nn.Module, forward: Callable[[], Tensor]) -> None:
    """Run a training step, without an optimiser."""
    model.zero_grad(set_to_none=True)
    plain.zero_grad(set_to_none=True)
    forward().square().mean().backward()


def _one_step(case: Case, method: str) -> None:
    model = plain_unet(WIDTH) if method == "plain" else RepModeUNet(NUM_TASKS, WIDTH)
    x, tasks = torch.randn(case.batch_size, 1, *case.shape), torch.arange(case.batch_size)
    _step(model, model, _forward(method, model, model, x, tasks))


def _peak_in_own_process(case: Case, method: str) -> float:
    """Return the peak resident memory, MiB, of a process that does one step."""
    arguments = ["--peak-of", str(CASES.index(case)), str(METHODS.index(method))]
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _kept_bytes(forward: Callable[[], Tensor], models: Sequence[nn.Module]) -> tuple[Tensor, int]:
    """Return the output, and the bytes of the storages autograd keeps, weights apart."""
    weights = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    return output.detach(), sum(size for at, size in kept.items() if at not in weights)


def _in_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time functions one after the other, again and again; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started_s = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started_s)
            print(f"turn {turn} {name}: {times[name][-1]:.2f} s", file=sys.stderr)
    return {name: measured[1:] for name, measured in times.items()}


def _row(times: dict[str, list[float]], method: str, reference: str) -> dict[str, Any]:
    return {
        "seconds": times[method],
        "median_s": statistics.median(times[method]),
        "ratio": _median_ratio(times, reference, method),
        "spread": [min(times[method]), max(times[method])],
    }


def _median_ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over turns of how many times as long one took as the other."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def _table(part: dict[str, Any]) -> str:
    """Return a Markdown table of one case."""
    lines = [f"**{part['case']}**", ""]
    lines.append(
        "| way | s | fastest..slowest | reference / it | kept MiB | reference / it | peak |"
    )
    lines.append("|---|---|---|---|---|---|---|")
    for method, row in part["methods"].items():
        kept = "| | |"
        if "kept_mib" in row:
            peak = row["peak_resident_mib"]
            kept = f"| {row['kept_mib']:.0f} | {row['kept_ratio']:.1f} | {peak:.0f} |"
        low, high = row["spread"]
        times = f"{row['median_s']:.2f} | {low:.2f}..{high:.2f} | {row['ratio']:.1f}"
        lines.append(f"| {method} | {times} {kept}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
