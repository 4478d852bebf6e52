"""How long `ssp demo` takes, and what its network reaches on cells it has not seen.

    python benchmarks/ssp_demo.py --work FOLDER

FOLDER must be new: a demo that is continued says little of its time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from machine import machine

from core.files import read_json, write_json
from ssp.demo import demo


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the demo")
    out = parser.parse_args().work
    if out.exists():
        raise SystemExit(f"{out} exists; choose another --work, so that all of the demo is timed")
    demo(out)
    seconds = read_json(out / "times.json")
    result = {
        "machine": machine(),
        "seconds": seconds,
        "total_s": sum(seconds.values()),
        "all": read_json(out / "scores" / "scores.json")["tasks"]["All"],
    }
    write_json(Path(__file__).parent / "results" / "ssp_demo.json", result)
    print(result)


if __name__ == "__main__":
    main()
