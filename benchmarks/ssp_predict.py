"""`ssp predict` against its network alone on the same tiles, and the memory it needs.

Each is measured in a process of its own: the command from reading the image to the written file,
and the plain network on as many tiles of the same size, which are in memory already. Compared is
processor time, which other programs on the machine disturb little; wall time stands beside it.

    python benchmarks/ssp_predict.py [--shape 65 624 924] [--width 8] [--threads 2] [--memory]

With --memory only the command runs, and its network on every 20th tile alone; for the others their
input is taken. The memory is that of the whole, in a twentieth of the time. `peak_anonymous_mib` is
what the process itself holds; the rest of `peak_resident_mib` are mapped pages of files, which the
system drops when it needs the space.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from machine import machine, peak_resident_mib
from resident import watch

from core.deploy import specialize
from core.files import read_json, write_json
from core.official import load_official_checkpoint, save_official_checkpoint
from core.unet3d import RepModeUNet
from ssp.mapping import Field, OneChannel
from ssp.predict import predict
from ssp.recipes import PATCH_SIZE
from ssp.source import InputConfig

TASK = "dna"
SPARSE = 20
RESULT = Path(__file__).parent / "results" / "ssp_predict.json"


def main() -> None:
    """Measure, print and store; results of other shapes and widths stay in the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(40, 160, 192))
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="of the command alone")
    parser.add_argument("--only", choices=("command", "network", "memory"), help="in this process")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        jobs = {"command": run_command, "network": run_network, "memory": run_sparsely}
        job = jobs[options.only]
        print(json.dumps(job(options.work, tuple(options.shape))))
        return
    shape = tuple(options.shape)
    with tempfile.TemporaryDirectory() as folder:
        write_input(Path(folder), shape, options.width)
        kinds = ("memory",) if options.memory else ("network", "command")
        measured = {only: in_own_process(only, Path(folder), options) for only in kinds}
    found: dict[str, Any] = {"tiles": num_tiles(shape), **measured, "machine": machine()}
    if not options.memory:
        found["slower_in_processor_time"] = ratio(measured, "processor_s")
        found["slower_in_wall_time"] = ratio(measured, "wall_s")
    stored = read_json(RESULT) if RESULT.exists() else {}
    name = f"{' x '.join(map(str, shape))}, width {options.width}"
    write_json(RESULT, stored | {name: found})
    print(name, json.dumps(found, indent=2))


def in_own_process(only: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one of the two measured, in a new process."""
    arguments = ["--only", only, "--work", str(folder), "--threads", str(options.threads)]
    arguments += ["--shape", *map(str, options.shape)]
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as the program has it
    watched, printed = watch(command, stdout=subprocess.PIPE, env=environment)
    return json.loads(printed) | {"peak_anonymous_mib": watched["peak_private_mib"]}


def write_input(folder: Path, shape: tuple[int, ...], width: int) -> None:
    """Write a stack of noise and an official checkpoint of random weights."""
    voxels = np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)
    tifffile.imwrite(folder / "stack.tif", voxels, metadata={"axes": "ZYX"})
    torch.manual_seed(0)
    save_official_checkpoint(RepModeUNet(1, base_channels=width), [TASK], folder / "repmode.p")


def run_command(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """Predict the stack as a user does."""
    image = InputConfig(factor=(1.0, 1.0, 1.0))

    def job() -> None:
        predict(
            folder / "repmode.p", folder / "stack.tif", out=folder / "out", device="cpu",
            image=image,
        )  # fmt: skip

    return timed(job)


def run_sparsely(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """Predict the stack, the network on every 20th tile alone; return the memory."""
    compute, calls = OneChannel.forward, count()

    def sparse(self: OneChannel, tiles: torch.Tensor) -> torch.Tensor:
        return tiles[:, None] if next(calls) % SPARSE else compute(self, tiles)

    OneChannel.forward = sparse
    found = run_command(folder, shape)
    return {"peak_resident_mib": found["peak_resident_mib"]}


def run_network(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """Run the network on as many tiles."""
    model, _ = load_official_checkpoint(folder / "repmode.p")
    plain = specialize(model, 0)
    tile = torch.randn(1, 1, *PATCH_SIZE)

    def job() -> None:
        with torch.inference_mode():
            for _ in range(num_tiles(shape)):
                plain(tile)

    return timed(job)


def num_tiles(shape: tuple[int, ...]) -> int:
    """Return the number of tiles of a stack."""
    return int(np.prod(Field(shape, PATCH_SIZE).plan.grid))


def timed(job: Callable[[], None]) -> dict[str, float]:
    """Return wall and processor time of a job, and the most memory the process held."""
    wall_s, processor_s = time.perf_counter(), time.process_time()
    job()
    return {
        "wall_s": round(time.perf_counter() - wall_s, 1),
        "processor_s": round(time.process_time() - processor_s, 1),
        "peak_resident_mib": round(peak_resident_mib()),
    }


def ratio(measured: dict[str, dict[str, float]], name: str) -> float:
    """Return by which part the command took longer than the network."""
    return round(measured["command"][name] / measured["network"][name] - 1, 3)


if __name__ == "__main__":
    main()
