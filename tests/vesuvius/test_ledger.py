"""The ledger says what was submitted, and goes on saying it whatever is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.provenance import file_hash
from vesuvius import ledger
from vesuvius.ledger import Model, Row, Scores, read_ledger, read_manifest, record, set_scores

REPOSITORY = Path(__file__).parents[2]
MODELS = (Model("ab" * 32, "small", {"training.epochs": 2}, 0.51234),)
ROWS = (Row("a", 20, 30, 0.45, 0.1, {"stride": 64}), Row("b", 7, 9, 0.45, 0.2, {"stride": 64}))
COMMIT = "0123456789" * 4


def keep(root: Path, name: str, text: str = "Id,Predicted\na,1 1\n", **changes) -> Path:
    facts = {"commit": COMMIT, "models": MODELS, "rows": ROWS, **changes}
    return record(name, lambda path: path.write_text(text), root=root, **facts)


def table(root: Path) -> list[list[str]]:
    """Return the cells of the rows of the ledger."""
    text = (root / "LEDGER.md").read_text()
    assert text.startswith(ledger.INTRODUCTION)
    lines = text.removeprefix(ledger.INTRODUCTION).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_submission_is_kept_with_its_manifest_and_a_row(tmp_path):
    folder = keep(tmp_path, "first")
    assert folder.name.endswith("_first")
    assert {path.name for path in folder.iterdir()} == {"submission.csv", "manifest.json"}
    manifest = read_manifest(folder)
    assert (manifest.commit, manifest.models, manifest.rows) == (COMMIT, MODELS, ROWS)
    assert manifest.csv_sha256 == file_hash(folder / "submission.csv")
    assert json.loads((folder / "manifest.json").read_text())["scores"] == {
        "public": None,
        "private": None,
    }
    assert table(tmp_path) == [
        [
            folder.name,
            "01234567",
            "small, 1 changed",
            "abababab",
            "0.5123",
            "0.45",
            "a (20 x 30), b (7 x 9)",
            "",
            "",
        ]
    ]


def test_scores_land_in_the_manifest_and_in_the_row_alone(tmp_path):
    first, second = keep(tmp_path, "first"), keep(tmp_path, "second", "Id,Predicted\na,2 1\n")
    before = read_manifest(second)
    set_scores(second, Scores(public=0.61))
    assert read_manifest(second).scores == Scores(0.61, None)
    set_scores(second, Scores(0.61, 0.5))
    assert read_manifest(second).scores == Scores(0.61, 0.5)
    assert read_manifest(second).rows == before.rows
    assert [row[0] for row in table(tmp_path)] == [first.name, second.name]
    assert [row[-2:] for row in table(tmp_path)] == [["", ""], ["0.6100", "0.5000"]]


def test_the_same_again_heals_the_ledger_of_a_killed_command_and_keeps_the_scores(tmp_path):
    folder = keep(tmp_path, "first")
    set_scores(folder, Scores(0.6, 0.5))
    (tmp_path / "LEDGER.md").unlink()
    before = (folder / "manifest.json").read_bytes()
    assert keep(tmp_path, "first") == folder
    assert (folder / "manifest.json").read_bytes() == before
    assert table(tmp_path)[0][-1] == "0.5000"


@pytest.mark.parametrize(
    "change", [{"text": "Id,Predicted\na,3 1\n"}, {"models": (Model("cd" * 32, "small", {}, 0.5),)}]
)
def test_another_submission_of_the_same_name_is_refused(tmp_path, change):
    folder = keep(tmp_path, "first")
    before = (folder / "submission.csv").read_bytes()
    with pytest.raises(ValueError, match="first holds another submission; choose another --name"):
        keep(tmp_path, "first", **change)
    assert (folder / "submission.csv").read_bytes() == before


def test_a_submission_that_cannot_be_written_leaves_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("reads back as another mask")

    with pytest.raises(RuntimeError, match="another mask"):
        record("first", fail, COMMIT, MODELS, ROWS, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "two words", "-x"])
def test_a_name_that_is_no_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="letters, digits"):
        keep(tmp_path, name)


def test_what_a_killed_command_left_is_no_submission(tmp_path):
    folder = keep(tmp_path, "first")
    hidden = tmp_path / ".2026-01-01_x.partial"
    hidden.mkdir()
    (hidden / "manifest.json").write_text("{")
    assert list(read_ledger(tmp_path)) == [folder]


def test_a_folder_without_submission_and_a_damaged_manifest_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x/manifest\.json does not exist"):
        set_scores(tmp_path / "x", Scores())
    folder = keep(tmp_path, "first")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json: unknown keys .* missing keys"):
        read_manifest(folder)


def test_what_would_break_the_table_is_escaped(tmp_path):
    keep(tmp_path, "first", models=(Model("ab" * 32, "a | b", {}, 0.5),), commit=COMMIT + "-dirty")
    (row,) = table(tmp_path)
    assert row[1:3] == ["01234567-dirty", r"a \| b"]


def test_the_ledger_of_the_project_is_what_its_manifests_say():
    root = REPOSITORY / "submissions"
    before = (root / "LEDGER.md").read_text()
    rows = before.removeprefix(ledger.INTRODUCTION).splitlines()
    assert before.startswith(ledger.INTRODUCTION)
    assert len(rows) == len(read_ledger(root))
