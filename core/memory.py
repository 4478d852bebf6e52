"""How much memory a training step needs, found without the memory and without the device.

A step is run on tensors that have shapes and no values, and every storage is counted from its
making to its release. That is what an allocator is asked for; what it keeps in reserve, and the
scratch space inside convolutions, come on top. Convolutions are direct, as on a GPU, and ways of
mixtures are chosen as on a CPU, which differs in few layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from core.convolution import direct_only
from core.gatrep import TaskGroups
from core.recompute import recomputing
from core.unet3d import TaskConditioned


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Attributes:
        weights: Parameters and buffers.
        optimizer: State of AdamW, two values per parameter that is trained.
        kept: Kept at the end of the forward pass for the backward pass, the input with it.
        peak: Most at any moment, weights, gradients and optimizer with it.
    """

    weights: int
    optimizer: int
    kept: int
    peak: int


def step_memory(
    build: Callable[[], TaskConditioned],
    shape: Sequence[int],
    tasks: Sequence[int],
    autocast: torch.dtype | None = None,
    recompute: bool = False,
) -> StepMemory:
    """Return what a training step of a network on a batch would need.

    Args:
        build: Makes the task-gated network; it is called where tensors have no values.
        shape: Shape of the batch (N, C, Z, Y, X).
        tasks: Task of each sample (N,).
        autocast: Precision of autocast; None for none.
        recompute: Whether blocks are computed again in the backward pass (`core.recompute`).

    Raises:
        ValueError: If there is no block to compute again.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), direct_only(), LiveBytes() as live:
        network = build().network.train()
        trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
        weights = live.now
        x = torch.empty(tuple(shape))
        saving = recomputing(network) if recompute else contextlib.nullcontext()
        with saving, torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = network(x, TaskGroups.of(tasks)).float().square().mean()
        kept = live.now - weights
        loss.backward()
    return StepMemory(weights, 2 * trained, kept, live.peak + 2 * trained)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside it, for as long as they live.

    Attributes:
        now: Bytes that live now.
        peak: Most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size
