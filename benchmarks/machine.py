"""What a benchmark ran on, for its result file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the processor or card, threads and versions."""
    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"card": card.name, "card_mib": card.total_memory // 2**20}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def peak_resident_mib() -> float:
    """Return the most memory this process has held, MiB, without what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def watch(command: Sequence[str | Path], **options: Any) -> tuple[dict[str, Any], str]:
    """Run a program and return its wall time and its peak memory in MiB, and what it printed.

    `peak_anonymous_mib` leaves out pages that map files, which the system can drop at any time.

    Args:
        command: The program and its arguments.
        **options: Of `subprocess.Popen`; with `stdout=PIPE` what is printed is returned, and must
            be short.

    Raises:
        RuntimeError: If it fails.
    """
    started_s = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), text=True, **options)
    anonymous_kib = 0
    status = Path(f"/proc/{child.pid}/status")
    while True:
        pid, code, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        lines = status.read_text().splitlines() if status.exists() else []
        found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        anonymous_kib = max([anonymous_kib, *found])
        time.sleep(0.05)
    printed = child.stdout.read() if child.stdout else ""
    if code:
        raise RuntimeError(f"{' '.join(map(str, command))} failed; see above")
    return {
        "seconds": round(time.monotonic() - started_s, 1),
        "peak_mib": usage.ru_maxrss // 1024,
        "peak_anonymous_mib": anonymous_kib // 1024,
    }, printed


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
