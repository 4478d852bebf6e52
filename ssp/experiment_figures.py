"""The figures of the paper: which experts are used, and what predictions look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.expert_shares import BlockShares, expert_shares
from core.files import atomic_path, write_json
from core.gatrep import Expert
from core.inference import choose_device
from core.page import plot_bytes
from core.provenance import collect
from core.terminal import note
from ssp.assess import Assessment, assess
from ssp.evaluate import field_of
from ssp.experiment_tables import TITLES, Options, check_names
from ssp.model import load_model
from ssp.networks.registry import METHODS, build_network, for_task
from ssp.paper_results import TASKS
from ssp.paper_table import paper_tasks, structure
from ssp.pictures import ERROR_WHITE, contrast
from ssp.prepared import Image
from ssp.study import Study, Trial, open_study, seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = ("alpha_tubulin", "beta_actin", "dna")  # of Figure 7
HALVES = ("encoder", "decoder")


def figure6(*, study: Options, blocks: tuple[str, ...] = ()) -> None:
    """Show which experts RepMode uses for which structure: Figure 6 of the paper.

    Gating weights averaged over the output channels of a block and over seeds: of one block of the
    encoder, one of the decoder, and all blocks of each. Writes figure6.png, and figure6.json with
    every block, seed by seed. The runs are those of table1, if there are any.

    Args:
        study: Where and on what.
        blocks: Names of blocks to show, such as "encoder 2.1" and "decoder 1.2", stage and block;
            by default the middle ones of encoder and decoder.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If there is no such block, or `out` holds another study.
    """
    opened = open_study(study)
    trials = seeded({"repmode": METHODS["repmode"]}, study.seeds)
    untrained = build_network(opened.recipe(trials[0]).network, len(opened.data.tasks))
    names = [block.name for block in expert_shares(untrained, 0)]
    shown = _panels(names, blocks)  # refuses blocks that there are not, before any training
    opened.results(trials)
    shares = [_shares(opened, trial) for trial in trials]
    tasks = paper_tasks(opened.data.tasks, TASKS)[:-1]
    plot = _draw_shares(shares, tasks, shown)
    seeds = [
        {task: {one.name: _named(one.gates) for one in found} for task, found in by_task.items()}
        for by_task in shares
    ]
    _write(opened, "figure6", plot, {"blocks": names, "gates": seeds})


def figure7(
    *,
    study: Options,
    tasks: tuple[str, ...] = SHOWN,
    methods: tuple[str, ...] = ("repmode", "tgnet-style"),
) -> None:
    """Show predictions of test images beside their targets: Figure 7 of the paper.

    The middle plane of the first test image of each structure: transmitted light, target, and what
    each method with the first seed makes of it, with its error: red where too bright, blue where
    too dark. Writes figure7.png, and figure7.json with the scores of these images.

    Args:
        study: Where and on what.
        tasks: Structures to show.
        methods: Methods to compare.

    Raises:
        FileNotFoundError: If there are no such data.
        ValueError: If a structure or method is unknown, or `out` holds another study.
    """
    check_names("--methods", methods, METHODS)
    opened = open_study(study)
    check_names("--tasks", tasks, opened.data.tasks)
    images = [_first_image(opened, task) for task in tasks]
    trials = [Trial(method, METHODS[method], seed=0) for method in methods]
    opened.results(trials)
    found = {trial.title: [_assess(opened, trial, image) for image in images] for trial in trials}
    scores = {
        method: {i.task: dict(one.scores) for i, one in zip(images, assessed, strict=True)}
        for method, assessed in found.items()
    }
    _write(opened, "figure7", _draw_slices(images, found), {
        "images": {image.task: image.name for image in images}, "scores": scores,
    })  # fmt: skip


def _shares(study: Study, trial: Trial) -> dict[str, list[BlockShares]]:
    """Return the shares of all blocks of a trained RepMode by task."""
    model = load_model(study.run_of(trial))
    return {task: expert_shares(model.network, i) for i, task in enumerate(model.tasks)}


def _panels(names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return the blocks that each panel shows the mean of, by its title."""
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"no block {', '.join(unknown)}; there are {', '.join(names)}")
    halves = {half: [name for name in names if name.startswith(half)] for half in HALVES}
    chosen = wanted or [blocks[len(blocks) // 2] for blocks in halves.values()]
    panels = {name: [name] for name in chosen}
    return panels | {f"all of the {half}": blocks for half, blocks in halves.items()}


def _draw_shares(
    seeds: Sequence[Mapping[str, Sequence[BlockShares]]],
    tasks: Sequence[str],
    panels: Mapping[str, Sequence[str]],
) -> Figure:
    """Return a panel of tasks by experts for each group of blocks, means over blocks and seeds."""
    from matplotlib.figure import Figure

    experts = list(seeds[0][tasks[0]][0].gates)
    plot = Figure(figsize=(1.6 + 3.0 * len(panels), 1.6 + 0.32 * len(tasks)), layout="constrained")
    for axes, (title, names) in zip(plot.subplots(1, len(panels)), panels.items(), strict=True):
        values = np.array([
            [
                np.mean([
                    block.gates.get(expert, 0.0)
                    for shares in seeds
                    for block in shares[task]
                    if block.name in names
                ])
                for expert in experts
            ]
            for task in tasks
        ])  # fmt: skip
        is_first = axes is plot.axes[0]
        _draw_panel(axes, values, title, [structure(t) for t in tasks] if is_first else [], experts)
    plot.suptitle("Mean gating weight of each expert", fontsize=12)
    return plot


def _draw_panel(
    axes: Axes,
    values: np.ndarray,
    title: str,
    rows: Sequence[str],
    experts: Sequence[Expert],
) -> None:
    """Draw weights (tasks, experts) as a grid of colours with numbers on it."""
    axes.imshow(values, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value < (values.min() + values.max()) / 2 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(experts)), [_name(expert) for expert in experts], rotation=60,
                    ha="right", rotation_mode="anchor", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), rows, fontsize=8)


def _name(expert: Expert) -> str:
    return f"{'Conv' if expert.kind == 'conv' else 'Avgp'} {expert.size}"


def _named(shares: Mapping[Expert, float]) -> dict[str, float]:
    return {_name(expert): share for expert, share in shares.items()}


def _first_image(study: Study, task: str) -> Image:
    """Return the first test image of a task."""
    images = study.data.select("test", (task,))
    if not images:
        raise ValueError(f"{study.data.path} has no test image of {task}; choose other --tasks")
    return images[0]


def _assess(study: Study, trial: Trial, image: Image) -> Assessment:
    """Return what a trained network makes of an image."""
    model = load_model(study.run_of(trial))
    plain = for_task(model.network, model.tasks.index(image.task))
    device = choose_device("auto")
    return assess(plain.to(device), image, field_of(model, image), device)


def _draw_slices(images: Sequence[Image], found: Mapping[str, Sequence[Assessment]]) -> Figure:
    """Return a row for each image: signal, target, and prediction and error of each method."""
    from matplotlib.figure import Figure

    num_columns = 2 + 2 * len(found)
    plot = Figure(figsize=(2.3 * num_columns, 2.5 * len(images)), layout="constrained")
    grid = plot.subplots(len(images), num_columns, squeeze=False)
    for row, image, *assessed in zip(grid, images, *found.values(), strict=True):
        one = assessed[0]
        limits = contrast(one.target)
        pictures = [("transmitted light", one.signal, "gray", contrast(one.signal))]
        pictures.append(("target", one.target, "gray", limits))
        for method, this in zip(found, assessed, strict=True):
            error = f"its error, MSE {this.scores['mse']:.3f}"
            pictures += [
                (TITLES[method], this.predicted, "gray", limits),
                (error, this.predicted - one.target, "RdBu_r", (-ERROR_WHITE, ERROR_WHITE)),
            ]
        for axes, (title, plane, colours, (low, high)) in zip(row, pictures, strict=True):
            axes.imshow(plane, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(structure(image.task), fontsize=10)
    return plot


def _write(study: Study, name: str, plot: Figure, facts: Mapping[str, Any]) -> None:
    """Write a figure and its numbers."""
    path: Path = study.out / f"{name}.png"
    write_json(path.with_suffix(".json"), collect(None, **facts))
    with atomic_path(path) as partial:
        partial.write_bytes(plot_bytes(plot))
    note(f"picture in {path}, numbers in {path.with_suffix('.json')}")
