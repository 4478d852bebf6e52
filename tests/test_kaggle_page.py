"""The page about Kaggle gives commands that this program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import vesuvius.cli
from core.terminal import _choose

PAGE = Path(__file__).parents[1] / "docs" / "kaggle.md"
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("vesuvius ")]


def test_the_steps_are_numbered_without_gaps():
    numbers = re.findall(r"^## (\d+)\. ", PAGE.read_text(encoding="utf-8"), re.M)
    assert [int(number) for number in numbers] == list(range(1, 11))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_understood(line):
    _, *arguments = shlex.split(line, comments=True)
    assert _choose("vesuvius", "", vesuvius.cli.COMMANDS, arguments) is not None
