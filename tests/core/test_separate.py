"""Work in processes of its own."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from core.separate import Piece, peak_mib, run_separately


def leave_a_mark(path: Path) -> None:
    print("said by the piece")
    print("and as an error", file=sys.stderr)
    path.write_text(str(os.getpid()))


def fail() -> None:
    raise ValueError("this piece fails")


def test_each_piece_runs_in_a_process_of_its_own_and_what_it_says_is_in_its_log(tmp_path):
    marks = [tmp_path / "a", tmp_path / "b"]
    pieces = [Piece(m.name, partial(leave_a_mark, m), tmp_path / f"{m.name}.log") for m in marks]
    advanced: list[int] = []
    run_separately(pieces, jobs=2, advance=advanced.append)
    assert len({mark.read_text() for mark in marks} | {str(os.getpid())}) == 3
    assert advanced == [1, 1]
    for mark in marks:
        assert mark.with_suffix(".log").read_text() == "said by the piece\nand as an error\n"


def test_a_failure_names_the_log_and_stops_what_has_not_begun(tmp_path, capsys):
    later = tmp_path / "later"
    pieces = [Piece("bad", fail, tmp_path / "bad.log")]
    pieces += [Piece(f"l{n}", partial(leave_a_mark, later), tmp_path / "l.log") for n in range(3)]
    with pytest.raises(ValueError, match="this piece fails"):
        run_separately(pieces, jobs=1)
    assert "bad failed; " in capsys.readouterr().err


def test_no_pieces_are_no_work():
    run_separately([], jobs=2)


def test_the_peak_is_that_of_this_process():
    assert 10 < peak_mib() < 1e6
