"""The choice between merging kernels and gating outputs, from what each would cost.

Both compute the same function (`core.gatrep`). Merging does the multiplications of one convolution
but forms a kernel for every distinct task, and a kernel costs memory traffic however small the
features are; gating runs every expert once for the whole batch and keeps their outputs for the
backward pass. The choice is made per layer and batch from shapes alone, so it can be asked for
without running anything (`plan`), and it is logged once for every shape.

Shape legend as in `core.gatrep`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.gatrep import Expert, TaskGroups, convolve_gated, convolve_merged, live_window
from core.routing import convolve_sparse

Computation = Literal["auto", "merged", "gated", "sparse"]
Way = Literal["merged", "gated"]

# Multiply-adds of a convolution in the time of moving one byte. For "cpu" fitted to single layers
# on two cores and held against them by benchmarks/layers.py; for "cuda" an estimate from data
# sheets. They decide speed only, never the result.
MULTIPLY_ADDS_PER_BYTE = {"cpu": 100.0, "cuda": 50.0}
# The additions of an average are not done in blocks as a convolution's are.
MULTIPLY_ADDS_PER_AVERAGED_VALUE = 50

_log = logging.getLogger(__name__)
_logged: set[tuple[object, ...]] = set()


@dataclass(frozen=True)
class Cost:
    """What a layer costs in one training step, forward and backward.

    Attributes:
        multiply_adds: Of convolutions and averages.
        kernel_bytes: Moved to form kernels, to convolve with them, and for their gradients.
        kept_bytes: Kept for the backward pass beyond the layer's input.
    """

    multiply_adds: int
    kernel_bytes: int
    kept_bytes: int

    def total(self, multiply_adds_per_byte: float) -> float:
        """Return all of it in multiply-adds."""
        return self.multiply_adds + multiply_adds_per_byte * (self.kernel_bytes + self.kept_bytes)


def merged_cost(
    shape: Sequence[int], out_channels: int, experts: Sequence[Expert], num_distinct: int
) -> Cost:
    """Return the cost of `convolve_merged` for features of `shape` (N, I, *S).

    A kernel moves three times in a convolution's step: forward, and for the gradients of features
    and kernel. To form one, every expert moves twice: forward and backward.
    """
    num_samples, in_channels, *lengths = shape
    pairs = in_channels * out_channels
    taps = math.prod(live_window(max(expert.size for expert in experts), lengths))
    formed = sum(math.prod(live_window(expert.size, lengths)) for expert in experts)
    return Cost(
        multiply_adds=3 * num_samples * math.prod(lengths) * pairs * taps,
        kernel_bytes=4 * num_distinct * pairs * (3 * taps + 2 * formed),
        kept_bytes=0,
    )


def gated_cost(shape: Sequence[int], out_channels: int, experts: Sequence[Expert]) -> Cost:
    """Return the cost of `convolve_gated` for features of `shape` (N, I, *S).

    It keeps each expert's output, which its gate's gradient needs, and each average.
    """
    num_samples, in_channels, *lengths = shape
    voxels = num_samples * math.prod(lengths)
    pairs = in_channels * out_channels
    taps = sum(math.prod(live_window(expert.kernel_size, lengths)) for expert in experts)
    averages = [expert.size for expert in experts if expert.kind == "average"]
    added = sum([size ** len(lengths) for size in averages])
    averaging = 2 * voxels * in_channels * added * MULTIPLY_ADDS_PER_AVERAGED_VALUE
    # Features shorter than a window are padded before they are averaged, and kept so.
    padded = [
        num_samples * in_channels * math.prod([length + size - 1 for length in lengths])
        for size in averages
        if min(lengths) < size
    ]
    outputs = out_channels * len(experts) + in_channels * len(averages)
    return Cost(
        multiply_adds=3 * voxels * pairs * taps + averaging,
        kernel_bytes=4 * pairs * 3 * taps,
        kept_bytes=4 * (voxels * outputs + sum(padded)),
    )


def cheaper(
    shape: Sequence[int],
    out_channels: int,
    experts: Sequence[Expert],
    num_distinct: int,
    device_type: str = "cpu",
) -> Way:
    """Return the cheaper way for features of `shape` (N, I, *S) with `num_distinct` tasks."""
    rate = MULTIPLY_ADDS_PER_BYTE.get(device_type, MULTIPLY_ADDS_PER_BYTE["cuda"])
    merged = merged_cost(shape, out_channels, experts, num_distinct).total(rate)
    return "merged" if merged <= gated_cost(shape, out_channels, experts).total(rate) else "gated"


def convolve(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Compute the gated sum of experts the cheaper way; arguments as `convolve_merged`."""
    out_channels, num_distinct = kernels[0].shape[0], len(groups.samples)
    way = cheaper(x.shape, out_channels, experts, num_distinct, x.device.type)
    if not torch.compiler.is_compiling():
        _log_once(way, x.shape, out_channels, num_distinct)
    return COMPUTATIONS[way](x, kernels, experts, gates_DEO, groups)


COMPUTATIONS: dict[Computation, Callable[..., Tensor]] = {
    "auto": convolve,
    "merged": convolve_merged,
    "gated": convolve_gated,
    "sparse": convolve_sparse,
}


def _log_once(way: Way, shape: Sequence[int], out_channels: int, num_distinct: int) -> None:
    case = (way, *shape, out_channels, num_distinct)
    if case not in _logged:
        _logged.add(case)
        _log.info(
            "GatRep of %s to %d channels, %d distinct tasks: %s",
            tuple(shape), out_channels, num_distinct, way,
        )  # fmt: skip
