"""The commands of `ssp experiment`: the tables and figures of the paper, each by its number.

Reference: Zhou et al., RepMode, CVPR 2023, section 4.
"""

from __future__ import annotations

from core.terminal import Command

EXPERIMENTS = {
    "table1": Command("all methods on all structures", "ssp.experiment_tables:table1"),
    "table2": Command("RepMode's variants: scope, experts, gates", "ssp.experiment_tables:table2"),
    "table3": Command(
        "a structure learned afterwards, by three strategies", "ssp.experiment_tables:table3"
    ),
    "figure6": Command(
        "which experts RepMode uses for which structure", "ssp.experiment_figures:figure6"
    ),
    "figure7": Command(
        "predictions beside their targets, with errors", "ssp.experiment_figures:figure7"
    ),
}
