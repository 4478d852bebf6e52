"""What each step of a run does, as plain numbers: learning rate, order and batches of samples.

Nothing here keeps state: a run can go on from any step because every answer is a function of the
epoch and the step. Epochs and steps count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, start_factor: float, final_factor: float
) -> float:
    """Return the share of the peak learning rate at one optimiser step.

    It climbs linearly from `start_factor` at step 0 to 1 at step `warmup_steps`, then falls along
    a half cosine to `final_factor` at the last step; if the peak is the last step, it ends at 1.

    Args:
        step: Optimiser step of the whole run, 0 <= step < total_steps.
        total_steps: Optimiser steps of the whole run.
        warmup_steps: Steps before the peak, below `total_steps`; 0 starts at the peak.
        start_factor: Share at step 0 if there is a warm-up.
        final_factor: Share at the last step if that comes after the peak.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 2.2 (gradual warm-up);
        Loshchilov and Hutter, "SGDR" (2017), equation 5 (cosine).
    """
    if step < warmup_steps:
        return start_factor + (1 - start_factor) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class EpochPlan:
    """Which samples each batch and each optimiser step of an epoch takes.

    Every epoch is a new permutation of all samples, cut into batches of equal size; the last batch
    is filled up from the start of the permutation. An optimiser step takes `accumulate` batches,
    the last step of an epoch what is left. Example: 10 samples in batches of 4, accumulated by 2:
    3 batches (2 samples come twice) in 2 steps of 2 and 1 batches.

    Args:
        num_samples: Samples of the dataset.
        batch_size: Samples of a batch, over all processes.
        accumulate: Batches of an optimiser step.
        seed: Decides all permutations.
    """

    num_samples: int
    batch_size: int
    accumulate: int
    seed: int

    @property
    def num_batches(self) -> int:
        """Return the number of batches of an epoch."""
        return math.ceil(self.num_samples / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Return the number of optimiser steps of an epoch."""
        return math.ceil(self.num_batches / self.accumulate)

    def batches_in_step(self, step: int) -> int:
        """Return the number of batches that one optimiser step of an epoch takes."""
        return min(self.accumulate, self.num_batches - step * self.accumulate)

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the sample indices of every batch of an epoch, a function of seed and epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        filled = np.resize(order, (self.num_batches, self.batch_size))  # repeats from its start
        return filled.tolist()

    def stream(
        self, epoch: int, step: int, num_epochs: int, process: int = 0, num_processes: int = 1
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield one process's share of every batch from a step to the end of the run.

        Shares are runs of a batch: those of two processes are the batches of one that takes half
        the batch size and accumulates twice as many, where the batches divide the samples.

        Args:
            epoch: Epoch to start in.
            step: Optimiser step of that epoch to start with.
            num_epochs: Epochs of the whole run.
            process: Index of this process.
            num_processes: Processes that share a batch; must divide `batch_size`.

        Yields:
            The (epoch, index) of each sample.
        """
        first_batch = step * self.accumulate
        share = self.batch_size // num_processes
        own = slice(process * share, (process + 1) * share)
        for current in range(epoch, num_epochs):
            for batch in self.batches(current)[first_batch:]:
                yield [(current, index) for index in batch[own]]
            first_batch = 0
