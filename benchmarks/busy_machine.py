"""How much does training suffer when another process uses a core, by OpenMP wait policy?

Times training steps of the `small` recipe's network in fresh processes, alone and beside one busy
process per core but one, under the default and the passive policy, in turns, and stores medians.

    python benchmarks/busy_machine.py
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from core.files import write_json

REPEATS = 3
POLICIES = ("default", "PASSIVE")
BUSY = "while True: pass"
STEPS = """
import time, torch
from vesuvius.networks.registry import build_network
from vesuvius.recipes import small
recipe = small()
model = build_network(recipe.network, recipe.window.num_layers, num_tasks=1).train()
x = torch.randn(8, 1, 16, 64, 64).to(memory_format=torch.channels_last_3d)
tasks = torch.zeros(8, dtype=torch.long)
seconds = []
for _ in range(5):
    started_s = time.perf_counter()
    model(x, tasks).square().mean().backward()
    seconds.append(time.perf_counter() - started_s)
print(8 / sorted(seconds[1:])[1])
"""


def samples_per_s(policy: str) -> float:
    """Return the training speed of a fresh process under a wait policy."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure, print and store."""
    num_busy = max(1, (os.cpu_count() or 2) - 1)
    speeds: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for policy in POLICIES:
            speeds.setdefault(f"alone, {policy}", []).append(samples_per_s(policy))
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
        try:
            for policy in POLICIES:
                speeds.setdefault(f"busy, {policy}", []).append(samples_per_s(policy))
        finally:
            for other in others:
                other.kill()
                other.wait()
    result = {
        "what": "training of the small recipe's network, samples per second",
        "cores": os.cpu_count(),
        "busy_processes": num_busy,
        "processor": platform.processor() or platform.machine(),
        "samples_per_s": speeds,
        "median": {name: statistics.median(values) for name, values in speeds.items()},
    }
    write_json(Path(__file__).parent / "results" / "busy_machine.json", result)
    print(result["median"])


if __name__ == "__main__":
    main()
