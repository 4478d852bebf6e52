"""Which experts trained models use: by the weight of their gates, and by what they contribute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.expert_shares import BlockShares, Shares, expert_shares, mean_shares
from core.gatrep import REPMODE_EXPERTS, Expert
from vesuvius.figure import check_target, write_figure
from vesuvius.inkmap import load_model
from vesuvius.scored import run_description

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND = "experts"
MEASURES = {
    "gates": "by gate: mean weight that the gates give each expert",
    "contributions": "by contribution: size of gate x kernel",
}
# Convolutions blue, averages orange, the larger the darker: told apart in any colour vision.
COLORS = dict(
    zip(REPMODE_EXPERTS, ("#08306b", "#3182bd", "#a6cbe3", "#fdbe85", "#d94701"), strict=True)
)
LEAST_NAMED = 0.05  # a smaller share has no room for its number
EXPLANATION = (
    "A bar is one block of the network, from input (left) to output; \"all\" is their mean. "
    "Gates alone do not tell an expert's part: a small weight on a large kernel can outweigh a "
    "large one on a small kernel."
)  # fmt: skip
SLIDES = {"convolution 5": 0.27, "average 5": 0.165}


@dataclass(frozen=True)
class TaskShares:
    """The shares of one run for one of its tasks; `blocks` as in `core.expert_shares`."""

    run: Path
    sha256: str
    task: str
    blocks: list[BlockShares]

    def total(self, measure: str) -> Shares:
        """Return the mean share of each expert over the blocks."""
        return mean_shares([getattr(block, measure) for block in self.blocks])


def experts(runs: tuple[Path, ...], /, out: Path) -> None:
    """Draw which experts the mixtures of trained models use, block by block and in all.

    Two measures stand side by side: the mean weight of each expert's gate, and its contribution,
    the size (Euclidean norm) of gate x kernel as a share of their sum. One row for each run, and
    for each of its tasks. The numbers are written beside the picture, as .json.

    Args:
        runs: Run folders of `vesuvius train`, of networks with mixtures of experts.
        out: The .png to write.

    Raises:
        FileNotFoundError: If a run does not exist or has no checkpoint yet.
        ValueError: If no run is given, a network has no mixtures, or `out` is another file.
    """
    if not runs:
        raise ValueError("no run given; name at least one run folder of `vesuvius train`")
    check_target(out, KIND)
    found = [shares for run in runs for shares in _read(run)]
    write_figure(out, KIND, _draw(found), {
        "measures": MEASURES,
        "blocks_count_alike": True,
        "2d_decoder_of_the_slides": {"gates": SLIDES},
        "runs": [_record(shares) for shares in found],
    })  # fmt: skip


def _read(run: Path) -> list[TaskShares]:
    """Return the shares of a run for each of its tasks.

    Raises:
        ValueError: If its network has no mixtures.
    """
    model, names = load_model(run), run_description(run)["tasks"]
    found = [
        TaskShares(run, model.sha256, name, expert_shares(model.network, task))
        for task, name in enumerate(names)
    ]
    if not found[0].blocks:
        network = type(model.recipe.network).__name__.removesuffix("Config")
        raise ValueError(
            f"{run} is a {network} network without mixtures of experts; give runs of a RepMode "
            "recipe (buckets, small, repmode-...)"
        )
    return found


def _name(expert: Expert) -> str:
    return f"{'convolution' if expert.kind == 'conv' else 'average'} {expert.size}"


def _named(shares: Shares) -> dict[str, float]:
    return {_name(expert): share for expert, share in shares.items()}


def _record(shares: TaskShares) -> dict[str, Any]:
    """Return the shares by name of expert, in all and per block."""
    blocks = {
        block.name: {measure: _named(getattr(block, measure)) for measure in MEASURES}
        for block in shares.blocks
    }
    total = {measure: _named(shares.total(measure)) for measure in MEASURES}
    return {
        "run": str(shares.run),
        "checkpoint_sha256": shares.sha256,
        "task": shares.task,
        "total": total,
        "blocks": blocks,
    }


def _draw(found: list[TaskShares]) -> Figure:
    """Return a row for each run and task, a column for each measure."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(14, 1.4 + 3.3 * len(found)), layout="constrained")
    rows = plot.subplots(len(found), len(MEASURES), squeeze=False, sharey=True)
    for axes_row, shares in zip(rows, found, strict=True):
        for axes, measure in zip(axes_row, MEASURES, strict=True):
            _draw_bars(axes, shares, measure)
        axes_row[0].set_ylabel(f"{shares.run.name}, task {shares.task}\nshare (%)")
    for axes, title in zip(rows[0], MEASURES.values(), strict=True):
        axes.set_title(title, fontsize=11)
    drawn = [axes.get_legend_handles_labels() for axes in rows[:, 0]]
    bars = {name: bar for found in drawn for bar, name in zip(*found, strict=True)}
    plot.legend(bars.values(), bars.keys(), loc="outside right center", fontsize=9, reverse=True,
                title="expert, and its size\n(5: 5x5x5 voxels,\nin 2D 5x5 pixels)")  # fmt: skip
    plot.suptitle("How much each expert of the mixtures counts", fontsize=13)
    plot.supxlabel(EXPLANATION, fontsize=9)
    return plot


def _draw_bars(axes: Axes, shares: TaskShares, measure: str) -> None:
    """Draw a stacked bar for each block, and apart from them one for all."""
    names = [block.name for block in shares.blocks]
    stacks = [getattr(block, measure) for block in shares.blocks] + [shares.total(measure)]
    places = [*range(len(names)), len(names) + 0.7]
    bottoms = [0.0] * len(places)
    for expert in shares.total(measure):
        heights = [100 * stack.get(expert, 0.0) for stack in stacks]
        color = COLORS.get(expert, "0.6")
        axes.bar(places, heights, 0.85, bottoms, color=color, label=_name(expert))
        if heights[-1] >= 100 * LEAST_NAMED:
            middle = bottoms[-1] + heights[-1] / 2
            axes.text(places[-1] + 0.55, middle, f"{heights[-1]:.0f} %", va="center", fontsize=9)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(places, [*names, "all"], rotation=60, ha="right", fontsize=8)
    axes.set(ylim=(0, 100), xlim=(-0.7, places[-1] + 1.9))
    axes.spines[["top", "right"]].set_visible(False)
