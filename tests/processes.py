"""Two processes on the CPU, as `accelerate launch` starts them on two GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Its command line imports timm, which fails beside a mismatched torchvision.
ACCELERATE = (
    "-c",
    "from core.torchvision_guard import ensure_torchvision; ensure_torchvision(); "
    "from accelerate.commands.accelerate_cli import main; main()",
    *("launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
TIMEOUT_S = 900  # however busy the machine is


def run_in_two_processes(*arguments: str, launcher: tuple[str, ...] = TORCHRUN) -> str:
    """Run a script, or `-m` a module, in two processes and return what they said on stderr."""
    with _started(launcher, arguments) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said[-4000:]
    return said


def kill_two_processes(*arguments: str, launcher: tuple[str, ...], when_exists: Path) -> None:
    """Start a script or module in two processes and kill them once a file exists."""
    with _started(launcher, arguments) as process:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not when_exists.exists():
            assert process.poll() is None, process.communicate()[1][-4000:]
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


@contextlib.contextmanager
def _started(
    launcher: tuple[str, ...], arguments: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    """Start processes of which none is left in the end."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    with subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # where all have ended
                os.killpg(process.pid, signal.SIGKILL)
