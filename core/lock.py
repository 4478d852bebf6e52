"""One writer at a time: a folder under work is held by its process and refused to a second one.

The lock is the operating system's, on a hidden file in the folder, so it ends with its process
however that ends: what kill -9 leaves behind is a file that blocks nobody, and the next run removes
it. On NFS the server keeps the lock and it holds between machines. A mount without locks, as Lustre
without `-o flock` is, gets a note instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from core.terminal import note

SUFFIX = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def locked(folder: str | Path, name: str = "") -> Iterator[None]:
    """Hold a folder, or what is called `name` in it, while the block runs.

    Not for one process to hold twice: the system would not refuse it. Where this process cannot
    write, nothing is held, for there is nothing to guard.

    Args:
        folder: It is created if need be, and removed again if the block leaves it empty.
        name: Holds that much of the folder only; two names do not exclude each other.

    Raises:
        ValueError: If another process holds it, or it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder to write into")
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f".{name}{SUFFIX}" if name else SUFFIX)
    file = None
    try:
        file = _hold(path, folder / name)
        yield
    finally:
        if file:  # the name goes first: who opened it meanwhile finds that it is gone
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            file.close()
        with contextlib.suppress(OSError):  # where something was written
            for empty in created:
                empty.rmdir()


def holds(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: a call holds the folder that this argument of the function names."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            with locked(given.arguments[argument]):
                return function(*args, **kwargs)

        return held

    return decorate


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder but for locks; none where there is no such folder."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {name for name in names if not (name.startswith(".") and name.endswith(SUFFIX))}


def _hold(path: Path, held: Path) -> IO[bytes] | None:
    """Return the lock file, opened and locked; None where nothing can be written."""
    while True:
        try:
            file = path.open("ab+", buffering=0)
        except OSError as error:
            if error.errno in NOT_WRITABLE:
                return None
            raise
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                note(f"{path.parent} has no file locks; see that no other command writes {held}")
                return file
            with file:
                raise _refusal(error, file, held) from error
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # its holder removed it after it was opened here
    with contextlib.suppress(OSError):  # on a full disk the lock is as good without this
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _refusal(error: OSError, file: IO[bytes], held: Path) -> Exception:
    """Return what to raise when a file could not be locked."""
    if error.errno not in (errno.EACCES, errno.EAGAIN):
        return error
    file.seek(0)
    holder = file.read().decode() or "another process"
    return ValueError(
        f"{held} is being written by {holder}; wait until that has finished, or choose another "
        "folder to write"
    )
