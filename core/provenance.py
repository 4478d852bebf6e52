"""Where an output comes from: which code, libraries, device, time and command."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.terminal import DISTRIBUTION

if TYPE_CHECKING:
    import torch


def collect(device: torch.device | str | None = None, **facts: Any) -> dict[str, Any]:
    """Return a JSON-able record of this process.

    Args:
        device: Where the caller computed; None if it is not recorded.
        **facts: What the caller adds about inputs and settings; last in the record.

    Returns:
        project_version and git_commit (either may be None), python, torch, numpy, device (may be
        None), time_utc (ISO 8601), argv, and then the facts.
    """
    import numpy as np
    import torch

    return {
        "project_version": _project_version(),
        "git_commit": _git_commit(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": None if device is None else _describe(torch.device(device)),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        **facts,
    }


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's content in hex; memory does not depend on its size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _project_version() -> str | None:
    """Return the installed version, None if the code runs without being installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def _git_commit(checkout: Path) -> str | None:
    """Return the commit of a checkout, with `-dirty` after it if files differ from it.

    None if the folder is no checkout, git is missing or there is no commit yet.
    """
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _describe(device: torch.device) -> str:
    """Return a device with the name of its GPU or processor: "cpu (x86_64)"."""
    import torch

    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor()
    return f"{device} ({name or platform.machine()})"
