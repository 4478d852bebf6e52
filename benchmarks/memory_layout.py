"""Does channels-last memory make the ink network train faster on this machine's CPU?

Times training steps of the `small` recipe's network, forward and backward, with its input in
contiguous and in channels-last order, in turns, and stores medians and their ratio.

    python benchmarks/memory_layout.py
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path

import torch

from core.files import write_json
from vesuvius.networks.registry import build_network
from vesuvius.recipes import small

REPEATS = 7
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def main() -> None:
    """Measure, print and store."""
    recipe = small()
    model = build_network(recipe.network, recipe.window.num_layers, num_tasks=1).train()
    patch, batch_size = recipe.sampling.patch_size, recipe.training.batch_size
    volumes = torch.randn(batch_size, 1, recipe.window.num_layers, patch, patch)
    tasks = torch.zeros(batch_size, dtype=torch.long)
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(REPEATS + 1):
        for name, layout in LAYOUTS.items():
            x = volumes.to(memory_format=layout)
            started_s = time.perf_counter()
            model(x, tasks).square().mean().backward()
            seconds[name].append(time.perf_counter() - started_s)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    result = {
        "what": "training step of the small recipe's network, forward and backward",
        "shape": list(volumes.shape),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "repeats": REPEATS,
        "seconds": {name: times[1:] for name, times in seconds.items()},
        "median_samples_per_s": {name: batch_size / median for name, median in medians.items()},
        "ratio": medians["contiguous"] / medians["channels_last"],
    }
    write_json(Path(__file__).parent / "results" / "memory_layout.json", result)
    print(result["median_samples_per_s"], f"ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
