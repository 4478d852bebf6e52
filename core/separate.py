"""Work done in processes of its own, one for each piece, so that the memory of each can be told."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.terminal import note


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        name: What it is called if it fails.
        work: What is to be done; it is pickled.
        log: File to which it adds what it says.
    """

    name: str
    work: Callable[[], object]
    log: Path


def run_separately(
    pieces: Iterable[Piece], jobs: int, advance: Callable[[int], object] | None = None
) -> None:
    """Do pieces of work, some at a time, each in a new process that ends with this one.

    They share the processor's cores. The first failure stops all that has not begun.

    Args:
        pieces: What is to be done.
        jobs: Pieces at a time.
        advance: Told of each finished piece.

    Raises:
        Exception: What a piece raised, once it has been said where its log is.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1,
        initializer=_share_processor, initargs=(threads, os.getpid()),
    )  # fmt: skip
    with pool:
        running: dict[Future[None], Piece] = {pool.submit(_run, one): one for one in pieces}
        try:
            for finished in as_completed(running):
                if finished.exception():
                    piece = running[finished]
                    note(f"{piece.name} failed; {piece.log} tells more")
                finished.result()
                if advance is not None:
                    advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def peak_mib() -> float:
    """Return the most memory that this process has been resident in, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _run(piece: Piece) -> None:
    piece.log.parent.mkdir(parents=True, exist_ok=True)
    with piece.log.open("a") as file, redirect_stderr(file), redirect_stdout(file):
        piece.work()


def _share_processor(threads: int, parent: int) -> None:
    """Prepare a new process: its share of the cores, and its end with that of its parent."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=partial(_follow, parent), daemon=True).start()


def _follow(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
