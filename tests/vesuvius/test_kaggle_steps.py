"""The commands of docs/kaggle.md that need Kaggle, run as they stand there, in their order."""

from __future__ import annotations

import re
import shlex

from core.files import read_json
from tests.vesuvius.kaggle_program import REPOSITORY
from tests.vesuvius.kaggle_service import zipped
from tests.vesuvius.test_ledger import keep


def test_the_steps_lead_from_the_data_to_a_score(program, kaggle_build, fragments):
    entry = keep(program.home / "submissions", "first")
    program.kaggle.bundle = zipped(fragments["1"])
    program.kaggle.kernel_states = ["RUNNING", "COMPLETE"]
    program.kaggle.score = {"status": "COMPLETE", "publicScore": "0.6", "privateScore": "0.5"}
    page = (REPOSITORY / "docs" / "kaggle.md").read_text(encoding="utf-8")
    commands = re.findall(r"^vesuvius kaggle (.*)$", page, re.M)
    for command in commands:
        words = shlex.split(command)
        program.run(*(next(program.home.glob(word)) if "*" in word else word for word in words))
    assert [command.split()[0] for command in commands] == [
        "download", "push", "status", "submit", "scores",
    ]  # fmt: skip
    program.run("scores")  # the stand-in scores what it has listed once
    assert read_json(entry / "manifest.json")["scores"] == {"public": 0.6, "private": 0.5}
