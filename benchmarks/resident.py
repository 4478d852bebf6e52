"""Time and memory of a command, by the system's own accounting.

`private` is what the system cannot drop, sampled: anonymous and shared memory (RssAnon + RssShmem)
of the process and its children. VmHWM, kept by the system, and ru_maxrss, told at the end, count
the mapped pages of files too, which belong to the page cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERVAL_S = 0.05
LIMIT_MIB = 3 * 1024


def measure(*command: str | Path) -> dict[str, Any]:
    """Run a Python command, such as "-m", "vesuvius" and so on, and return what `watch` does."""
    return watch([sys.executable, *command])[0]


def watch(command: Sequence[str | Path], **options: Any) -> tuple[dict[str, Any], str]:
    """Run a program; return its time and its peaks of memory in MiB, and what it printed.

    Args:
        command: The program and its arguments.
        **options: Of `subprocess.Popen`; with `stdout=PIPE` what is printed is returned, and must
            be short.

    Raises:
        RuntimeError: If it fails.
    """
    started_s = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), text=True, **options)
    private_kib = high_water_kib = 0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        found = [_status(number) for number in _family(child.pid)]
        private_kib = max(
            private_kib, sum(each.get("RssAnon", 0) + each.get("RssShmem", 0) for each in found)
        )
        high_water_kib = max([high_water_kib, *(each.get("VmHWM", 0) for each in found)])
        time.sleep(INTERVAL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    printed = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed; see above")
    return {
        "seconds": round(time.monotonic() - started_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_private_mib": private_kib // 1024,
        "vm_hwm_mib": high_water_kib // 1024,
        "ru_maxrss_mib": usage.ru_maxrss // 1024,
    }, printed


def _family(pid: int) -> list[int]:
    """Return a process and all that it started and that still run."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return [pid]
    return [pid, *(number for child in children for number in _family(child))]


def _status(pid: int) -> dict[str, int]:
    """Return the sizes in KiB that the system tells of a process, none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = (re.fullmatch(r"(\w+):\s+(\d+) kB", line) for line in lines)
    return {size[1]: int(size[2]) for size in sizes if size}
