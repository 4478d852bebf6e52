"""Steps keep their times over all runs of a command."""

from __future__ import annotations

from core.files import read_json
from core.steps import Steps


def test_times_add_up_over_runs_and_results_are_returned(tmp_path, capsys):
    path = tmp_path / "times.json"
    assert Steps(path).run("first", lambda: 3) == 3
    before = read_json(path)["first"]
    again = Steps(path)
    again.run("first", lambda: None)
    again.run("second", lambda: None)
    assert list(read_json(path)) == ["first", "second"]
    assert read_json(path)["first"] >= before
    assert capsys.readouterr().err.splitlines() == ["first ...", "first ...", "second ..."]
