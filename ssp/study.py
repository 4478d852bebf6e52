"""A study: networks trained on the same images within the same budget, each with several seeds.

Every run trains and is scored on the test images in a process of its own. What is finished is kept,
so the same command again does what is missing, and experiments that need the same runs share them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.config import to_dict
from core.files import read_json, write_json
from core.lock import locked
from core.separate import Piece, peak_mib, run_separately
from core.terminal import note, progress
from ssp.budget import BUDGETS, Budget, BudgetName
from ssp.evaluate import RECORD as SCORES
from ssp.evaluate import evaluate
from ssp.extend import extend
from ssp.model import load_model
from ssp.networks.registry import NetworkConfig
from ssp.prepared import PreparedData, open_data
from ssp.recipes import CellRecipe
from ssp.train import train
from ssp.training_images import images_sha256

RECORD = "study.json"
RESULT = "result.json"


@dataclass(frozen=True)
class StudyOptions:
    """Where and on what experiments are done; experiments in one folder share their runs.

    Args:
        out: Folder to write: data, runs, tables and figures.
        data: Folder of `ssp prepare`; simulated cells by default, where the budget is tiny.
        budget: "tiny", small networks and minutes of training, for two cores; "paper", the paper's
            protocol, for GPUs.
        seeds: Runs of each network, with the seeds 0, 1, 2 and so on.
        jobs: Runs at a time, which share the processor's cores; 1 on a GPU.
    """

    out: Path
    data: Path | None = None
    budget: BudgetName = "tiny"
    seeds: int = 3
    jobs: int = 2

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Trial:
    """One network, trained once.

    Attributes:
        title: What it is called in tables.
        network: Which network it is, at any size.
        seed: Of its training.
        left_out: Tasks that it is not trained on.
        learns: A task that it is taught alone: one of those left out, once it knows the others, or,
            if none is left out, from nothing.
    """

    title: str
    network: NetworkConfig
    seed: int
    left_out: tuple[str, ...] = ()
    learns: str | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        parts = [self.title, str(self.seed)]
        parts += ["without", *self.left_out] if self.left_out else []
        parts += ["then" if self.left_out else "only", self.learns] if self.learns else []
        return re.sub(r"[^a-z0-9_]+", "-", " ".join(parts).lower()).strip("-")

    @property
    def base(self) -> Trial | None:
        """The trial that this one begins from, if it knows other tasks before."""
        return replace(self, learns=None) if self.learns and self.left_out else None


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        out: Its folder.
        data: The images.
        budget: What each run may spend.
        jobs: Runs at a time.
    """

    out: Path
    data: PreparedData
    budget: Budget
    jobs: int

    def run_of(self, trial: Trial) -> Path:
        """Return the run folder of a trial."""
        return self.out / "runs" / trial.name / "run"

    def recipe(self, trial: Trial) -> CellRecipe:
        """Return how a trial is trained."""
        return self.budget.recipe(trial.network, trial.seed, trial.learns is not None)

    def results(self, trials: Iterable[Trial]) -> list[dict[str, Any]]:
        """Run what is missing of some trials; return what each found.

        Raises:
            ValueError: If a finished run was trained when its recipe was another one, or another
                process trains runs of this study.
        """
        trials = tuple(dict.fromkeys(trials))
        for trial in trials:
            self._check_finished(trial)
        with locked(self.out), progress("training", len(trials), "runs") as advance:
            for has_base in (False, True):  # what begins from another run comes after it
                found = [trial for trial in trials if (trial.base is not None) == has_base]
                missing = [trial for trial in found if not self._result(trial).exists()]
                advance(len(found) - len(missing))
                logs = self.out / "runs"
                pieces = [
                    Piece(one.name, partial(self.run, one), logs / f"{one.name}.log")
                    for one in missing
                ]
                run_separately(pieces, self.jobs, advance)
        return [read_json(self._result(trial)) for trial in trials]

    def run(self, trial: Trial) -> None:
        """Train, or go on training, and score one trial."""
        run = self.run_of(trial)
        resume = (run / "checkpoints" / "last.safetensors").exists()
        recipe = self.recipe(trial)
        if trial.base:
            epochs, base = recipe.training.epochs, self.run_of(trial.base)
            extend(
                base, data=self.data.path, task=trial.learns, out=run, epochs=epochs, resume=resume
            )
        else:
            known = [task for task in self.data.tasks if task not in trial.left_out]
            tasks = [trial.learns] if trial.learns else known
            train(self.data.path, run, recipe, tasks, resume)
        evaluate(run, data=self.data.path, out=run.parent / "scores", num_pictures=0)
        scores = read_json(run.parent / "scores" / SCORES)
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        write_json(self._result(trial), {
            "title": trial.title,
            "seed": trial.seed,
            "learned_alone": trial.learns,
            "base_sha256": load_model(self.run_of(trial.base)).sha256 if trial.base else None,
            "recipe": to_dict(recipe),
            "parameters": sum(p.numel() for p in load_model(run).network.parameters()),
            "steps": epochs[-1]["step"],
            "train_s": sum(epoch["seconds"] for epoch in epochs),
            "peak_mib": peak_mib(),
            **{key: scores[key] for key in ("git_commit", "device", "tasks", "images")},
        })  # fmt: skip

    def _result(self, trial: Trial) -> Path:
        """Return the file that a finished trial has."""
        return self.run_of(trial).parent / RESULT

    def _check_finished(self, trial: Trial) -> None:
        """Refuse a finished trial whose recipe, or what it began from, was another one then."""
        path = self._result(trial)
        if not path.exists():
            return
        result = read_json(path)
        base = None if trial.base is None else load_model(self.run_of(trial.base)).sha256
        if (result["recipe"], result["base_sha256"]) != (to_dict(self.recipe(trial)), base):
            raise ValueError(
                f"{path.parent} was trained when {trial.title}, its base or the budget was "
                "another; delete it to train it anew, or choose another --out"
            )


def open_study(options: StudyOptions) -> Study:
    """Return the study of a folder, its cells simulated unless data are given.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If the budget needs data, or the folder holds a study of other images or with
            another budget.
    """
    budget = BUDGETS[options.budget]
    if options.data is None and budget.simulate_data is None:
        raise ValueError(
            f"--budget {options.budget} needs images: give --data, a folder of `ssp prepare`, or "
            "choose --budget tiny, which simulates cells"
        )
    with locked(options.out):
        path = options.data or budget.simulate_data(options.out)
        data = open_data(path)
        identity = {"budget": options.budget, "images_sha256": images_sha256(data.images)}
        record = options.out / RECORD
        if record.exists() and (changed := _changed(read_json(record), identity)):
            raise ValueError(
                f"{options.out} is a study with another {changed}; choose another --out"
            )
        write_json(record, identity)
    note(f"{len(data.images)} images of {len(data.tasks)} structures in {path}")
    return Study(options.out, data, budget, options.jobs)


def seeded(named: dict[str, NetworkConfig], seeds: int) -> list[Trial]:
    """Return trials of networks, all networks with the first seed first."""
    return [
        Trial(title, network, seed) for seed in range(seeds) for title, network in named.items()
    ]


def _changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return which of the facts that identify a study differ."""
    return ", ".join(key for key in new if old.get(key) != new[key])


def by_title(
    results: Sequence[dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Return results by title, in the order in which titles first come, seeds together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["title"], []).append(result)
    return found
