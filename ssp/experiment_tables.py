"""The tables of the paper, trained, scored and printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Annotated, Any

import numpy as np
import tyro

from core.files import write_json
from core.provenance import collect
from core.run_folder import finite
from core.terminal import note
from ssp.ablations import ORIGINAL, TABLE2
from ssp.networks.registry import METHODS
from ssp.paper_results import TABLE1 as PUBLISHED1
from ssp.paper_results import TABLE2 as PUBLISHED2
from ssp.paper_results import TABLE3 as PUBLISHED3
from ssp.paper_results import TASKS, Scores
from ssp.paper_table import PaperTable, Row, paper_tasks
from ssp.scores import ALL
from ssp.study import Study, StudyOptions, Trial, by_title, open_study, seeded

Options = Annotated[StudyOptions, tyro.conf.arg(name="")]
TITLES = {
    "multi-net": "Multi-Net",
    "multi-head-dec": "Multi-Head (Dec.)",
    "multi-head-las": "Multi-Head (Las.)",
    "condnet": "CondNet",
    "tsns": "TSNs",
    "pipo-fan": "PIPO-FAN",
    "dodnet": "DoDNet",
    "tgnet-style": "TGNet-style",
    "repmode": "RepMode",
}
STRATEGIES = {
    "multi-net": "Individual Training",
    "multi-head-dec": "All Fine-Tuning",
    "repmode": "Experts Frozen",
}
LEARNED = ("fibrillarin", "membrane_caax_63x")  # of Table 3


def table1(*, study: Options, methods: tuple[str, ...] = tuple(METHODS)) -> None:
    """Train and score all methods on all structures: Table 1 of the paper.

    Writes table1.md, table1.html, table1.csv (seed by seed) and table1.json, and prints the table:
    MSE, MAE and R2 of each structure and of all images, and gains over Multi-Net, each above what
    the paper reports. The same command again does what is missing; more methods and seeds can be
    added later.

    Args:
        study: Where and on what.
        methods: Which methods; Multi-Net is the reference of gains.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If a method is unknown, or `out` holds another study.
    """
    check_names("--methods", methods, METHODS)
    opened = open_study(study)
    results = opened.results(seeded({name: METHODS[name] for name in methods}, study.seeds))
    rows = _rows(by_title(results), PUBLISHED1, TITLES)
    reference = TITLES["multi-net"] if "multi-net" in methods else None
    tasks = paper_tasks(opened.data.tasks, TASKS)
    table = PaperTable("Table 1: all methods on all structures", rows, tasks, reference)
    _finish(opened, "table1", table, results)


def table2(*, study: Options, variants: tuple[str, ...] = tuple(TABLE2)) -> None:
    """Train and score RepMode and its variants: Table 2 of the paper.

    Scope of the mixtures, their experts, their averages and their gates. Writes table2.md,
    table2.html, table2.csv (seed by seed) and table2.json, and prints the table, with gains over
    the original. The runs of RepMode are those of table1, if there are any.

    Args:
        study: Where and on what.
        variants: Which variants, by their names in the table.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If a variant is unknown, or `out` holds another study.
    """
    check_names("--variants", variants, TABLE2)
    opened = open_study(study)
    networks = {name: TABLE2[name] for name in variants} | {"repmode": ORIGINAL}
    results = opened.results(seeded(networks, study.seeds))
    rows = _rows(by_title(results), PUBLISHED2, TITLES)
    table = PaperTable("Table 2: RepMode and its variants", rows, [ALL], TITLES["repmode"])
    _finish(opened, "table2", table, results)


def table3(*, study: Options, learned: tuple[str, ...] = LEARNED) -> None:
    """Teach trained networks a structure they do not know: Table 3 of the paper.

    RepMode and Multi-Head (Dec.) learn all other structures first and then each of these alone:
    RepMode with a new expert and gate in each mixture and all else frozen, Multi-Head with a new
    decoder and all of it fine-tuned. Multi-Net is a network that learns each of these from nothing.
    All three see as many images of it. Also told: what became of the structures known before. The
    paper does not say whether each of the two was left out alone; here both are, so that one
    network serves both.

    Args:
        study: Where and on what.
        learned: The structures that are learned afterwards.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If the data lack such a structure or have no other, or `out` holds another
            study.
    """
    opened = open_study(study)
    opened.data.select("test", learned)  # refuses tasks that the data do not have
    if not learned or not {*opened.data.tasks} - {*learned}:
        raise ValueError(
            f"--learned {' '.join(learned)} must name one structure or more and leave out another; "
            f"there are {', '.join(opened.data.tasks)}"
        )
    others = tuple(sorted(learned))
    bases = [
        Trial(method, METHODS[method], seed, () if method == "multi-net" else others)
        for method in STRATEGIES
        for seed in range(study.seeds)
    ]
    before = opened.results(base for base in bases if base.left_out)
    after = {task: opened.results(replace(b, learns=task) for b in bases) for task in learned}
    merged = [
        {"title": base.title, "tasks": {task: after[task][number]["tasks"][task] for task in after}}
        for number, base in enumerate(bases)
    ]
    titles = {name: f"{TITLES[name]}, {strategy}" for name, strategy in STRATEGIES.items()}
    rows = _rows(by_title(merged), PUBLISHED3, titles)
    table = PaperTable("Table 3: a structure learned afterwards", rows, learned)
    kept = _kept(before, after)
    _finish(opened, "table3", table, [*before, *chain(*after.values())], kept)


def check_names(option: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Raise ValueError if an option names nothing, or something unknown."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"does not know {', '.join(unknown)}" if unknown else "names none"
        raise ValueError(f"{option} {found}; there are {', '.join(known)}")


def _kept(
    before: Sequence[Mapping[str, Any]], after: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """Return what became of the structures that networks knew before, a line for each method."""
    lines = []
    for method in dict.fromkeys(one["title"] for one in before):
        known = [one for one in before if one["title"] == method]
        pairs = [
            (old["tasks"][name]["mse"], new["tasks"][name]["mse"])
            for results in after.values()
            for old, new in zip(known, (r for r in results if r["title"] == method), strict=True)
            for name in old["tasks"]
            if name != ALL
        ]
        first, then = (float(np.mean(values)) for values in zip(*pairs, strict=True))
        is_same = all(old == new for old, new in pairs)
        found = "the same to the last digit" if is_same else f"{then:.4f}"
        lines.append(
            f"{TITLES[method]}: MSE of the structures known before was {first:.4f} and is {found} "
            "after another one was learned"
        )
    return lines


def _rows(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Mapping[str, Mapping[str, Scores]],
    titles: Mapping[str, str],
) -> list[Row]:
    """Return a row for each title, with what the paper reports of it."""
    return [
        Row(titles.get(name, name), [one["tasks"] for one in found], published.get(name, {}))
        for name, found in results.items()
    ]


def _finish(
    study: Study,
    name: str,
    table: PaperTable,
    results: Iterable[Mapping[str, Any]],
    lines: Sequence[str] = (),
) -> None:
    """Write and print a table; `lines` come below it."""
    without_images = [{k: v for k, v in one.items() if k != "images"} for one in results]
    record = collect(
        None,
        budget=asdict(study.budget) | {"simulate_data": study.budget.simulate_data is not None},
        images=len(study.data.images),
        markdown=table.markdown(),
        lines=list(lines),
        runs=without_images,
    )
    write_json(study.out / f"{name}.json", finite(record))
    table.write(study.out, name)
    print("\n".join([table.text(), *lines]))
    note(f"{study.out / name}.html shows it, {name}.csv has it seed by seed")
