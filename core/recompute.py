"""Blocks computed again in the backward pass instead of kept: less memory, more time, same numbers.

Autograd keeps what every operation of a block was given. Here it keeps what the block was given and
runs the block again when its gradient is due, with the same random numbers, so that dropout draws
the same mask, and without moving the running statistics of its normalisations a second time. A
block is a convolution with normalisation and activation; a whole stage would have to be held at
once where it is the finest one, which is most of a network's memory.

Reference: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.unet3d import ConvNormAct


def blocks_of(network: nn.Module) -> list[ConvNormAct]:
    """Return the blocks of a network that can be computed again.

    Raises:
        ValueError: If there is none.
    """
    blocks = [module for module in network.modules() if isinstance(module, ConvNormAct)]
    if not blocks:
        raise ValueError(
            "recompute is on, but this network has no block that can be computed again (no "
            "core.unet3d.ConvNormAct); leave it out, or lower batch_size"
        )
    return blocks


@contextlib.contextmanager
def recomputing(network: nn.Module) -> Iterator[None]:
    """Compute the blocks of a network again in backward passes of what runs forward inside.

    Args:
        network: A network of `ConvNormAct` blocks; afterwards it is as before.

    Raises:
        ValueError: If it has none.
    """
    blocks = blocks_of(network)
    for block in blocks:
        vars(block)["forward"] = partial(_run, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _run(block: nn.Module, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Run a block and keep its inputs alone."""
    contexts = partial(_contexts, block)
    features: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return features


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return what the first run and the second happen in."""
    return contextlib.nullcontext(), _statistics_as_they_are(block)


@contextlib.contextmanager
def _statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """Normalise by the batch without moving the running statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
