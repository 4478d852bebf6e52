"""Evaluation: maps of ink against their labels, thresholds from other pieces than those scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.calibration import LogitHistogram
from core.files import write_json
from core.lock import holds, names_in
from core.provenance import collect
from core.terminal import note, progress
from vesuvius.evaluation_report import OUTPUTS, text_table, write_evaluation
from vesuvius.held_out import scored_held_out
from vesuvius.scored import ScoredMap, Truths, Way, scored_predictions
from vesuvius.scores import Cleaning, Counts, Decisions
from vesuvius.threshold import FLAT, Rule, check_number, choose, threshold_of

RULES: tuple[Rule, ...] = ("value", "percentile")


@holds("out")
def evaluate(
    sources: tuple[Path, ...],
    /,
    out: Path,
    data: Path | None = None,
    truth: tuple[Path, ...] = (),
    held_out: Path | None = None,
    rule: Rule = "value",
    threshold: float | None = None,
    hysteresis: float | None = None,
    min_component: int | None = None,
) -> None:
    """Score ink maps against their labels: a table, evaluation.json, report.html and pictures.

    Give predictions of labelled fragments that the model never saw, or runs, whose held-out pieces
    are then mapped and scored. Threshold and temperature of each piece come from the other pieces
    that were mapped in the same way; of a single piece the threshold is the model's own.
    Predictions of one fragment made in several ways, say with 1, 60 and 360 samples, are also shown
    beside each other. Only pixels of the papyrus mask count.

    Args:
        sources: Folders written by `vesuvius predict`, and run folders of `vesuvius train`.
        out: Folder to write.
        data: Folder of the prepared volumes that the runs were trained on.
        truth: Labelled fragments to score predictions of the same name against; by default the
            fragment that was predicted.
        held_out: Run that predicted the fragments: of those it was trained on, only the pieces it
            held out are scored.
        rule: What is chosen on the other pieces: one probability for all maps, or one percentile,
            so that the same share of each map is ink.
        threshold: Use this probability (or with --rule percentile this percentile) for every piece
            instead of choosing.
        hysteresis: Also try masks in which ink goes on down to this share (0..1) of the threshold
            where it touches ink above it.
        min_component: Also try masks without components of fewer pixels.

    Raises:
        FileNotFoundError: If a source, a volume or a labelled fragment does not exist.
        ValueError: If sources and labels do not fit each other, a choice is out of range, or `out`
            holds other files.
    """
    check_replaceable(out)
    cleaning = Cleaning(hysteresis, min_component)
    if threshold is not None:
        check_number(rule, threshold)
    maps = _gather(sources, out, data, truth, held_out)
    evaluated = score(maps, rule, threshold, cleaning)
    record = {
        "provenance": collect(),
        "options": {"rule": rule, "threshold": threshold, **asdict(cleaning)},
        "maps": [one.describe() for one in evaluated],
        "averages": averages(evaluated),
    }
    write_evaluation(out, evaluated, record)
    write_json(out / "evaluation.json", record)
    print(text_table(record))
    note(f"{out / 'report.html'} shows curves and pictures")


@dataclass(frozen=True)
class Told:
    """What a map is told from outside.

    Attributes:
        threshold: Probability from which a pixel is ink.
        threshold_from: Where that comes from, in words.
        temperature: That with the least cross-entropy on the other pieces; None without them.
        rules: For each rule the number chosen on the other pieces, the threshold it means here and
            its F0.5; empty without other pieces.
    """

    threshold: float
    threshold_from: str
    temperature: float | None
    rules: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A map with all its scores.

    Attributes:
        scored: The map.
        counts: What needs no threshold.
        decisions: What follows from threshold and temperature.
        told: These two, and where they come from.
    """

    scored: ScoredMap
    counts: Counts
    decisions: Decisions
    told: Told

    def scores(self) -> dict[str, Any]:
        """Return its scores by name, among them how much a better threshold would have brought."""
        found = self.counts.describe() | self.decisions.describe()
        regret = max(found["best_f05"] - found["f05"], 0.0)
        return found | {"regret": regret, "rules": self.told.rules}

    def describe(self) -> dict[str, Any]:
        """Return what evaluation.json says of it."""
        scored = self.scored
        return {
            "name": scored.name,
            "title": scored.title,
            "source": str(scored.source),
            "way": scored.way.title,
            "num_predictions": scored.way.num_predictions,
            "piece": None if scored.piece is None else asdict(scored.piece),
            "threshold_from": self.told.threshold_from,
            **self.scores(),
        }


def score(
    maps: Sequence[ScoredMap],
    rule: Rule = "value",
    fixed: float | None = None,
    cleaning: Cleaning = Cleaning(),  # noqa: B008 - frozen
) -> list[Evaluated]:
    """Return the scores of maps, what each is told coming from the others of its way.

    Args:
        maps: The maps.
        rule: How a threshold is chosen.
        fixed: The rule's number for every map, instead of choosing.
        cleaning: What is tried on the masks.

    Raises:
        ValueError: If a piece is mapped twice in one way, or a threshold cannot be had.
    """
    _check_distinct(maps)
    rows = 2 * sum(len(scored.label) for scored in maps)
    with progress("scoring", rows, "rows") as advance:
        counts = [Counts(scored, advance) for scored in maps]
        for scored, count in zip(maps, counts, strict=True):
            if count.is_flat:
                note(f"{scored.source}: {FLAT}")
        evaluated = []
        for index, scored in enumerate(maps):
            others = [
                counts[other]
                for other, another in enumerate(maps)
                if other != index and another.way.key == scored.way.key
            ]
            told = _tell(scored, counts[index], others, rule, fixed)
            decisions = Decisions(scored, told.threshold, told.temperature, cleaning, advance)
            evaluated.append(Evaluated(scored, counts[index], decisions, told))
    return evaluated


def averages(evaluated: Sequence[Evaluated]) -> dict[str, dict[str, Any]]:
    """Return the mean of each score over the maps of each way, None where a map lacks it."""
    described: dict[str, list[dict[str, Any]]] = {}
    for one in evaluated:
        described.setdefault(one.scored.way.title, []).append(one.scores())
    return {title: _mean(found) for title, found in described.items()}


def _mean(found: list[Any]) -> Any:
    """Return the mean of numbers, of nested ones too; None where it is not a number everywhere."""
    if all(isinstance(one, dict) for one in found):
        means = {key: _mean([one.get(key) for one in found]) for key in found[0]}
        return {key: mean for key, mean in means.items() if mean is not None}
    if all(isinstance(one, int | float) for one in found):
        return float(np.mean(found))
    return None


def _gather(
    sources: Sequence[Path],
    out: Path,
    data: Path | None,
    truth: Sequence[Path],
    held_out: Path | None,
) -> list[ScoredMap]:
    """Return the maps that the sources mean."""
    if not sources:
        raise ValueError("nothing to score; give prediction folders, or a run with --data")
    runs = [source for source in sources if (source / "checkpoints").is_dir()]
    if runs and data is None:
        raise ValueError(
            f"{runs[0]} is a run, whose held-out pieces are mapped from its volumes; name their "
            "folder with --data"
        )
    if data is not None and not runs:
        raise ValueError(f"--data {data} is for runs and none is given; leave it out")
    if len(runs) == len(sources) and (truth or held_out):
        raise ValueError("--truth and --held-out are for predictions and none is given")
    truths = Truths(truth)
    maps: list[ScoredMap] = []
    for source in sources:
        if source in runs and data is not None:
            maps += scored_held_out(source, data, out / "maps")
        else:
            maps += scored_predictions(source, truths, held_out)
    truths.check_all_used()
    return _with_distinct_titles(maps)


def _with_distinct_titles(maps: Sequence[ScoredMap]) -> list[ScoredMap]:
    """Return the maps with ways of equal title told apart by the first source made in each."""
    first = {scored.way.key: scored for scored in reversed(maps)}
    titles = Counter(scored.way.title for scored in first.values())

    def told_apart(way: Way) -> Way:
        is_alone = titles[way.title] == 1
        return way if is_alone else replace(way, title=f"{way.title}, as {first[way.key].source}")

    return [replace(scored, way=told_apart(scored.way)) for scored in maps]


def _tell(
    scored: ScoredMap,
    counts: Counts,
    others: Sequence[Counts],
    rule: Rule,
    fixed: float | None,
) -> Told:
    """Return threshold and temperature for a map from the others of its way."""
    rules = {}
    for name in RULES if others else ():
        number = choose(name, [other.histogram for other in others])
        at = threshold_of(name, number, counts.histogram)
        rules[name] = {"number": number, "threshold": at, "f05": counts.histogram.fbeta_at(at)}
    if fixed is not None:
        threshold, source = threshold_of(rule, fixed, counts.histogram), f"fixed {rule} {fixed:g}"
    elif others:
        threshold, source = rules[rule]["threshold"], f"{rule} from {len(others)} other"
    else:
        threshold, source = _own_threshold(scored, rule)
    logits = sum((other.logits for other in others), LogitHistogram())
    return Told(threshold, source, logits.temperature() if logits.has_both() else None, rules)


def _own_threshold(scored: ScoredMap, rule: Rule) -> tuple[float, str]:
    """Return the threshold of the model for a piece that stands alone, and what it is."""
    if rule != "value" or scored.threshold is None:
        raise ValueError(
            f"{scored.source} is the only map of its way, so no {rule} can be chosen on others; "
            "give one with --threshold, or maps of more fragments"
        )
    is_own = "the model's own, chosen on this very piece" if scored.threshold_saw_it else None
    return scored.threshold, is_own or "the model's own"


def _check_distinct(maps: Sequence[ScoredMap]) -> None:
    """Raise ValueError if a piece would be its own "other"."""
    seen: dict[tuple[str, str], ScoredMap] = {}
    for scored in maps:
        first = seen.setdefault((scored.way.key, scored.title), scored)
        if first is not scored:
            raise ValueError(
                f"{first.source} and {scored.source} map {scored.title} in the same way; leave "
                "one out, for a threshold chosen on one would be scored on the other"
            )


def check_replaceable(out: Path) -> None:
    """Raise ValueError if `out` holds anything but an evaluation, which alone may be replaced."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder as --out")
    foreign = names_in(out) - OUTPUTS
    if foreign:
        raise ValueError(
            f"{out} holds {sorted(foreign)[0]!r}, which is of no evaluation; choose another --out"
        )
