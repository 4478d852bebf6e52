"""`vesuvius kaggle` beside a stand-in for Kaggle, where nothing else can be reached.

Each command is a process of its own with an environment in which nothing of the user's is left. It
is forked from one that has imported what all of them import, which is most of the time they take.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.files import write_json
from tests.vesuvius.kaggle_service import COMPETITION, KEY, SIGNATURE, USER, Kaggle, environment

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 120
DATASET, KERNEL = f"{USER}/ink-weights", f"{USER}/ink-inference"
KERNEL_CODE = "print('ink')\n"
# No machine but 127.0.0.1 can be reached, and not even the name of another be looked up.
GUARD = """
import sys

def guard(event, arguments):
    asked = {"socket.connect": lambda: arguments[1][0], "socket.getaddrinfo": lambda: arguments[0]}
    if event in asked and asked[event]() != "127.0.0.1":
        raise PermissionError(f"{event} {arguments}: tests talk to 127.0.0.1 alone")

sys.addaudithook(guard)
"""
# For each order on stdin: the process id of the command, and when it has ended its exit code.
LAUNCHER = """
import json, os
import google.protobuf, kagglesdk.kaggle_client, requests, slugify, tqdm, tyro
import vesuvius.kaggle_download, vesuvius.kaggle_push
from vesuvius.cli import main

for order in map(json.loads, sys.stdin):
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["home"])
        for number, path in enumerate((os.devnull, order["out"], order["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["vesuvius", "kaggle", *order["arguments"]]
        code = 70
        try:
            code = main()
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Launcher = subprocess.Popen[str]


@contextlib.contextmanager
def launcher() -> Iterator[Launcher]:
    """Start the process that commands are forked from; nothing is left of it in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", GUARD + LAUNCHER],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Program:
    """The program and the stand-in it talks to.

    Attributes:
        kaggle: What the stand-in knows.
        address: Of the stand-in.
        home: Home, working folder and folder for temporary files of the program.
        launcher: Where commands are forked from.
    """

    kaggle: Kaggle
    address: str
    home: Path
    launcher: Launcher

    def run(self, *arguments: object, code: int = 0, **variables: str) -> str:
        """Run `vesuvius kaggle ARGUMENTS` and return all that it says, what is on stdout first.

        Args:
            *arguments: Of the command.
            code: The exit code it must have.
            **variables: More of its environment.
        """
        child = self.start(*arguments, **variables)
        watchdog = threading.Timer(TIMEOUT_S, os.kill, (child, signal.SIGKILL))
        watchdog.start()
        try:
            found = self.wait()
        finally:
            watchdog.cancel()
        out, err = (path.read_text() for path in self._said())
        assert found == code, out + err
        assert KEY not in out + err
        assert SIGNATURE not in out + err
        if code:
            assert err.strip().splitlines()[-1].startswith("vesuvius: error: "), err
            assert ("Traceback" in err) == ("--debug" in arguments), err
        return out + err

    def start(self, *arguments: object, **variables: str) -> int:
        """Start `vesuvius kaggle ARGUMENTS` and return its process id; `wait` must follow."""
        home = str(self.home)
        out, err = map(str, self._said())
        order = {
            "arguments": list(map(str, arguments)),
            "environment": {"HOME": home, "TMPDIR": home, **environment(self.address), **variables},
            "home": home,
            "out": out,
            "err": err,
        }
        assert self.launcher.stdin
        print(json.dumps(order), file=self.launcher.stdin, flush=True)
        return self.wait()

    def wait(self) -> int:
        """Return the next number of the launcher: after `start`, the exit code."""
        assert self.launcher.stdout
        return int(self.launcher.stdout.readline())

    def _said(self) -> tuple[Path, Path]:
        return self.home / "stdout.txt", self.home / "stderr.txt"


def write_build(folder: Path, checkpoint_sha256: str) -> Path:
    """Write what `vesuvius package` would of one model."""
    (folder / "dataset" / "wheels").mkdir(parents=True)
    (folder / "kernel").mkdir()
    (folder / "dataset" / "weights.safetensors").write_bytes(b"weights")
    (folder / "dataset" / "wheels" / "repmode.whl").write_bytes(b"wheel")
    facts = {"checkpoint_sha256": checkpoint_sha256}
    write_json(folder / "dataset" / "package.json", {"models": [{"facts": facts}]})
    write_json(
        folder / "dataset" / "dataset-metadata.json",
        {"id": DATASET, "title": "Ink weights", "licenses": [{"name": "other"}]},
    )
    write_json(
        folder / "kernel" / "kernel-metadata.json",
        {
            "id": KERNEL,
            "title": "Ink inference",
            "code_file": "main.py",
            "language": "python",
            "kernel_type": "script",
            "is_private": True,
            "enable_gpu": True,
            "enable_internet": False,
            "dataset_sources": [DATASET],
            "competition_sources": [COMPETITION],
        },
    )
    (folder / "kernel" / "main.py").write_text(KERNEL_CODE)
    return folder
