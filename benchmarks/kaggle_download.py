"""`vesuvius kaggle download` of two sizes from a stand-in: peak memory, and kills it survives.

The larger one is killed at random moments, then the same command finishes it; what is unpacked
must be what was packed.

    python -m benchmarks.kaggle_download --work FOLDER
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from core.files import write_json
from tests.vesuvius.kaggle_service import KEY, USER, Kaggle, environment, serving

REPOSITORY = Path(__file__).parents[1]
SIZES_MIB = 64, 1024
LAYER_MIB = 32
NUM_KILLS = 12
LONGEST_S = 3.0  # until a kill
COMMAND = """
import sys
from vesuvius.cli import main
code = main()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with 3 GiB of room")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    measured = [_measure(size_mib, work) for size_mib in SIZES_MIB]
    result = {"what": "vesuvius kaggle download from a stand-in", **machine(), "runs": measured}
    write_json(Path(__file__).parent / "results" / "kaggle_download.json", result)


def _measure(size_mib: int, work: Path) -> dict[str, Any]:
    """Download a zip of a size, killed on the way if it is the larger, and return the numbers."""
    bundle = _bundle(size_mib)
    out = work / str(size_mib)
    num_kills = NUM_KILLS if size_mib == max(SIZES_MIB) else 0
    kaggle = Kaggle(bundle=bundle, pace_s=0.0005 if num_kills else 0)
    rng = random.Random(0)
    with serving(kaggle) as address:
        account = {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY, "HOME": str(work)}
        command = [sys.executable, "-c", COMMAND, "kaggle", "download", "--out", str(out)]
        start = {"env": environment(address) | account, "cwd": REPOSITORY, "text": True}
        killed = sum(
            _is_killed(command, rng.uniform(0.5, LONGEST_S), start) for _ in range(num_kills)
        )
        kaggle.pace_s = 0
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, **start)
    with zipfile.ZipFile(io.BytesIO(bundle)) as packed:
        assert all((out / name).read_bytes() == packed.read(name) for name in packed.namelist())
    shutil.rmtree(out)
    run = {"size_mib": size_mib, "kills": killed, "peak_mib": round(int(answer.stdout) / 1024, 1)}
    print(run, flush=True)
    return run


def _is_killed(command: list[str], seconds: float, start: dict[str, Any]) -> bool:
    """Start a command and tell whether it had to be killed after so long."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **start) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def _bundle(size_mib: int) -> bytes:
    """Return a zip of layers that do not pack."""
    packed, rng = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(packed, "w") as bundle:
        for z in range(size_mib // LAYER_MIB):
            bundle.writestr(f"train/1/surface_volume/{z:02}.tif", rng.bytes(LAYER_MIB * 2**20))
    return packed.getvalue()


if __name__ == "__main__":
    main()
