"""Recipes against each other: the same fragments, the same budget, several seeds.

Each run trains, maps fragments it never saw and is scored there in a process of its own, so that
its memory can be told; what is finished is kept, and the same command again does what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from core.files import read_json, write_json
from core.lock import holds
from core.provenance import collect
from core.separate import Piece, run_separately
from core.terminal import note, progress
from vesuvius.comparison import RESULTS, text_of, write_comparison
from vesuvius.contest import Contest, Fragments, gather_contest
from vesuvius.miniature import Budget
from vesuvius.recipes import RECIPES

# the table of recipes; the others are one of these at another size
COMPARED = (
    "repmode-2d-module",
    "repmode-2",
    "repmode-buckets",
    "repmode-buckets-v2",
    "repmode-2d-decoder",
    "i3d",
    "stack-2d",
    "repmode-segformer",
)


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        recipe: Name of its recipe.
        seed: Of its training.
        is_control: Whether it trains on shifted labels.
    """

    recipe: str
    seed: int
    is_control: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.recipe}-{self.seed}{'-control' if self.is_control else ''}"


@holds("out")
def compare(
    *,
    out: Path,
    fragments: Annotated[Fragments, tyro.conf.arg(name="")] = Fragments(),  # noqa: B008 - frozen
    recipes: tuple[str, ...] = COMPARED,
    seeds: int = 3,
    control: str | None = "repmode-segformer",
    budget: Budget = Budget(),  # noqa: B008 - frozen
    jobs: int = 2,
) -> None:
    """Train recipes at equal budget with several seeds, and score them on fragments never seen.

    Without --data, three fragments are simulated: two to train on and a strip to be scored on, over
    pieces of the label of Kaggle's fragment 1 if --ink-label and --papyrus-mask give it. All
    recipes are made small and equally long (--budget...), but keep their network's shape, data,
    normalisation, augmentation and loss. Threshold and best epoch come from pieces held out of the
    training fragments. Writes results.json, table.md, report.html and the runs. The same command
    again does what is missing; more seeds and recipes can be added later.

    Args:
        out: Folder to write.
        fragments: On which fragments.
        recipes: Which to compare.
        seeds: Runs of each recipe, with the seeds 0, 1, 2 and so on.
        control: Recipe that is also trained on labels shifted to where no ink is, and must then
            score at chance; None for no control.
        budget: What each run may spend.
        jobs: Runs at a time, which share the processor's cores.

    Raises:
        FileNotFoundError: If a fragment or file does not exist.
        ValueError: If options do not fit each other, or `out` holds another comparison or runs of
            recipes that have changed since.
    """
    _check(recipes, seeds, control, jobs)
    contest = gather_contest(out, fragments, budget)
    controls = [] if control is None else [control]
    entries = [
        Entry(recipe, seed, is_control)
        for seed in range(seeds)
        for chosen, is_control in ((recipes, False), (controls, True))
        for recipe in chosen
    ]
    _run_missing(contest, entries, jobs)
    record = {
        "provenance": collect(),
        "budget": asdict(budget),
        "test": {name: str(path) for name, path in contest.test.items()},
        "baselines": contest.baselines(),
        "runs": [read_json(contest.score_path(entry.name)) for entry in entries],
    }
    write_json(out / RESULTS, record)
    write_comparison(out, record, contest)
    print(text_of(record))
    note(f"{out / 'report.html'} shows the spread, and the maps")


def _check(recipes: Sequence[str], seeds: int, control: str | None, jobs: int) -> None:
    """Refuse options that mean nothing, before anything is simulated."""
    unknown = sorted({*recipes, *([] if control is None else [control])} - set(RECIPES))
    if unknown:
        raise ValueError(f"no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    if not recipes or len(set(recipes)) < len(recipes):
        raise ValueError(f"recipes {' '.join(recipes) or '(none)'}: name each once, one at least")
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it is at least 1")


def _run_missing(contest: Contest, entries: Sequence[Entry], jobs: int) -> None:
    """Run the entries that have no score yet, some at a time, each in a new process."""
    missing = [entry for entry in entries if not contest.score_path(entry.name).exists()]
    for entry in entries:
        if entry not in missing:
            contest.check_finished(entry.recipe, entry.seed, entry.name)
    pieces = [
        Piece(
            entry.name,
            partial(_run, contest, entry),
            contest.folder(entry.name).with_suffix(".log"),
        )
        for entry in missing
    ]
    with progress("comparing", len(entries), "runs") as advance:
        advance(len(entries) - len(missing))
        run_separately(pieces, jobs, advance)


def _run(contest: Contest, entry: Entry) -> None:
    """Run an entry and write its score."""
    found: dict[str, Any] = contest.run(entry.recipe, entry.seed, entry.is_control, entry.name)
    write_json(contest.score_path(entry.name), asdict(entry) | found)
