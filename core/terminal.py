"""The terminal: commands that start fast, errors of one line, progress bars.

Nothing here imports more than the standard library before a command runs, so that `PROG --help`
answers at once. A command's options come from its signature and docstring through tyro.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import inspect
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DISTRIBUTION = "repmode-vesuvius"
PLAIN_INTERVAL_S = 30.0

_REMEDIES = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EROFS: "write to another disk",
    errno.EIO: "check its disk or network, or take another copy",
    errno.EACCES: "check its permissions or choose another path",
    errno.EPERM: "check its permissions or choose another path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EEXIST: "remove it or choose another path",
    errno.EISDIR: "name a file, not a folder",
}


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Args:
        summary: What it does, in one line of the overview.
        target: `module:attribute`, imported only when the command runs. A typed function, or a
            type tyro can build whose instances are called with no arguments, or a group: further
            commands by name.
    """

    summary: str
    target: str


def run(
    prog: str,
    description: str,
    commands: Mapping[str, Command],
    argv: Sequence[str] | None = None,
) -> int:
    """Run one command of `prog` and return its exit code.

    Args:
        prog: Name of the program.
        description: What it is for, with a worked example; shown by `PROG --help`.
        commands: The commands by name.
        argv: Arguments after the program's name; those of this process if None.

    Returns:
        0 on success, 2 for bad input, 1 for another failure, 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    # Threads that wait actively are a little faster alone and much slower where the machine has
    # other work too: benchmarks/busy_machine.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with contextlib.nullcontext() if is_debug else _quiet_libraries():
            job = None
            with _reader_may_leave():
                job = _choose(prog, description, commands, arguments)
            if job is not None:
                job()
    except KeyboardInterrupt:
        _say(f"{prog}: interrupted")
        return 130
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        _say(f"{prog}: error: {_one_line(error)}")
        return 2 if isinstance(error, (ValueError, OSError)) else 1
    return 0


@contextlib.contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far a long job is, how fast it goes and how long it still takes.

    On a terminal this is a bar, elsewhere a plain line now and then.

    Args:
        description: What is going on.
        total: Number of units to do.
        unit: What is counted, in the plural ("tiles").

    Yields:
        A function that reports `n` more units done.
    """
    pace = _Pace(total, unit)
    if not sys.stderr.isatty():
        yield functools.partial(_advance_plain, description, pace)
        note(f"{description}: {pace}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}")
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task(description, total=total, pace=str(pace))

        def advance(n: int) -> None:
            pace.advance(n)
            bar.update(task, advance=n, pace=str(pace))

        yield advance


def note(message: str, is_of_each: bool = False) -> None:
    """Write one line to stderr; of several processes that do the same, the first alone speaks.

    Args:
        message: The line.
        is_of_each: Whether every process speaks, as each has something of its own to say.
    """
    if is_of_each or is_first_process():
        _say(message)


def is_first_process() -> bool:
    """Tell whether this is the first, or only, of the processes that share one job."""
    return os.environ.get("RANK", "0") == "0"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _Pace:
    """How far a job is; its text is shown beside the bar or as a plain line."""

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.unit = unit
        self.done = 0
        self.started_s = self.reported_s = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n

    def __str__(self) -> str:
        text = f"{self.done}/{self.total} {self.unit}"
        elapsed_s = time.monotonic() - self.started_s
        if not self.done or not elapsed_s:
            return text
        rate = self.done / elapsed_s
        text = f"{text}, {rate:.3g} {self.unit}/s"
        if self.done >= self.total:
            return f"{text}, {_clock(elapsed_s)} in all"
        return f"{text}, {_clock((self.total - self.done) / rate)} left"


def _clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _advance_plain(description: str, pace: _Pace, n: int) -> None:
    pace.advance(n)
    now_s = time.monotonic()
    if now_s - pace.reported_s >= PLAIN_INTERVAL_S and pace.done < pace.total:
        pace.reported_s = now_s
        note(f"{description}: {pace}")


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep warnings and log records of libraries off stderr, unless Python was asked for them."""
    import logging

    silencer = logging.NullHandler()
    logging.getLogger().addHandler(silencer)  # without any handler Python prints records itself
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().removeHandler(silencer)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Let what reads stdout stop early, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it ends: there it must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _choose(
    prog: str, description: str, commands: Mapping[str, Command], arguments: list[str]
) -> Callable[[], object] | None:
    """Return the command with its options bound, or answer `--help` and `--version`."""
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_overview(prog, description, commands))
    elif name == "--version":
        from importlib.metadata import version

        print(f"{prog} {version(DISTRIBUTION)}")
    elif name in commands:
        target = _load(commands[name].target)
        if isinstance(target, Mapping):
            return _choose(f"{prog} {name}", commands[name].summary, target, options)
        return _parse(f"{prog} {name}", target, options)
    else:
        raise ValueError(f"unknown command {name!r}; {_hint(prog, name, commands)}")
    return None


def _overview(prog: str, description: str, commands: Mapping[str, Command]) -> str:
    """Return the text of `PROG --help`."""
    width = max(map(len, commands))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            f"usage: {prog} COMMAND [OPTIONS]",
            "",
            inspect.cleandoc(description),
            "",
            "commands:",
            *rows,
            "",
            f"`{prog} COMMAND --help` lists the options of a command, `{prog} --version` the",
            "version; `--debug` anywhere shows the traceback of an error.",
        ]
    )


def _hint(prog: str, name: str, names: Iterable[str]) -> str:
    """Return what may have been meant by a name that is none of `names`."""
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    hint = f"perhaps you meant {near[0]!r}" if near else f"choose from {', '.join(names)}"
    return f"{hint}; see `{prog} --help`"


def _load(target: str) -> Any:
    """Import `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _parse(prog: str, target: Any, options: list[str]) -> Callable[[], object] | None:
    """Parse the options of one command.

    Returns:
        The command with its options bound, or None if only its help was asked for.

    Raises:
        ValueError: If the options are not valid, in one line.
    """
    import tyro

    if inspect.isfunction(target):
        target = _bound_only(target)
    is_help = not {"-h", "--help"}.isdisjoint(options)
    with contextlib.nullcontext() if is_help else _unlimited_width():
        stderr = io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr):
                job: Callable[[], object] = tyro.cli(
                    target,
                    prog=prog,
                    args=options,
                    config=(tyro.conf.PositionalMetavarFromFieldName,),
                )
                return job
        except SystemExit as stop:
            if stop.code in (None, 0):
                return None
    message = _unboxed(stderr.getvalue())
    if offered := re.search("Available subcommands: ([^;]+)", message):
        names = offered[1].split(", ")
        if not options[0].startswith("-") and options[0] not in names:
            raise ValueError(f"`{prog}` has no {options[0]!r}; {_hint(prog, options[0], names)}")
    raise ValueError(f"{_plain(message)}; see `{prog} --help`")


def _bound_only(function: Callable[..., object]) -> Callable[..., Callable[[], object]]:
    """Return a function with the same signature that binds its arguments instead of running."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], object]:
        return functools.partial(function, *args, **kwargs)

    return bind


@contextlib.contextmanager
def _unlimited_width() -> Iterator[None]:
    """Keep tyro from breaking lines, which could split a path in two."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _unboxed(box: str) -> str:
    """Return tyro's boxed message as one line.

    Under a title the box has sections between rules or blank lines, in them items indented by 2
    or 4 and their help by 8. The title, help texts and pointers to them are dropped. A terminal
    that knows no box characters gets blanks and dashes for them.
    """
    dropped = ("Argument helptext", "For full helptext", "Arguments similar to")
    lines = re.sub(r"\x1b\[[0-9;]*m| \(applied to .*?\)", "", box).splitlines()[1:]
    sections: list[list[str]] = [[]]
    for row in (line[2:].rstrip("│╯ ") for line in lines):
        if not row.strip("─-"):
            sections.append([])
        elif not row.startswith(" " * 8):
            sections[-1].append(row)
    texts = []
    for rows in sections:
        heads = [row for row in rows if not row.startswith("  ")]
        items = ", ".join(row.strip() for row in rows if row.startswith("  "))
        text = " ".join([*heads, items]).strip(" .")
        if text and not text.startswith(dropped):
            texts.append(text)
    return "; ".join(texts)


def _plain(message: str) -> str:
    """Return tyro's message without its internal names, its parsers and its list of attempts."""
    message = re.sub(
        r"Error parsing __tyro-dummy-inner__\.(?:recipe\.)?([\w.]+): ", r"\1: ", message
    )
    for pattern in _MISFITS:
        message = re.sub(r"Error parsing (\S+): " + pattern, _misfit, message)
    return re.sub(r"; Got errors:.*", "", message)


_MISFITS = (
    r"no type matching (?P<kind>.+) could be instantiated from \[(?P<given>.*?)\]",
    r"Could not parse arguments \[(?P<given>.*?)\] into tuple type tuple\[(?P<kind>.*?)\]",
    r"invalid literal for (?P<kind>int)\(\) with base 10: (?P<given>'.*?')",
    r"could not convert string to (?P<kind>float): (?P<given>'.*?')",
)


def _misfit(found: re.Match[str]) -> str:
    """Return in words that an option was given values of another kind.

    Example: tyro's kind ``{None}|{INT INT}`` and values ``'220'`` give "takes INT INT, not 220".
    """
    kinds = re.sub("[{},]", "", found["kind"]).upper().split("|")
    kind = " or ".join(kind for kind in kinds if kind != "NONE")
    given = found["given"].replace("'", "").replace(",", "")
    return f"{found[1]} takes {kind}, not {given or 'nothing'}"


def _one_line(error: Exception) -> str:
    """Return the message of `error` in one line, with its type where that says something."""
    if isinstance(error, OSError) and error.strerror:
        remedy = _REMEDIES.get(error.errno or 0)
        parts = (error.filename and str(error.filename), error.strerror)
        text = ": ".join(filter(None, parts)) + (f"; {remedy}" if remedy else "")
    elif isinstance(error, (ValueError, OSError, RuntimeError)) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (add `--debug` for the traceback)"
    return " ".join(text.split())
