"""Work in processes of its own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from core.separate import Piece, peak_mib, run_separately

SAYING = """
import os, pathlib, sys
print("said by the piece")
print("and as an error", file=sys.stderr)
pathlib.Path({path!r}).write_text(str(os.getpid()))
"""


def leaving(mark: Path) -> Piece:
    """Return a piece that speaks and leaves the number of its process."""
    work = partial(exec, SAYING.format(path=str(mark)))
    return Piece(mark.name, work, mark.with_suffix(".log"))


def test_each_piece_runs_in_a_process_of_its_own_and_what_it_says_is_in_its_log(tmp_path):
    marks = [tmp_path / "a", tmp_path / "b"]
    advanced: list[int] = []
    run_separately([leaving(mark) for mark in marks], jobs=2, advance=advanced.append)
    assert len({mark.read_text() for mark in marks} | {str(os.getpid())}) == 3
    assert advanced == [1, 1]
    for mark in marks:
        assert mark.with_suffix(".log").read_text() == "said by the piece\nand as an error\n"


def test_a_failure_names_the_log_and_stops_what_has_not_begun(tmp_path, capsys):
    bad = Piece("bad", partial(exec, "raise ValueError('this piece fails')"), tmp_path / "bad.log")
    later = [leaving(tmp_path / f"later-{number}") for number in range(3)]
    with pytest.raises(ValueError, match="this piece fails"):
        run_separately([bad, *later], jobs=1)
    assert "bad failed; " in capsys.readouterr().err
    assert not list(tmp_path.glob("later-*"))


def test_a_piece_that_the_system_ends_is_told_with_the_remedy(tmp_path):
    ended = Piece("ended", partial(exec, "import os; os._exit(9)"), tmp_path / "ended.log")
    with pytest.raises(RuntimeError, match=r"ended one of ended, perhaps for lack of memory; run"):
        run_separately([ended, leaving(tmp_path / "later")], jobs=1)
    assert not (tmp_path / "later").exists()


def test_no_pieces_are_no_work():
    run_separately([], jobs=2)


def test_the_peak_is_that_of_this_process():
    assert 10 < peak_mib() < 1e6
