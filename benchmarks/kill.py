"""Kill -9 at random moments: does the same command again finish, repeat nothing, end the same?

Simulates a fragment, prepares it, trains on it, predicts it with one network and with samples, and
submits, each command first undisturbed. Then each is killed at moments drawn uniformly over its
undisturbed time, and started again with the same options (train with --resume, once the folder
tells that it began); what was started again may be killed again. When it has finished, its output
is compared and the next round begins, until the command was killed as often as asked.

- A command is a process of its own group, and the whole group is killed. It is forked from this
  process, which has imported everything, and the clock starts when it holds its output, so that
  kills fall into work; a submission, which holds nothing, is timed from its start.
- What is compared: names and content of all files, hidden ones too. Left out is what tells of
  times and of the command line, which differ between any two runs: `time_utc` and `argv` of
  provenance.json, `seconds` and `samples_per_s` of metrics.jsonl, `seconds` in the position of
  last.safetensors, and TensorBoard's logs, in which every event has its time.
- What is repeated is counted where work is recorded as finished: a band of rows in a draft, a tile
  row in a journal, the position in a checkpoint. Every process writes down what it records; nothing
  may be recorded twice. A submission is one piece, which is either there or not.

    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1  a fork would lose further threads
    python benchmarks/kill.py                        20 kills of each command, stored in results/
    python benchmarks/kill.py --short --kills 1 --out FILE.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

from core import checkpoint
from core.draft import Draft
from core.files import write_json
from core.inference import Journal
from core.terminal import run as run_command
from core.training_run import Run
from vesuvius import prepare, texture
from vesuvius.cli import COMMANDS

RESULT = Path(__file__).parent / "results" / "kill.json"
POLL_S = 0.001
TIMES = {"time_utc", "argv", "seconds", "samples_per_s"}
NAMES = ("simulate", "prepare", "train", "predict", "predict samples", "submit")
TINY = [
    *("--network.base-channels", "2", "--network.num-stages", "2", "--window.num-layers", "8"),
    *("--sampling.patch-size", "32", "--sampling.num-buckets", "4", "--sampling.bucket-cap", "6"),
    *("--sampling.num-void", "4", "--sampling.translation", "-8", "8", "--validation.gap", "16"),
    *("--validation.tile-size", "48", "--validation.stride", "32", "--training.batch-size", "4"),
    *("--training.ema-decay", "0.9", "--training.checkpoint-every-steps", "3"),
]


@dataclass(frozen=True)
class Size:
    """How much work there is.

    Attributes:
        height: Of the fragment.
        width: Of the fragment.
        layers: Of the fragment.
        epochs: Of the training.
        samples: Of the prediction with samples, in passes of 8.
        band_rows: Rows that are prepared at a time.
    """

    height: int
    width: int
    layers: int
    epochs: int
    samples: int
    band_rows: int


LONG = Size(512, 320, 65, epochs=2, samples=10, band_rows=8)
SHORT = Size(256, 192, 24, epochs=2, samples=9, band_rows=16)


@dataclass(frozen=True)
class Job:
    """A command whose output lies in one folder or file, and whose input is not under test.

    Attributes:
        name: One of `NAMES`.
        out: The output; a sibling of the same name is compared with it.
        lock: What it holds while it works; None for nothing.
        arguments: Of `vesuvius`.
    """

    name: str
    out: Path
    lock: Path | None
    arguments: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the arguments to start or to continue with."""
        is_begun = self.name == "train" and (self.out / "config.json").exists()
        return [*self.arguments, *(["--resume"] if is_begun else [])]


def jobs(inputs: Path, outputs: Path, size: Size) -> dict[str, Job]:
    """Return the commands by name, reading from one folder and writing to another."""
    fragment, run = inputs / "a", inputs / "run"
    shape = ("--size", size.height, size.width, "--layers", size.layers, "--seed", 1)
    tiles = ("--tile-size", 64, "--stride", 48, "--batch-size", 4)
    samples = (*tiles, "--mc-samples", size.samples, "--mc-dropout", 0.3)
    data = ("--data", inputs / "prepared", "--training.epochs", size.epochs, *TINY)
    found: dict[str, tuple[str, str, tuple[object, ...]]] = {
        "simulate": ("a", ".a.lock", ("simulate", outputs / "a", *shape)),
        "prepare": ("prepared", "prepared/.a.vol.lock", ("prepare", fragment, "--out")),
        "train": ("run", "run/.lock", ("train", "small", *data, "--out")),
        "predict": ("map", "map/.lock", ("predict", run, fragment, *tiles, "--out")),
        "predict samples": ("all", "all/.lock", ("predict", run, fragment, *samples, "--out")),
        "submit": ("s.csv", "", ("submit", inputs / "map", "--out")),
    }
    return {
        name: Job(
            name,
            outputs / out,
            outputs / lock if lock else None,
            (*map(str, arguments), *([str(outputs / out)] if arguments[-1] == "--out" else [])),
        )
        for name, (out, lock, arguments) in found.items()
    }


class Attempt:
    """A command under way in a forked process; what it records as finished goes to a file.

    Args:
        job: The command.
        log: The file to append to.
        errors: File for what the command says.
    """

    def __init__(self, job: Job, log: Path, errors: Path) -> None:
        self.errors = errors
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_work(job.command(), log, errors))
        while os.getpgid(self.pid) != self.pid:  # until it leads a group of its own
            time.sleep(POLL_S)
        while not self._is_at_work(job.lock):
            time.sleep(POLL_S)
        self.started_s = time.monotonic()

    def _is_at_work(self, lock: Path | None) -> bool:
        """Tell whether the command holds its output, or has ended already."""
        if lock is None or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        with contextlib.suppress(FileNotFoundError):
            return lock.read_text().startswith(f"process {self.pid} ")
        return False

    def ends_within(self, limit_s: float) -> bool:
        """Wait and tell whether the command ended; raise RuntimeError if it failed."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - self.started_s >= limit_s:
                return False
            time.sleep(POLL_S)
        if status:
            raise RuntimeError(f"the command failed: {self.errors.read_text()[-2000:]}")
        return True

    def kill(self) -> None:
        """End the whole group, as nothing can prevent."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _work(command: list[str], log: Path, errors: Path) -> int:
    """Run a command in this process and return its exit code."""
    os.setsid()
    with errors.open("w") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    with log.open("ab", buffering=0) as file:

        def record(kind: type, method: str, tell: Callable[..., object]) -> None:
            whole = getattr(kind, method)

            def recorded(*arguments: Any) -> Any:
                result = whole(*arguments)
                file.write(f"{tell(*arguments)}\n".encode())
                return result

            setattr(kind, method, recorded)

        record(Draft, "finish", lambda draft, step, _: f"band from row {step}")
        record(Journal, "commit", lambda journal, row, _: f"{journal.fingerprint} row {row}")
        record(Run, "save", lambda run: f"epoch {run.position.epoch} step {run.position.step}")
        return run_command("vesuvius", "", COMMANDS, command)


def contents(out: Path) -> dict[str, str]:
    """Return what identifies the content of each file of an output, times left out."""
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out.parent)): _identity(path)
        for path in sorted(files)
        if "tfevents" not in path.name
    }


def _identity(path: Path) -> str:
    """Return the hash of a file, times left out."""
    if path.name in ("provenance.json", "metrics.jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        kept = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        content = json.dumps(kept).encode()
    elif path.name == "last.safetensors":
        tensors, meta = checkpoint.load(path, checkpoint.TRAINING_STATE)
        del meta["position"]["seconds"]
        voxels = [(name, t.numpy().tobytes()) for name, t in sorted(tensors.items())]
        content = repr((voxels, meta)).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def clear(folder: Path) -> None:
    """Remove what is in a folder, hidden files too."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody killed.

    Attributes:
        seconds: How long it took.
        pieces: What it recorded as finished.
        contents: What it wrote.
    """

    seconds: float
    pieces: list[str]
    contents: dict[str, str]

    @classmethod
    def run(cls, job: Job, work: Path) -> Undisturbed:
        """Run a command."""
        log = work / "undisturbed.log"
        log.unlink(missing_ok=True)
        attempt = Attempt(job, log, work / "errors.log")
        attempt.ends_within(math.inf)
        seconds = time.monotonic() - attempt.started_s
        return cls(seconds, log.read_text().splitlines(), contents(job.out))


def kill_often(
    job: Job, whole: Undisturbed, kills: int, rng: random.Random, work: Path
) -> dict[str, Any]:
    """Kill a command again and again and return what came of it.

    Raises:
        RuntimeError: If it fails, ends with something else, or does anything twice.
    """
    log, errors = work / "killed.log", work / "errors.log"
    rounds: list[dict[str, Any]] = []
    left = kills
    while left:
        clear(job.out.parent)
        log.write_bytes(b"")
        moments: list[dict[str, float]] = []
        while True:
            attempt = Attempt(job, log, errors)
            after_s = rng.uniform(0, whole.seconds) if left else math.inf
            if attempt.ends_within(after_s):
                break
            attempt.kill()
            left -= 1
            finished = len(log.read_text().splitlines())
            moments.append({"after_s": round(after_s, 3), "finished_pieces": finished})
        _check_same(job, whole.contents)
        _check_once(job, log, whole.pieces)
        rounds.append({"kills": moments, "attempts": len(moments) + 1})
    return {
        "undisturbed_s": round(whole.seconds, 3),
        "pieces": len(whole.pieces),
        "kills": kills,
        "attempts": sum(one["attempts"] for one in rounds),
        "finished_with_the_same_bits": len(rounds),
        "pieces_repeated": 0,  # or this would not have been reached
        "compared": list(whole.contents),
        "rounds": rounds,
    }


def _check_same(job: Job, wanted: dict[str, str]) -> None:
    """Raise RuntimeError unless an output has the files and contents wanted, and nothing else."""
    found = contents(job.out)
    if found != wanted:
        names = sorted(name for name, _ in found.items() ^ wanted.items())
        raise RuntimeError(f"{job.name} ended with other {', '.join(names)}; see {job.out}")
    others = [path.name for path in job.out.parent.iterdir() if path != job.out]
    if others:
        raise RuntimeError(f"{job.name} left {', '.join(others)} in {job.out.parent}")


def _check_once(job: Job, log: Path, pieces: list[str]) -> None:
    """Raise RuntimeError if a piece was finished twice, or is none of the work there is."""
    done = Counter(log.read_text().splitlines())
    repeated = sorted(piece for piece, times in done.items() if times > 1 or piece not in pieces)
    if repeated:
        raise RuntimeError(f"{job.name} repeated {', '.join(repeated)}; see {log}")


def import_everything() -> None:
    """Import what the commands import while they run; no thread may run afterwards."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import accelerate  # noqa: F401
    import albumentations  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard

    import vesuvius.predict
    import vesuvius.simulate
    import vesuvius.submission
    import vesuvius.train  # noqa: F401

    torch.set_num_threads(1)
    assert len(os.listdir("/proc/self/task")) == 1, (
        "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1"
    )


def main() -> None:
    """Kill every command, print and store what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--commands", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--short", action="store_true", help="smaller input")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    size = SHORT if options.short else LONG
    import_everything()
    prepare.BAND_BYTES = size.band_rows * size.width * size.layers  # several bands of little
    if options.short:
        texture.FibreTexture.PERIOD = 256
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "whole").mkdir()
        (work / "killed").mkdir()
        whole, killed = (jobs(work / "whole", work / name, size) for name in ("whole", "killed"))
        found: dict[str, Any] = {}
        for name in NAMES[: max(map(NAMES.index, options.commands)) + 1]:
            expected = Undisturbed.run(whole[name], work)
            if name in options.commands:
                rng = random.Random(f"{options.seed} {name}")
                told = kill_often(killed[name], expected, options.kills, rng, work)
                found[name] = told
                print(f"{name}: {told['kills']} kills, {told['attempts']} attempts, same bits")
    record = {
        "what": "kill -9 at random moments, the same command again until it finishes",
        "seed": options.seed,
        "shape_ZYX": [size.layers, size.height, size.width],
        "machine": machine(),
        "commands": found,
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
