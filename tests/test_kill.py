"""Commands that are killed at random moments finish and repeat nothing: `benchmarks/kill.py`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import REPOSITORY, TIMEOUT_S

SCRIPT = REPOSITORY / "benchmarks" / "kill.py"


def kill(out: Path, *options: str, code: str = "") -> tuple[int, str]:
    """Run the script, after some more code, and return its exit code and what it said."""
    run = f"import runpy, sys; {code}\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-c", run, str(SCRIPT), "--short", "--out", str(out), *options],
        env=os.environ
        | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{SCRIPT.parent}"}
        | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
    )
    return process.returncode, process.stderr


def table(commands: dict[str, Any]) -> str:
    """Return the rows of docs/scale.md."""
    rows = []
    for name, one in commands.items():
        done = sorted(kill["finished_pieces"] for told in one["rounds"] for kill in told["kills"])
        median = statistics.median_low(done)
        moments = f"{done[0]}, {median}, {done[-1]} of {one['pieces']}" if one["pieces"] else "-"
        cells = [
            f"`{name}`", f"{one['undisturbed_s']:.1f}", one["kills"], one["attempts"],
            one["finished_with_the_same_bits"], moments, one["pieces_repeated"],
            len(one["compared"]),
        ]  # fmt: skip
        rows.append(" | ".join(map(str, cells)))
    return "".join(f"| {row} |\n" for row in rows)


def test_the_page_tells_the_stored_result() -> None:
    result = SCRIPT.parent / "results" / "kill.json"
    assert table(found(result)) in (REPOSITORY / "docs" / "scale.md").read_text()


def found(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())["commands"]


def test_a_killed_simulation_and_preparation_end_with_the_same_bits(tmp_path: Path) -> None:
    options = ("--kills", "2", "--commands", "simulate", "prepare")
    code, said = kill(tmp_path / "kill.json", *options)
    assert code == 0, said
    assert [one["kills"] for one in found(tmp_path / "kill.json").values()] == [2, 2]


@pytest.mark.slow
def test_every_killed_command_ends_with_the_same_bits(tmp_path: Path) -> None:
    code, said = kill(tmp_path / "kill.json", "--kills", "4", "--seed", "1")
    assert code == 0, said
    assert {one["kills"] for one in found(tmp_path / "kill.json").values()} == {4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("from core.draft import Draft; Draft._read_journal = lambda draft: ['']", "repeated band"),
        (
            "import os; import core.files as files; write = files.write_json; "
            "files.write_json = lambda path, obj: write(path, {**obj, 'process': os.getpid()})",
            "ended with other",
        ),
    ],
)
def test_work_that_is_repeated_and_bits_that_differ_are_found(
    tmp_path: Path, fault: str, says: str
) -> None:
    options = ("--kills", "40", "--commands", "prepare")  # some of them in the work
    code, said = kill(tmp_path / "kill.json", *options, code=fault)
    assert code != 0
    assert says in said
