"""Sparse routing: each output channel hears its best expert alone, the others do not run.

The paper holds it against GatRep (figure 4 (b)): cheaper than running every expert, but most of
them stay unused. Complete utilisation, its figure 4 (a), is `core.gatrep.convolve_gated`.

Shape legend as in `core.gatrep`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.convolution import convolve_same
from core.gatrep import (
    Expert,
    TaskGroups,
    average,
    join,
    live_window,
    middle,
    split,
)


def keep_best(gates: Tensor) -> Tensor:
    """Return the gating weights (..., E, O) with all but the largest of each channel set to 0."""
    best = gates.argmax(dim=-2, keepdim=True)
    return torch.zeros_like(gates).scatter(-2, best, gates.gather(-2, best))


def convolve_sparse(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Run for each output channel the expert with the largest gate, scaled by that gate.

    Arguments as `core.gatrep.convolve_merged`. The paper leaves open whether a sample or a channel
    is routed; its gates are per channel, so channels are. Which expert is best has no gradient,
    how large its gate is has one.

    Reference: RepMode figure 4 (b).
    """
    outputs = []
    for rows, gates_EO in zip(split(x, groups.samples), gates_DEO, strict=True):
        best_O = gates_EO.argmax(dim=0)
        parts, places = [], []
        for e, (kernel, expert) in enumerate(zip(kernels, experts, strict=True)):
            (channels,) = torch.nonzero(best_O == e, as_tuple=True)
            if not len(channels):
                continue
            features = average(rows, expert.size) if expert.kind == "average" else rows
            window = live_window(expert.kernel_size, x.shape[2:])
            convolved = convolve_same(features, middle(kernel[channels], window))
            parts.append(gates_EO[e, channels].view(-1, *[1] * (x.ndim - 2)) * convolved)
            places.append(channels)
        outputs.append(torch.cat(parts, dim=1)[:, torch.argsort(torch.cat(places))])
    return join(outputs, groups.samples).to(convolved.dtype)
