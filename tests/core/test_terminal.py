"""Commands start fast, errors take one line, long work shows its pace."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
import tyro

from core import terminal
from core.terminal import Command, note, progress, run


def simulate(
    out: Path,
    /,
    size: tuple[int, int],
    num_layers: int = 65,
    mode: Literal["a", "b"] = "a",
    crop: tuple[int, int] | None = None,
) -> None:
    """Write a fragment.

    Args:
        out: Folder to write.
        size: Height and width.
        num_layers: Number of layers.
        mode: Kind of fragment.
        crop: Height and width kept.

    Raises:
        ValueError: Never.
    """
    print(out, size, num_layers, mode)


@dataclass
class Train:
    """Train a model.

    Args:
        rate: Learning rate.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate {self.rate} is below 0; choose one above")

    def __call__(self) -> None:
        print("trained at", self.rate)


@dataclass
class Small(Train):
    """Train a small model."""

    out: Path = Path("runs")


@dataclass
class Large(Train):
    """Train a large model."""


Recipe = (
    Annotated[Small, tyro.conf.subcommand("small")]
    | Annotated[Large, tyro.conf.subcommand("large")]
)


def warn() -> None:
    """Do what noisy libraries do."""
    warnings.warn("noise", stacklevel=1)
    logging.getLogger("noisy").error("noise")


def fail_with(error: BaseException) -> Callable[[], None]:
    """Return a command that raises `error`."""

    def fail() -> None:
        raise error

    return fail


COMMANDS = {
    name: Command(f"summary of {name}", f"example_commands:{target}")
    for name, target in {
        "simulate": "simulate",
        "train": "Train",
        "recipe": "Recipe",
        "warn": "warn",
        "fail": "fail",
        "absent": "no_such_attribute",
        "group": "GROUP",
    }.items()
}


GROUP = {"inner": Command("summary of inner", "example_commands:simulate")}


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a command line and returns exit code, stdout and stderr."""
    module = ModuleType("example_commands")
    vars(module).update(simulate=simulate, Train=Train, Recipe=Recipe, warn=warn, GROUP=GROUP)
    monkeypatch.setitem(sys.modules, "example_commands", module)

    def call(*argv: str) -> tuple[int, str, str]:
        code = run("prog", "A worked example.", COMMANDS, argv)
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_the_overview_names_every_command_and_imports_none(call, monkeypatch, argv):
    monkeypatch.delitem(sys.modules, "example_commands")
    code, out, err = call(*argv)
    assert (code, err) == (0, "")
    assert "A worked example." in out
    assert all(f"summary of {name}" in out for name in COMMANDS)


def test_the_version_is_that_of_the_distribution(call):
    assert call("--version") == (0, f"prog {version('repmode-vesuvius')}\n", "")


def test_a_function_gets_its_typed_options(call):
    assert call("simulate", "one", "--size", "3", "4", "--num-layers", "9") == (
        0,
        "one (3, 4) 9 a\n",
        "",
    )


def test_an_instance_of_a_type_is_called(call):
    assert call("train", "--rate", "2") == (0, "trained at 2.0\n", "")


def test_a_subcommand_has_its_own_options(call):
    assert call("recipe", "large", "--rate", "2") == (0, "trained at 2.0\n", "")
    assert "--out PATH" in call("recipe", "small", "--help")[1]


def test_a_group_has_commands_of_its_own(call):
    assert call("group", "inner", "one", "--size", "3", "4") == (0, "one (3, 4) 65 a\n", "")
    for argv in (["group"], ["group", "--help"]):
        code, out, err = call(*argv)
        assert (code, err) == (0, "")
        assert "usage: prog group COMMAND" in out
        assert "summary of group" in out
        assert "summary of inner" in out


def test_the_arguments_of_the_process_are_the_default(call, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog", "train"])
    assert run("prog", "", COMMANDS) == 0


def test_the_help_of_a_command_shows_types_and_defaults(call):
    code, out, err = call("simulate", "--help")
    assert (code, err) == (0, "")
    assert "usage: prog simulate" in out
    assert re.search(r"--num-layers INT +Number of layers\. \(default: 65\)", out)
    assert re.search(r"OUT +Folder to write\. \(required\)", out)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("simulat", ["unknown command 'simulat'", "perhaps you meant 'simulate'", "`prog --help`"]),
        ("xyz", ["unknown command 'xyz'", "choose from simulate, train"]),
        ("--verbose", ["unknown command '--verbose'"]),
        ("simulate", ["OUT, --size INT INT", "`prog simulate --help`"]),
        ("simulate one --size 3", ["--size", "Expected 2 values"]),
        ("simulate one --size 3 x", ["error: --size takes INT INT, not 3 x; see"]),
        ("simulate one --size 3 4 --mode c", ["'c'", "--mode", "('a', 'b')"]),
        ("simulate one --size 3 4 --num-layer 5", ["--num-layer, 5", "--num-layers INT"]),
        ("simulate one --size 3 4 --num-layers 5.5", ["error: --num-layers takes INT, not 5.5;"]),
        ("simulate one --size 3 4 --crop 220", ["error: --crop takes INT INT, not 220; see"]),
        ("simulate one --size 3 4 --crop", ["error: --crop takes INT INT, not nothing; see"]),
        ("simulate one two --size 3 4", ["two"]),
        (
            "recipe smal --rate 1",
            ["`prog recipe` has no 'smal'; perhaps you meant 'small'; see `prog recipe --help`"],
        ),
        ("recipe xyz", ["`prog recipe` has no 'xyz'; choose from small, large; see"]),
        ("group iner", ["unknown command 'iner'; perhaps you meant 'inner'; see `prog group --h"]),
        ("group inner one", ["--size INT INT", "`prog group inner --help`"]),
        (
            "recipe --rate 1 small",
            ["Unrecognized or misplaced options: --rate, 1; ", "ordering can matter"],
        ),
        ("recipe small --x 1 --outt y", ["Unrecognized options: --x, 1, --outt, y; see"]),
        ("recipe", ["Expected one of {small, large}"]),
        ("recipe small --outt x", ["--outt, x; Perhaps you meant: --out PATH"]),
        ("train --rate x", ["error: --rate takes FLOAT, not x; see"]),
        ("train --rate -1", ["rate -1.0 is below 0; choose one above"]),
    ],
)
def test_a_wrong_command_line_is_one_line_with_code_2(call, argv, parts):
    code, out, err = call(*argv.split())
    assert (code, out) == (2, "")
    assert err.startswith("prog: error: ")
    assert err.count("\n") == 1
    assert not set("│─╭╰\x1b") & set(err)
    assert [part for part in parts if part not in err] == []


def test_a_long_path_is_not_broken(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/".join(["folder"] * 40)
    assert path in call("simulate", "one", "--size", "3", "4", path)[2]


def test_colours_of_a_terminal_stay_out_of_errors(call, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b" not in call("simulate")[2]


BOX = """\
╭─ Required options ──────────────────────╮
│ Missing from prog train:                │
│     RECIPE                              │
│         One of two. (required)          │
│     --out PATH                          │
│         Folder to write. (required)     │
│ ─────────────────────────────────────── │
│ For full helptext, run prog train --help│
╰─────────────────────────────────────────╯
"""


@pytest.mark.parametrize("characters", ["│─╭╮╰╯", " -    "])
def test_a_box_becomes_one_line_on_any_terminal(characters):
    box = BOX.translate(str.maketrans("│─╭╮╰╯", characters))
    assert terminal._unboxed(box) == "Missing from prog train: RECIPE, --out PATH"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("size is 0;\n  choose more"), 2, "size is 0; choose more"),
        (FileNotFoundError("no layer in one/; add some"), 2, "no layer in one/; add some"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.csv"),
            2,
            "out.csv: No space left on device; free some space or write to another disk",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "out"),
            2,
            "out: File exists; remove it or choose another path",
        ),
        (OSError(errno.EBUSY, "Resource busy"), 2, "Resource busy"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "Broken pipe"),
        (RuntimeError("the loss is not finite"), 1, "the loss is not finite"),
        (KeyError("x"), 1, "KeyError: 'x' (add `--debug` for the traceback)"),
        (ValueError(), 2, "ValueError: (add `--debug` for the traceback)"),
    ],
)
def test_an_error_is_one_line_and_its_kind_the_exit_code(call, monkeypatch, error, code, text):
    monkeypatch.setattr("example_commands.fail", fail_with(error), raising=False)
    assert call("fail") == (code, "", f"prog: error: {text}\n")


def test_an_interrupt_is_one_line_with_code_130(call, monkeypatch):
    monkeypatch.setattr("example_commands.fail", fail_with(KeyboardInterrupt()), raising=False)
    assert call("fail") == (130, "", "prog: interrupted\n")


PROGRAM = """
import sys
from core.terminal import Command, run

sys.exit(run("prog", "What it is for.", {"read": Command("a job", "core.files:read_json")}))
"""


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["read", "--help"]])
def test_a_reader_that_leaves_early_is_no_error(argv, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, *unbuffered, "-c", PROGRAM, *argv], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_command_that_cannot_be_loaded_is_a_failure(call):
    code, _, err = call("absent")
    assert code == 1
    assert "AttributeError" in err


@pytest.mark.parametrize("argv", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_anywhere_shows_the_traceback(call, monkeypatch, argv):
    monkeypatch.setattr("example_commands.fail", fail_with(ValueError("bad")), raising=False)
    code, _, err = call(*argv)
    assert code == 2
    assert "Traceback" in err
    assert "raise error" in err


def test_warnings_and_log_records_of_libraries_are_not_shown(call, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert call("warn") == (0, "", "")
    assert logging.getLogger().handlers == []


def test_debug_shows_warnings_of_libraries(call):
    code, _, err = call("warn", "--debug")  # pytest makes a warning that is shown an error
    assert code == 1
    assert "UserWarning: noise" in err


def test_progress_without_a_terminal_ends_with_one_line(capsys):
    with progress("tiling", 4, "tiles") as advance:
        for _ in range(2):
            advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"tiling: 4/4 tiles, [\de.+]+ tiles/s, 0:00 in all\n", err)


def test_progress_without_a_terminal_reports_now_and_then(capsys, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now_s)
    with progress("tiling", 18, "tiles") as advance:
        for _ in range(9):
            now_s += 10
            advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "tiling: 6/18 tiles, 0.2 tiles/s, 1:00 left",
        "tiling: 12/18 tiles, 0.2 tiles/s, 0:30 left",
        "tiling: 18/18 tiles, 0.2 tiles/s, 1:30 in all",
    ]


def test_progress_on_a_terminal_is_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("tiling", 4, "tiles") as advance:
        advance(4)
        print("result")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert "4/4 tiles" in err
    assert "━" in err


def test_progress_does_not_claim_an_end_it_did_not_reach(capsys):
    with pytest.raises(ValueError, match="bad"), progress("tiling", 4, "tiles"):
        raise ValueError("bad")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations_read_as_clocks(seconds, text):
    assert terminal._clock(seconds) == text


def test_a_note_is_one_line_on_stderr(capsys):
    note("done")
    assert capsys.readouterr() == ("", "done\n")
