"""Time and peak memory of `vesuvius prepare` on one fragment; prints JSON.

python benchmarks/prepare.py FRAGMENT [--out FOLDER] [--cold]

The prepared volume is written to a new folder inside FOLDER and removed again. `peak_rss_mib` is
the kernel's VmHWM, file-backed pages included, so an upper bound of the host memory taken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path

from vesuvius.fragment import open_fragment
from vesuvius.prepare import prepare_fragment


def measure(fragment_path: Path, out: Path, is_cold: bool) -> dict[str, object]:
    """Prepare a fragment once and return what it took."""
    fragment = open_fragment(fragment_path)
    input_bytes = sum(file.stat().st_size for file in fragment.files)
    if is_cold:
        for file in fragment.files:
            _drop_from_cache(file)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        prepare_fragment(fragment_path, folder)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "shape_zyx": fragment.volume.shape,
        "input_mb": round(input_bytes / 1e6),
        "is_cold": is_cold,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "input_mb_per_s": round(input_bytes / 1e6 / wall_s),
        "input_mb_per_cpu_s": round(input_bytes / 1e6 / cpu_s),
        "peak_rss_mib": _peak_rss_mib(),
    }


def _drop_from_cache(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak_rss_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fragment", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."), help="an existing folder")
    parser.add_argument("--cold", action="store_true", help="drop the input from the page cache")
    options = parser.parse_args()
    print(json.dumps(measure(options.fragment, options.out, options.cold), indent=2))
