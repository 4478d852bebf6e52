"""Which images there are: rows of CSV lists, or the files of a folder.

A list has the columns `path_signal, path_target, channel_signal, channel_target, task`, or those of
the official lists, `path_czi, channel_signal, channel_target`, with signal and target in one file.
`channel_*`, `scene` and `time` (of the signal's file), `scene_target`, `time_target` and `split`
may be missing or empty. Paths are relative to the list.

A folder holds `list.csv`, or the files themselves: `FOLDER/TASK/signal/NAME` and
`FOLDER/TASK/target/NAME`, alike but for the suffix.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssp.readers import is_image, plain_name

LIST_NAME = "list.csv"
SPLITS = ("train", "val", "test")
TASK_NAME = re.compile(r"\w[\w .+-]*")


@dataclass(frozen=True)
class Source:
    """One image of a file.

    Args:
        path: The file, or the folder of an OME-Zarr.
        scene: Which of its images; None means the only one.
        time: Which of its times; None means the only one.
    """

    path: Path
    scene: int | None = None
    time: int | None = None


@dataclass(frozen=True)
class Row:
    """A signal and its target, for one task.

    Args:
        task: Name of the structure.
        signal: Where the transmitted-light image is.
        signal_channel: Index or name of its channel; None means the only one.
        target: Where the fluorescence image is.
        target_channel: Index or name of its channel; None means the only one.
        split: One of `SPLITS` if the list says so, else None.
    """

    task: str
    signal: Source
    signal_channel: int | str | None
    target: Source
    target_channel: int | str | None
    split: str | None = None


def read_lists(
    paths: Sequence[Path], task: str | None = None, root: Path | None = None
) -> list[Row]:
    """Return the rows of all lists and folders.

    Args:
        paths: CSV lists and folders.
        task: Task of the lists that have no column for it; the name of each such list by default.
        root: What paths in lists are relative to; the folder of each list by default.

    Raises:
        FileNotFoundError: If a list, a folder, or files that lists name do not exist; all missing
            ones are named.
        ValueError: If a list or folder is malformed or empty, or gives a pair twice.
    """
    if not paths:
        raise ValueError("no list given; name at least one CSV list or folder")
    rows = [row for path in paths for row in _read(Path(path), task, root)]
    files = dict.fromkeys(source.path for row in rows for source in (row.signal, row.target))
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images are missing: {', '.join(missing)}; "
            "check the list and what its paths are relative to (--root)"
        )
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        pair = (row.task, row.signal, row.signal_channel, row.target, row.target_channel)
        if pair in seen:
            raise ValueError(
                f"{row.signal.path} with {row.target.path} is listed twice for {row.task}; "
                "remove one of the rows"
            )
        seen.add(pair)
    return rows


def _read(path: Path, task: str | None, root: Path | None) -> list[Row]:
    """Return the rows of one list or folder."""
    if path.is_dir() and not (path / LIST_NAME).is_file():
        rows = _pair_files(path)
    else:
        path = path / LIST_NAME if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no list or folder at {path.absolute()}; check the path")
        rows = _read_csv(path, task or path.stem, root or path.parent)
    if not rows:
        raise ValueError(f"{path} holds no image; see `ssp prepare --help` for what is expected")
    return rows


def _read_csv(path: Path, task: str, root: Path) -> list[Row]:
    """Return the rows of a CSV list."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(path, columns)
            return [_row(f"{path} line {reader.line_num}", cells, task, root) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV list ({error}); save it as CSV in UTF-8") from error


def _check_columns(path: Path, columns: list[str]) -> None:
    """Raise ValueError unless the columns are of one of the two forms."""
    if "path_czi" not in columns and not {"path_signal", "path_target"} <= {*columns}:
        raise ValueError(
            f"{path} has columns {', '.join(columns) or 'none'}; expected path_signal, "
            "path_target, channel_signal, channel_target, task, or path_czi, channel_signal, "
            "channel_target"
        )


def _row(place: str, cells: dict[str, str | None], task: str, root: Path) -> Row:
    """Return one row; `place` is for errors."""

    def cell(name: str) -> str:
        return (cells.get(name) or "").strip()

    def whole(name: str) -> int | None:
        text = cell(name)
        if text and not text.isdecimal():
            raise ValueError(f"{place} has {name} {text!r}; expected a number from 0, or nothing")
        return int(text) if text else None

    def source(name: str, scene: str, time: str) -> Source:
        text = cell(name) or cell("path_czi")
        if not text:
            raise ValueError(f"{place} has no {name}; give the path of the image")
        return Source(root / text, whole(scene), whole(time))

    split, name = cell("split") or None, cell("task") or task
    if split not in (None, *SPLITS):
        raise ValueError(f"{place} has split {split!r}; expected {', '.join(SPLITS)} or nothing")
    if not TASK_NAME.fullmatch(name):
        raise ValueError(f"{place} has task {name!r}; use letters, digits, _, -, + and .")
    signal = source("path_signal", "scene", "time")
    target = source("path_target", "scene_target", "time_target")
    if target == Source(signal.path):  # in one file, signal and target are of the same image
        target = signal
    channels = [_channel(cell(name)) for name in ("channel_signal", "channel_target")]
    return Row(name, signal, channels[0], target, channels[1], split)


def _channel(text: str) -> int | str | None:
    """Return a channel as index, if it is a whole number such as "3" or "3.0", or name."""
    number = re.fullmatch(r"(\d+)(\.0+)?", text)
    return int(number[1]) if number else text or None


def _pair_files(folder: Path) -> list[Row]:
    """Return the pairs of `FOLDER/TASK/signal` and `FOLDER/TASK/target`.

    Raises:
        ValueError: If there are none, or files without their counterpart; all are named.
    """
    rows, alone = [], []
    for signals in sorted(folder.glob("*/signal")):
        by_name = [_by_name(signals), _by_name(signals.with_name("target"))]
        alone += [str(by_name[0].get(n) or by_name[1][n]) for n in by_name[0].keys() ^ by_name[1]]
        for name in sorted(by_name[0].keys() & by_name[1]):
            signal, target = (Source(found[name]) for found in by_name)
            rows.append(Row(signals.parent.name, signal, None, target, None))
    if alone:
        raise ValueError(
            f"{len(alone)} images of {folder} lack their counterpart of the same name: "
            f"{', '.join(sorted(alone))}; every TASK/signal/NAME needs a TASK/target/NAME"
        )
    if not rows:
        raise ValueError(
            f"{folder} holds neither {LIST_NAME} nor TASK/signal/NAME and TASK/target/NAME; "
            "write a list or arrange the images so"
        )
    return rows


def _by_name(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their name without suffix."""
    images = [path for path in sorted(folder.glob("*")) if is_image(path)]
    return {plain_name(path): path for path in images}
