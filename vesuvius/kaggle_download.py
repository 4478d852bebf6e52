"""Fetch the competition's files and unpack them, whatever is killed in between.

One zip is fetched, then every file of it appears whole under its name, then the zip goes.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.config import from_dict, to_dict
from core.files import atomic_path, check_space, named_when_full, read_json, write_json
from core.lock import holds
from core.terminal import note, progress
from vesuvius.kaggle_client import COMPETITION, KaggleClient

RECORD = "download.json"
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Downloaded:
    """All that a finished download wrote: the size in bytes of each file by its name."""

    competition: str
    files: dict[str, int]


@holds("out")
def download(out: Path = Path("kaggle"), competition: str = COMPETITION) -> None:
    """Download the competition's data, ready for `vesuvius prepare OUT/train/1`.

    The same command again goes on where a killed one stopped, and does nothing once all is there.

    Args:
        out: Folder to write `train`, `test` and the other files into.
        competition: Name of the competition, as in its address.

    Raises:
        ValueError: If there are no credentials, the rules are not accepted, the disk is too small,
            or what was downloaded is damaged.
        RuntimeError: If Kaggle or the network failed.
    """
    archive = out / f"{competition}.zip"
    if _is_complete(out, competition):
        archive.unlink(missing_ok=True)
        note(f"{out} holds all files of {competition} already")
        return
    _fetch(competition, archive)
    files = _unpack(archive, out)
    write_json(out / RECORD, to_dict(Downloaded(competition, files)))
    archive.unlink()
    note(f"{out} holds the {len(files)} files of {competition}")


def _is_complete(out: Path, competition: str) -> bool:
    """Tell whether every file of an earlier download is there still."""
    record = out / RECORD
    if not record.exists():
        return False
    found = from_dict(Downloaded, read_json(record), where=str(record))
    return found.competition == competition and all(
        _has_size(out / name, size) for name, size in found.files.items()
    )


def _fetch(competition: str, archive: Path) -> None:
    """Download the zip of all files, or what an earlier run lacks of it."""
    client = KaggleClient()
    bundle = client.bundle(competition)
    have = archive.stat().st_size if archive.exists() else 0
    archive.parent.mkdir(parents=True, exist_ok=True)
    if have != bundle.size:
        # What is unpacked takes as much again, and more where the zip is packed.
        check_space(archive.parent, 2 * bundle.size - have)
    with named_when_full(archive), _watched(archive, bundle.size, have):
        client.fetch(bundle, archive)


@contextlib.contextmanager
def _watched(path: Path, size: int, have: int) -> Iterator[None]:
    """Show how a file grows to `size` bytes, of which it has some, while another writes it."""
    is_over = threading.Event()

    def watch(advance: Callable[[int], None]) -> None:
        seen = have // CHUNK_BYTES
        while True:
            was_over = is_over.wait(1)
            now = path.stat().st_size // CHUNK_BYTES if path.exists() else seen
            advance(now - seen)
            seen = now
            if was_over:
                return

    total = size // CHUNK_BYTES - have // CHUNK_BYTES
    with progress(f"downloading {path.name}", total, "MiB") as advance:
        watcher = threading.Thread(target=watch, args=(advance,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()


def _unpack(archive: Path, out: Path) -> dict[str, int]:
    """Write the files of a zip that are not there yet, and return the size of each by its name."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [member for member in bundle.infolist() if not member.is_dir()]
            missing = [member for member in members if _is_missing(member, out, archive)]
            size = sum(member.file_size for member in missing)
            check_space(out, size)
            done = 0
            with progress("unpacking", size // CHUNK_BYTES, "MiB") as advance:
                for member in missing:
                    with (
                        bundle.open(member) as packed,
                        atomic_path(out / member.filename) as partial,
                        partial.open("wb") as file,
                    ):
                        shutil.copyfileobj(packed, file, CHUNK_BYTES)
                    done += member.file_size
                    advance(done // CHUNK_BYTES - (done - member.file_size) // CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{archive} is damaged ({error}); delete it and run the same command again: files that "
            "were unpacked stay"
        ) from error
    return {member.filename: member.file_size for member in members}


def _is_missing(member: zipfile.ZipInfo, out: Path, archive: Path) -> bool:
    """Tell whether a file of a zip is not unpacked yet.

    Raises:
        ValueError: If it would lie outside the folder, or another file has its name.
    """
    target = out / member.filename
    if not target.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"{archive} names the file {member.filename!r}, outside of {out}; do not trust it"
        )
    # Files appear whole, so one of another size was never ours.
    if target.exists() and not _has_size(target, member.file_size):
        raise ValueError(
            f"{target} exists and is not the file of the competition; move it or choose another "
            "--out"
        )
    return not target.exists()


def _has_size(path: Path, size: int) -> bool:
    """Tell whether there is a file of a size."""
    return path.is_file() and path.stat().st_size == size
