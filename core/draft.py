"""A folder that is filled step by step under a hidden name and continued after a kill.

Beside its target lies the draft, and in it a journal: what the draft is of and, a line for each
finished step, a checksum of what the step wrote. A run that continues believes what it finds there
only if it has that checksum, so nothing needs to be forced to the disk, and neither a kill nor a
power cut can leave a step that is half written and taken for whole. When all is there the draft
takes its name, in renamings that can be killed at any place and repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.files import named_when_full
from core.terminal import note

JOURNAL = ".steps"
STEP = re.compile(r"[0-9]+ [0-9]+")


class Draft:
    """The draft of one folder.

    Args:
        path: The folder to be; at most one process may work on it (see `core.lock`).

    Attributes:
        path: The folder to be.
        folder: Where to write until it is published, beside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self._beside("partial")
        self._whole = self._beside("whole")

    def settle(self) -> None:
        """Finish a publication that was killed; call it before looking for the folder."""
        if self._whole.exists():
            (self._whole / JOURNAL).unlink(missing_ok=True)
            self._whole.rename(self.path)

    def held_bytes(self) -> int:
        """Return how much of the disk the draft has taken."""
        files = self.folder.rglob("*") if self.folder.exists() else ()
        return sum(512 * file.stat().st_blocks for file in files)

    @contextmanager
    def begin(self, identity: Mapping[str, Any]) -> Iterator[dict[int, int]]:
        """Open the draft, new or found again, and publish it if the block ends well.

        Whatever ends the block early, the draft stays, for the same command to continue. One of
        something else is thrown away, and that is said.

        Args:
            identity: All that the content depends on, JSON-able.

        Yields:
            The checksum of each step that was finished.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        first, *lines = self._read_journal()
        with named_when_full(self.path):
            if first != digest:
                self._start_again(digest)
                lines = []
            elif lines:
                note(f"{self.path} was begun before; it continues after {len(lines)} steps of it")
            yield {int(step): int(checksum) for step, checksum in map(str.split, lines)}
        self.folder.rename(self._whole)
        self.settle()

    def finish(self, step: int, checksum: int) -> None:
        """Record that a step is written; several threads may do so."""
        with (self.folder / JOURNAL).open("ab", buffering=0) as file:
            file.write(f"{step} {checksum}\n".encode())

    def _start_again(self, digest: str) -> None:
        """Put an empty draft in the place of what is there."""
        if self.folder.exists():
            note(f"{self.path}: what was begun was of other input or settings; starting again")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / JOURNAL).write_text(f"{digest}\n")

    def _read_journal(self) -> list[str]:
        """Return its first line, "" if there is none, and those that tell of a step."""
        path = self.folder / JOURNAL
        if not path.is_file():
            return [""]
        *lines, _ = path.read_text(errors="replace").split("\n")  # what was cut off has no end
        return [*(lines[:1] or [""]), *filter(STEP.fullmatch, lines[1:])]

    def _beside(self, state: str) -> Path:
        """Return a hidden name beside the folder, with the same last suffix."""
        path = Path(os.path.abspath(self.path))  # "." has no name
        return path.with_name(f".{path.stem}.{state}{path.suffix}")
