"""Tables in the paper's layout: what is beside what, and which differences are marked."""

from __future__ import annotations

import csv

import pytest

from ssp.paper_table import PaperTable, Row, is_alike, paper_tasks, structure
from ssp.scores import ALL


def scores(mse: float, r2: float = 0.5) -> dict[str, dict[str, float]]:
    found = {"mse": mse, "mae": mse / 2, "r2": r2}
    return {"dna": found, "tom20": found, "zo1": found, ALL: found}


PUBLISHED = {ALL: {"mse": 0.5341, "mae": 0.4269, "r2": 0.4337}}
BETTER = {ALL: {"mse": 0.4956, "mae": 0.4078, "r2": 0.4735}}
ROWS = [
    Row("Multi-Net", [scores(0.80), scores(0.82)], PUBLISHED),
    Row("RepMode", [scores(0.60), scores(0.64)], BETTER),
    Row("close", [scores(0.63), scores(0.65)], {}),
]
TABLE = PaperTable("a title", ROWS, ["dna", "tom20", "zo1", ALL], "Multi-Net")


def test_the_best_is_marked_and_what_the_seeds_cannot_tell_from_it():
    head, rows = TABLE.blocks()[0]
    assert head[:4] == ["", "DNA MSE", "DNA MAE", "DNA R2"]
    by_title = {row[0]: row[1] for row in rows}
    assert by_title == {
        "Multi-Net": "0.8100 ± 0.0141", "  paper": "", "RepMode": "0.6200 ± 0.0283*",
        "close": "0.6400 ± 0.0141~",
    }  # fmt: skip


def test_higher_is_better_for_r2():
    rows = [Row("low", [scores(0.1, 0.2)] * 2, {}), Row("high", [scores(0.9, 0.7)] * 2, {})]
    _, cells = PaperTable("t", rows, [ALL]).blocks()[0]
    assert [row[1] for row in cells] == ["0.1000 ± 0.0000*", "0.9000 ± 0.0000"]
    assert [row[3] for row in cells] == ["0.2000 ± 0.0000", "0.7000 ± 0.0000*"]


def test_gains_stand_behind_the_last_task_with_those_of_the_paper_below():
    blocks = TABLE.blocks()
    assert [len(head) for head, _ in blocks] == [10, 7]
    head, rows = blocks[-1]
    assert head[-3:] == ["gain MSE (%)", "gain MAE (%)", "gain R2 (%)"]
    assert rows[0][-3:] == ["0", "0", "0"]
    assert rows[2][-3:] == ["+23.46", "+23.46", "+0.00~"]
    assert rows[3][-3:] == ["+7.21", "+4.47", "+9.18"]
    assert len(rows) == 5  # the last row has nothing published


def test_one_seed_has_no_spread_and_marks_no_likeness():
    assert not is_alike([0.5], [0.5, 0.6])
    assert is_alike([0.5, 0.6], [0.56, 0.58])
    assert not is_alike([0.5, 0.51], [0.56, 0.58])


def test_it_is_written_for_readers_and_for_programs(tmp_path):
    TABLE.write(tmp_path, "table1")
    assert TABLE.markdown() in (tmp_path / "table1.md").read_text()
    page = (tmp_path / "table1.html").read_text()
    assert "0.6200 ± 0.0283*" in page
    assert "better than that of Multi-Net" in page
    with (tmp_path / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 * 3 * 2  # rows, tasks, metrics, seeds
    found = [r for r in rows if (r["row"], r["task"], r["metric"]) == ("RepMode", ALL, "mse")]
    assert [(r["seed"], float(r["value"]), float(r["published"])) for r in found] == [
        ("0", 0.60, 0.4956), ("1", 0.64, 0.4956),
    ]  # fmt: skip


def test_the_text_ends_with_what_the_marks_mean():
    assert TABLE.text().endswith(TABLE.legend)
    assert "gain" not in PaperTable("t", ROWS, [ALL]).legend


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (("zo1", "dna", "mine"), ["dna", "zo1", "mine", ALL]),
        ((), [ALL]),
    ],
)
def test_tasks_are_in_the_papers_order_and_unknown_ones_behind(tasks, expected):
    assert paper_tasks(tasks, ("dna", "tom20", "zo1")) == expected
    assert structure("mine") == "mine"
