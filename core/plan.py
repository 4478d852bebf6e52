"""Which way each mixture of a network will take, asked without computing anything.

Shape legend as in `core.gatrep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from core.choice import Cost, Way, gated_cost, merged_cost
from core.convolution import direct_only
from core.gatrep import TaskGroups
from core.mode import MoDE
from core.unet3d import TaskConditioned


@dataclass(frozen=True)
class LayerPlan:
    """One mixture of a network and what its two ways would cost in a training step.

    Attributes:
        name: The module's name in the network.
        shape: Shape of its input (N, I, *S).
        out_channels: O.
        way: The way that `core.choice` takes.
        merged: Cost of merging a kernel per distinct task.
        gated: Cost of gating outputs.
    """

    name: str
    shape: tuple[int, ...]
    out_channels: int
    way: Way
    merged: Cost
    gated: Cost


def plan(
    model: TaskConditioned, shape: Sequence[int], tasks: Sequence[int], device_type: str = "cpu"
) -> list[LayerPlan]:
    """Return the way of every mixture for a batch, in the order they run; [] if there is none.

    Args:
        model: A task-gated network; it is left as it is.
        shape: Shape of the batch (N, C, Z, Y, X).
        tasks: Task of each sample (N,).
        device_type: Where the batch will be computed: "cpu" or "cuda".

    Raises:
        ValueError: If the shape is none of a batch with these tasks, or a mixture routes sparsely.
    """
    if len(shape) != 5 or shape[0] != len(tasks):
        raise ValueError(
            f"shape {tuple(shape)} with {len(tasks)} tasks; give (N, C, Z, Y, X) and N tasks"
        )
    layers: list[LayerPlan] = []
    names = {
        module: name for name, module in model.network.named_modules() if isinstance(module, MoDE)
    }

    if not names:
        return []

    def note(block: nn.Module, inputs: tuple[Tensor, TaskGroups]) -> None:
        assert isinstance(block, MoDE)
        features, groups = inputs
        way, num_experts, num_distinct = block.way(features, groups, device_type)
        out_channels, experts = block.kernels[0].shape[0], block.experts[:num_experts]
        layers.append(
            LayerPlan(
                names[block],
                tuple(features.shape),
                out_channels,
                way,
                merged_cost(features.shape, out_channels, experts, num_distinct),
                gated_cost(features.shape, out_channels, experts),
            )
        )

    hooks = [block.register_forward_pre_hook(note) for block in names]
    try:
        # Tensors without values: shapes go through the network and nothing is computed.
        with FakeTensorMode(), torch.enable_grad(), direct_only():
            state = [*model.network.named_parameters(), *model.network.named_buffers()]
            shapes = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in state}
            batch = (torch.empty(tuple(shape)), TaskGroups.of(tasks))
            functional_call(model.network, shapes, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def summary(layers: Sequence[LayerPlan]) -> str:
    """Return how many mixtures take which way."""
    num_merged = sum(layer.way == "merged" for layer in layers)
    return (
        f"GatRep: of {len(layers)} mixtures {num_merged} merge kernels, "
        f"{len(layers) - num_merged} gate outputs"
    )


def table(layers: Sequence[LayerPlan]) -> str:
    """Return a plan as lines of text."""
    lines = [f"{'layer':34} {'input':24} {'out':>4}  way     multiply-adds  kernels MiB  kept MiB"]
    for layer in layers:
        cost = layer.merged if layer.way == "merged" else layer.gated
        lines.append(
            f"{layer.name:34} {layer.shape!s:24} {layer.out_channels:4}  {layer.way:7} "
            f"{cost.multiply_adds:13.3g}  {cost.kernel_bytes / 2**20:11.1f}  "
            f"{cost.kept_bytes / 2**20:8.1f}"
        )
    return "\n".join(lines)
