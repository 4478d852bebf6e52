"""The ledger: what was submitted, a folder and a manifest for each, and one table of them all.

`submissions/<date>_<name>/` holds `submission.csv` and `manifest.json`. The table in
`submissions/LEDGER.md` is written from the manifests and never read, so the two cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.config import from_dict, to_dict
from core.files import atomic_dir, atomic_path, read_json, write_json
from core.provenance import file_hash

ROOT = Path("submissions")
CSV = "submission.csv"
MANIFEST = "manifest.json"
LEDGER = "LEDGER.md"
INTRODUCTION = """# Ledger

One row per submission, the newest last. `vesuvius submit PRED... --name NAME` adds one, and
`vesuvius kaggle scores` fills in what Kaggle says. The table is written anew from
`<submission>/manifest.json` each time, where everything stands in full: change nothing here.

CV F0.5 is the score of a model on the pieces held out of its training.

| submission | commit | recipe | checkpoint | CV F0.5 | threshold | fragments | public | private |
|---|---|---|---|---|---|---|---|---|
"""
ANY_DATE = "????-??-??"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Model:
    """A model of a submission.

    Attributes:
        checkpoint_sha256: Hash of its checkpoint file.
        recipe: Name of the recipe it was trained with, or of the nearest.
        changes: The options that differ from that recipe.
        cv_score: F0.5 on the pieces held out of its training.
    """

    checkpoint_sha256: str
    recipe: str
    changes: dict[str, Any]
    cv_score: float

    def __str__(self) -> str:
        changed = f", {len(self.changes)} changed" if self.changes else ""
        return self.recipe + changed


@dataclass(frozen=True)
class Row:
    """A row of a submission.

    Attributes:
        name: Id of the fragment.
        height: Of its mask, in pixels.
        width: Of its mask, in pixels.
        threshold: Probability from which a pixel counted as ink.
        ink_share: Part of the mask that is ink, 0..1.
        settings: What else its prediction depended on, as `vesuvius predict` records it.
    """

    name: str
    height: int
    width: int
    threshold: float
    ink_share: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """What Kaggle says; None while it is not known."""

    public: float | None = None
    private: float | None = None


@dataclass(frozen=True)
class Manifest:
    """What a submission is made of.

    Attributes:
        time_utc: When it was made, ISO 8601.
        commit: Of this project, `-dirty` after it if files differed from it; None if unknown.
        models: Those whose predictions were averaged.
        rows: One for each fragment.
        csv_sha256: Hash of the file that was written.
        scores: What Kaggle says.
        kaggle_ref: Kaggle's number of it; None if it was not submitted there.
    """

    time_utc: str
    commit: str | None
    models: tuple[Model, ...]
    rows: tuple[Row, ...]
    csv_sha256: str
    scores: Scores = Scores()
    kaggle_ref: int | None = None


def record(
    name: str,
    write_csv: Callable[[Path], object],
    commit: str | None,
    models: tuple[Model, ...],
    rows: tuple[Row, ...],
    root: Path = ROOT,
) -> Path:
    """Keep a submission and give it a row of the ledger.

    What is there already and the same stays as it is, so a command that was killed can be repeated.

    Args:
        name: What to call it; the date comes before it.
        write_csv: Writes the CSV to a path.
        commit: As in `Manifest`.
        models: As in `Manifest`.
        rows: As in `Manifest`.
        root: Folder of all submissions.

    Returns:
        The folder of the submission.

    Raises:
        ValueError: If the name cannot be that of a folder, or another submission has it.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r} is not allowed; take letters, digits, '.', '_' and '-', and begin with "
            "a letter or digit"
        )
    now = datetime.now(UTC)
    folder = root / f"{now:%Y-%m-%d}_{name}"
    with TemporaryDirectory() as temporary:
        write_csv(Path(temporary) / CSV)
        made = models, file_hash(Path(temporary) / CSV)
    manifests = {path: read_manifest(path) for path in root.glob(f"{ANY_DATE}_{name}")}
    same = [path for path, found in manifests.items() if (found.models, found.csv_sha256) == made]
    if same:  # of another day, too
        folder = same[0]
    elif folder.exists():
        raise ValueError(f"{folder} holds another submission; choose another --name")
    else:
        with atomic_dir(folder) as partial:
            write_csv(partial / CSV)
            manifest = Manifest(
                now.isoformat(timespec="seconds"),
                commit,
                models,
                rows,
                file_hash(partial / CSV),
            )
            write_json(partial / MANIFEST, to_dict(manifest))
    write_ledger(root)
    return folder


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the submission in a folder.

    Raises:
        FileNotFoundError: If the folder holds no submission.
        ValueError: If the manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder that `vesuvius submit --name` wrote"
        )
    return from_dict(Manifest, read_json(path), where=str(path))


def read_ledger(root: Path = ROOT) -> dict[Path, Manifest]:
    """Return the manifest of each submission by its folder, the oldest first."""
    folders = [path.parent for path in root.glob(f"[!.]*/{MANIFEST}")]
    manifests = {folder: read_manifest(folder) for folder in folders}
    return dict(sorted(manifests.items(), key=lambda item: (item[1].time_utc, item[0])))


def set_scores(folder: Path, scores: Scores) -> None:
    """Put what Kaggle says of a submission into its manifest and the ledger.

    Args:
        folder: Of the submission.
        scores: None where Kaggle does not tell.

    Raises:
        FileNotFoundError: If the folder holds no submission.
    """
    write_json(folder / MANIFEST, to_dict(replace(read_manifest(folder), scores=scores)))
    write_ledger(folder.parent)


def set_kaggle_ref(folder: Path, ref: int) -> None:
    """Put Kaggle's number of a submission into its manifest.

    Raises:
        FileNotFoundError: If the folder holds no submission.
    """
    write_json(folder / MANIFEST, to_dict(replace(read_manifest(folder), kaggle_ref=ref)))


def write_ledger(root: Path = ROOT) -> None:
    """Write the table of all submissions of a folder, from their manifests."""
    lines = [_line(folder.name, manifest) for folder, manifest in read_ledger(root).items()]
    with atomic_path(root / LEDGER) as partial:
        partial.write_text(INTRODUCTION + "".join(lines), encoding="utf-8")


def _line(name: str, manifest: Manifest) -> str:
    """Return a submission as a line of the table."""
    models, rows, scores = manifest.models, manifest.rows, manifest.scores
    cells = (
        name,
        "" if manifest.commit is None else _short(manifest.commit),
        _listed(map(str, models)),
        _listed(model.checkpoint_sha256[:8] for model in models),
        _listed(f"{model.cv_score:.4f}" for model in models),
        _listed(f"{row.threshold:.3g}" for row in rows),
        _listed(f"{row.name} ({row.height} x {row.width})" for row in rows),
        *("" if score is None else f"{score:.4f}" for score in (scores.public, scores.private)),
    )
    return f"| {' | '.join(cells)} |\n"


def _short(commit: str) -> str:
    """Return the first characters of a commit, and whether files differed from it."""
    return commit[:8] + ("-dirty" if commit.endswith("-dirty") else "")


def _listed(cells: Iterable[str]) -> str:
    """Return texts as one cell, each once, and the bars that would end it escaped."""
    return ", ".join(dict.fromkeys(cells)).replace("|", "\\|")
