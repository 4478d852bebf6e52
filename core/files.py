"""Outputs that appear whole or not at all.

Every output is written under a temporary name beside its target and renamed at the end, so an
interrupted command never leaves a file that looks finished.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` once the block ends without an exception.

    Args:
        path: The file to write; missing parents are created and an existing file is replaced.

    Yields:
        A path in the same folder with the same last suffix. The block must write it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with named_when_full(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder that becomes `path` once the block ends without an exception.

    Args:
        path: The folder to create; missing parents are created.

    Yields:
        An empty folder beside `path`. What an interrupted earlier run left there is removed.

    Raises:
        FileExistsError: If `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} already exists; remove it or choose another folder")
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with named_when_full(path):
            yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_array(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as .npy; a full disk is told as one, with the name of the file."""
    import numpy as np

    # numpy writes to a file of mode "wb" by its own means and does not tell why that fails
    with named_when_full(Path(path)), open(path, "w+b") as file:
        np.save(file, array)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON, whole or not at all.

    Raises:
        ValueError: If `obj` holds NaN or infinity, which JSON cannot carry.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write it again") from error


def check_space(out: str | Path, size: int) -> None:
    """Raise ValueError if the disk of `out`, which need not exist yet, has less than `size` bytes.

    Args:
        out: Where something is to be written.
        size: Number of bytes it will have.
    """
    folders = (Path(out).absolute(), *Path(out).absolute().parents)
    free = shutil.disk_usage(next(folder for folder in folders if folder.exists())).free
    if free < size:
        raise ValueError(
            f"{out} has {free / 2**30:.1f} GiB free but {size / 2**30:.1f} GiB are needed; "
            "free some space or choose another --out"
        )


def _partial(path: Path) -> Path:
    """Return the temporary name of `path`, hidden and with the same last suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Let the error of a full disk, which names no file, name `path`."""
    with _named(path, (errno.ENOSPC, errno.EDQUOT)):
        yield


@contextmanager
def named_when_unreadable(path: Path) -> Iterator[None]:
    """Let the error of a disk that cannot be read, which names no file, name `path`."""
    with _named(path, (errno.EIO,)):
        yield


@contextmanager
def _named(path: Path, codes: tuple[int, ...]) -> Iterator[None]:
    """Let an error of the system with one of these codes name `path` if it names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in codes and error.filename is None:
            error.filename = str(path)
        raise
