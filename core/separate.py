"""Work done in processes of its own, one for each piece, so that the memory of each can be told."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
        RuntimeError: If the system ended one of them.
    """
    is_told = hasattr(os, "sched_getaffinity")  # not everywhere
    num_cores = len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1
    threads = max(1, num_cores // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1,
        initializer=_share_processor, initargs=(threads, os.getpid()),
    )  # fmt: skip
    waiting, running = deque(pieces), dict[Future[None], Piece]()
    with pool:
        while waiting or running:
            while waiting and len(running) < jobs:  # no more, as what a pool holds it begins
                piece = waiting.popleft()
                running[pool.submit(_run, piece)] = piece
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                _check(finished, running)
                del running[finished]
                if advance is not None:
                    advance(1)


def _check(finished: Future[None], running: dict[Future[None], Piece]) -> None:
    """Raise what a piece raised."""
    error = finished.exception()
    if isinstance(error, BrokenProcessPool):
        names = ", ".join(piece.name for piece in running.values())
        raise RuntimeError(
            f"the system ended one of {names}, perhaps for lack of memory; run fewer at a time: "
            "the same command goes on"
        ) from error
    if error is not None:
        note(f"{running[finished].name} failed; {running[finished].log} tells more")
        raise error


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
