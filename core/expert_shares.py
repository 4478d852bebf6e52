"""How much each expert of a trained network counts, block by block.

Two measures, as neither alone tells it. The *gate* is the weight that a task gives an expert,
averaged over the output channels of a block; but a small weight on a large kernel can outweigh a
large one on a small kernel. The *contribution* is the size of gate x kernel: the Euclidean norm of
what an expert adds to the merged kernel, as a share of the sum of these norms. It is how strongly
the expert would answer features that are independent from voxel to voxel; smooth features favour
the averages more than it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from core.gatrep import Expert, merge
from core.mode import MoDE

Shares = dict[Expert, float]
_CONTAINERS = {"network", "stages", "blocks", "conv"}


@dataclass(frozen=True)
class BlockShares:
    """How one mixture uses its experts for one task; both add up to 1.

    Attributes:
        name: Where in the network it is, counted from 1 ("encoder 2.1": stage 2, block 1).
        gates: Mean weight of each expert over the output channels.
        contributions: Share of each expert in the norms of gate x kernel.
    """

    name: str
    gates: Shares
    contributions: Shares


def expert_shares(model: nn.Module, task: int) -> list[BlockShares]:
    """Return the shares of every mixture of a network for a task, in the network's order.

    Raises:
        ValueError: If a gate looks at the input, so that a task alone has no shares.
    """
    blocks = [(name, block) for name, block in model.named_modules() if isinstance(block, MoDE)]
    return [_shares(_title(name), block, task) for name, block in blocks]


def mean_shares(shares: Sequence[Mapping[Expert, float]]) -> Shares:
    """Return the mean share of each expert over blocks, each block counting alike.

    An expert that a block does not have counts as 0 there.
    """
    experts = dict.fromkeys(expert for one in shares for expert in one)
    return {expert: sum(one.get(expert, 0.0) for one in shares) / len(shares) for expert in experts}


@torch.no_grad()
def _shares(name: str, block: MoDE, task: int) -> BlockShares:
    gates_EO = block.gate.of_task(task)
    experts = block.experts[: len(gates_EO)]  # tasks from before an extension know no more
    norms = [
        float(merge([kernel], [expert], gate[None]).norm())
        for kernel, expert, gate in zip(block.kernels, experts, gates_EO, strict=False)
    ]
    gates = gates_EO.mean(1).tolist()
    return BlockShares(name, _of_sum(experts, gates), _of_sum(experts, norms))


def _of_sum(experts: Iterable[Expert], values: Sequence[float]) -> Shares:
    """Return each value as a share of their sum; experts that are alike are counted together."""
    total = sum(values) or 1.0
    shares: Shares = {}
    for expert, value in zip(experts, values, strict=True):
        shares[expert] = shares.get(expert, 0.0) + value / total
    return shares


def _title(path: str) -> str:
    """Return where a module is: "encoder 2.1" for "network.encoder.stages.1.blocks.0.conv"."""
    parts = [part for part in path.split(".") if part not in _CONTAINERS]
    names = [part for part in parts if not part.isdigit()]
    numbers = [str(int(part) + 1) for part in parts if part.isdigit()]
    return " ".join([*names[-1:], ".".join(numbers)]).strip()
