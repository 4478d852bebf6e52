"""The steps of a long command, told and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from core.files import read_json, write_json
from core.terminal import note

T = TypeVar("T")


class Steps:
    """Runs steps and keeps the time each took, over all runs of the command that it needed.

    Args:
        path: JSON file of the times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    def run(self, name: str, step: Callable[[], T]) -> T:
        """Run a step and return what it returns."""
        note(f"{name} ...")
        started_s = time.monotonic()
        result = step()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started_s
        write_json(self._path, self.seconds)
        return result
