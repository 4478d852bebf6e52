"""Steps 2 to 6 of docs/kaggle.md, run as the page has them, and how long each command takes.

In an empty folder, with the simulated fragments that stand for an account. Fails with the first
command that fails.

    python benchmarks/kaggle_steps.py --work FOLDER
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

from core.files import read_json, write_json

PAGE = Path(__file__).parents[1] / "docs" / "kaggle.md"


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    work = parser.parse_args().work
    work.mkdir(parents=True)
    steps = []
    for line in commands():
        print(line, flush=True)
        started_s = time.monotonic()
        program, *arguments = shlex.split(line)
        command = [sys.executable, "-m", program, *arguments]
        answer = subprocess.run(command, cwd=work, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(answer.stderr)
        if answer.returncode:
            sys.exit(f"{line!r} ended with code {answer.returncode}")
        seconds = time.monotonic() - started_s
        last = answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else ""
        steps.append({"command": line, "seconds": round(seconds, 1), "last_line": last})
    report = read_json(work / "build" / "dry-run" / "report.json")
    dataset = [path for path in (work / "build" / "dataset").iterdir() if path.is_file()]
    result = {
        "what": "docs/kaggle.md, steps 2 to 6, on simulated fragments",
        **machine(),
        "steps": steps,
        "dataset_mib": sum(path.stat().st_size for path in dataset) / 2**20,
        "dry_run": report,
    }
    write_json(Path(__file__).parent / "results" / "kaggle_steps.json", result)


def commands() -> list[str]:
    """Return the `vesuvius` commands of steps 2 to 6 that need no account."""
    text = PAGE.read_text(encoding="utf-8")
    steps = text[text.index("\n## 2. ") : text.index("\n## 7. ")]
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", steps, re.M | re.S)
             for line in block.splitlines()]  # fmt: skip
    return [line for line in lines if re.match(r"vesuvius (?!kaggle)", line)]


if __name__ == "__main__":
    main()
