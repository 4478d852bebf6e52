"""docs/scale.md shows the numbers that are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
LINES = PAGE.splitlines()


def stored(name: str) -> dict[str, Any]:
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_memory_of_the_biggest_fragment_is_what_is_stored_and_within_its_limit():
    record = stored("fragment_2")
    for name, found in record["commands"].items():
        cells = [found[key] for key in ("peak_private_mib", "vm_hwm_mib", "cpu_s", "seconds")]
        assert f"| {name} | {' | '.join(map(str, cells))} |" in LINES
        assert found["vm_hwm_mib"] < record["limit_mib"]
    assert record["same_bits"]


def test_the_cost_over_the_network_alone_is_what_is_stored_and_within_its_limit():
    ratio = stored("predict_overhead")["ratio_of_medians"]["wall_s"]
    assert f"**{ratio:.2f}**" in PAGE
    assert ratio <= 1.1
