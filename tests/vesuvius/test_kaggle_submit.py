"""What the ledger holds is submitted once, and its scores come back into the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.files import read_json
from tests.vesuvius.kaggle_program import KERNEL
from tests.vesuvius.kaggle_service import COMPETITION, TAKES_FILES
from tests.vesuvius.test_ledger import MODELS, keep


@pytest.fixture
def entry(program):
    """A submission of the ledger."""
    return keep(program.home / "submissions", "first")


def test_the_file_of_the_pushed_kernel_is_submitted_once(program, kaggle_build, entry):
    path = entry.relative_to(program.home)
    assert "was not pushed" in program.run("submit", path, "--build", "build", code=2)
    program.kaggle.kernel_states = ["RUNNING", "COMPLETE"]
    program.run("push", "build")
    assert "is 'running', not 'complete'" in program.run("submit", path, "--build", "build", code=2)
    assert program.kaggle.submissions == []
    assert "is submitted (40000000)" in program.run("submit", path, "--build", "build")
    assert program.kaggle.asked("CreateCodeSubmission") == [
        {
            "competitionName": COMPETITION,
            "kernelOwner": KERNEL.partition("/")[0],
            "kernelSlug": KERNEL.partition("/")[2],
            "kernelVersion": 1,
            "fileName": "submission.csv",
            "submissionDescription": entry.name,
        }
    ]
    said = program.run("submit", path, "--build", "build")
    assert "is submitted already (40000000, pending)" in said
    assert len(program.kaggle.submissions) == 1


def test_a_kernel_with_other_models_is_not_submitted(program, kaggle_build):
    other = keep(
        program.home / "submissions",
        "other",
        models=(replace(MODELS[0], checkpoint_sha256="cd" * 32),),
    )
    program.run("push", "build")
    said = program.run("submit", other, "--build", "build", code=2)
    assert "build packs the checkpoints abababab but" in said
    assert "is of cdcdcdcd" in said
    assert program.kaggle.submissions == []


@pytest.mark.parametrize("part", ["dataset", "kernel"])
def test_a_build_that_was_packed_anew_since_it_was_pushed_is_not_submitted(
    program, kaggle_build, entry, part
):
    program.run("push", "build")
    (program.home / "build" / part / "more.txt").write_text("of another run")
    said = program.run("submit", entry, "--build", "build", code=2)
    assert "build was packed anew since it was pushed; run `vesuvius kaggle push" in said
    assert program.kaggle.submissions == []


def test_a_submission_that_kaggle_could_not_score_may_be_repeated(program, kaggle_build, entry):
    program.run("push", "build")
    program.kaggle.submissions = [{"ref": 1, "description": entry.name, "status": "ERROR"}]
    program.run("submit", entry, "--build", "build")
    assert len(program.kaggle.submissions) == 2


def test_a_submission_that_kaggle_renames_is_known_again(program, kaggle_build, entry):
    program.run("push", "build")
    program.run("submit", entry, "--build", "build")
    program.kaggle.submissions[0] |= {
        "description": "Ink inference | Version 1",
        "status": "COMPLETE",
        "publicScore": "0.5",
    }
    assert "is submitted already" in program.run("submit", entry, "--build", "build")
    program.run("scores")
    assert read_json(entry / "manifest.json")["scores"] == {"public": 0.5, "private": None}


def test_a_file_is_submitted_where_files_are_taken(program, entry):
    assert "takes kernels alone" in program.run("submit", entry, code=2)
    said = program.run("submit", entry, "--competition", TAKES_FILES)
    assert "is submitted (40000000)" in said
    (blob,) = program.kaggle.blobs.values()
    assert blob.content == (entry / "submission.csv").read_bytes()
    program.kaggle.submissions.clear()
    program.kaggle.refusals["PUT"] = (403, "{}")
    said = program.run("submit", entry, "--competition", TAKES_FILES, code=1)
    assert "Kaggle took no submission: Could not submit to competition" in said
    (entry / "submission.csv").write_text("Id,Predicted\na,5 5\n")
    said = program.run("submit", entry, "--competition", TAKES_FILES, code=2)
    assert "is not the one of its manifest" in said


def test_scores_are_listed_and_land_in_the_ledger(program, entry):
    other = keep(program.home / "submissions", "other", "Id,Predicted\na,9 1\n")
    scored = {"date": "2026-01-02T03:04:05.678Z", "description": entry.name, "status": "COMPLETE"}
    program.kaggle.submissions = [
        {"ref": 5, "description": entry.name, "status": "PENDING"},
        {**scored, "ref": 4, "publicScore": "0.61", "privateScore": "0.5512"},
        {**scored, "ref": 3, "publicScore": "0.1", "privateScore": "0.1"},
        {**scored, "ref": 2, "description": "from the website", "publicScore": "0.7"},
        {**scored, "ref": 1, "status": "ERROR", "errorDescription": "Submission Scoring Error"},
    ]
    said = program.run("scores")
    assert [line.split()[0] for line in said.splitlines()[:5]] == ["5", "4", "3", "2", "1"]
    assert "2026-01-02T03:04:05  complete  public 0.6100  private 0.5512" in said
    assert "error     public -       private -       " in said
    assert "(Submission Scoring Error)" in said
    assert f"{entry.name}: scores put into submissions/LEDGER.md" in said
    assert read_json(entry / "manifest.json")["scores"] == {"public": 0.61, "private": 0.5512}
    assert read_json(other / "manifest.json")["scores"] == {"public": None, "private": None}
    row = (entry.parent / "LEDGER.md").read_text().splitlines()[-2]
    assert row.endswith("| 0.6100 | 0.5512 |")
    assert "put into" not in program.run("scores")


def test_more_submissions_than_fit_one_page_are_all_listed(program):
    program.kaggle.submissions = [
        {"ref": ref, "description": "one of many", "status": "PENDING"} for ref in range(250, 0, -1)
    ]
    lines = program.run("scores").splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(250, 0, -1))


def test_no_submission_yet_is_said(program):
    assert f"no submissions to {COMPETITION} yet" in program.run("scores")
