"""What stands beside the code agrees with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import ssp.cli
import vesuvius.cli
from core.terminal import DISTRIBUTION, run

REPOSITORY = Path(__file__).parents[1]
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/")
COMMANDS = {"vesuvius": vesuvius.cli.COMMANDS, "ssp": ssp.cli.COMMANDS}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_citation_agrees_with_the_project():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    citation = dict(re.findall(r"^(\w[\w-]*): (.+)$", read("CITATION.cff"), flags=re.MULTILINE))
    for cited, field in {"title": "name", "version": "version", "license": "license"}.items():
        assert citation[cited] == project[field]


def test_the_installed_version_is_that_of_the_project():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["name"] == DISTRIBUTION
    assert version(DISTRIBUTION) == project["version"], "run `pip install -e .` again"


def test_the_changelog_has_the_version():
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert f"\n## {version}" in read("CHANGELOG.md")


@pytest.mark.parametrize("text", ["make demo", "make test", "vesuvius kaggle download"])
def test_the_readme_shows_the_way(text):
    assert text in read("README.md")


@pytest.mark.parametrize(
    ("program", "command"),
    [(program, command) for program, commands in COMMANDS.items() for command in commands],
)
def test_every_command_answers_help(program, command, capsys):
    code = run(program, "", COMMANDS[program], [command, "--help"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert f"usage: {program} {command}" in out


def test_the_overview_gives_examples_of_commands_that_exist():
    named = re.findall(r"vesuvius (\w+)", vesuvius.cli.DESCRIPTION)
    assert set(named) == set(vesuvius.cli.COMMANDS)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("see /" + "work/x", True), ("'/" + "root/'", True), ("/kaggle/working/", False)],
)
def test_machine_paths_are_recognised(text, is_one):
    assert bool(MACHINE_PATH.search(text)) is is_one


def test_no_text_of_the_project_holds_a_path_of_one_machine():
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    assert "pyproject.toml" in listed
    found = []
    for path in (REPOSITORY / name for name in listed if name):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # binary, or deleted but still tracked
            continue
        if MACHINE_PATH.search(text):
            found.append(str(path.relative_to(REPOSITORY)))
    assert found == []
