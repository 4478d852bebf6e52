"""What the training loop is given and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the loop.

    Args:
        epochs: Passes over the dataset.
        batch_size: Samples of a batch, over all processes.
        learning_rate: Peak learning rate of AdamW.
        reference_samples: Samples per optimiser step that `learning_rate` is for: with others
            (batch_size x accumulate) the peak grows or shrinks in proportion, the linear scaling
            rule; 0 takes the rate as it is.
        weight_decay: Of AdamW.
        warmup_epochs: Length of the linear warm-up, fractions allowed; 0 for none.
        warmup_start_factor: Share of the peak learning rate at the first step of the warm-up.
        final_lr_factor: Share of the peak learning rate at the last step of the cosine.
        clip_norm: Largest gradient norm; 0 for no clipping.
        accumulate: Batches per optimiser step.
        ema_decay: Decay of the average weights that are validated and kept; 0 for none.
        precision: "auto" takes bf16 on a GPU that has it, fp16 on another, "no" on a CPU.
        num_workers: Processes that load samples; 0 loads them in the training process.
        seed: Decides the order of samples and the random numbers of the network.
        checkpoint_every_steps: Optimiser steps between checkpoints; 0 for epoch ends only.
        recompute: Whether blocks are computed again in the backward pass instead of kept: less
            memory, about a third more arithmetic, the same numbers.

    Raises:
        ValueError: If a setting is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_epochs: float = 0.0
    warmup_start_factor: float = 1e-4
    final_lr_factor: float = 0.01
    clip_norm: float = 3.0
    accumulate: int = 1
    ema_decay: float = 0.0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    num_workers: int = 0
    seed: int = 0
    checkpoint_every_steps: int = 0
    reference_samples: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "warmup_epochs": (
                0 <= self.warmup_epochs < self.epochs,
                f"0 or more and below epochs ({self.epochs})",
            ),
            "warmup_start_factor": (0 <= self.warmup_start_factor <= 1, "0 to 1"),
            "final_lr_factor": (0 <= self.final_lr_factor <= 1, "0 to 1"),
            "clip_norm": (0 <= self.clip_norm < math.inf, "0 (no clipping) or more"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "ema_decay": (0 <= self.ema_decay < 1, "0 (no average) or more and below 1"),
            "precision": (
                self.precision in ("auto", "no", "bf16", "fp16"),
                "'auto', 'no', 'bf16' or 'fp16'",
            ),
            "num_workers": (self.num_workers >= 0, "0 or more"),
            "seed": (0 <= self.seed < 2**31, f"0 to {2**31 - 1}"),
            "reference_samples": (self.reference_samples >= 0, "0 (no scaling) or more"),
            "checkpoint_every_steps": (self.checkpoint_every_steps >= 0, "0 (epochs) or more"),
        }
        for name, (is_allowed, text) in allowed.items():
            if not is_allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed is {text}")

    @property
    def peak_learning_rate(self) -> float:
        """Return the learning rate at the end of the warm-up.

        Reference: Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 2.1.
        """
        if not self.reference_samples:
            return self.learning_rate
        return self.learning_rate * self.batch_size * self.accumulate / self.reference_samples


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Args:
        score: Decides which epoch is the best; higher is better; finite.
        metrics: Numbers for metrics.jsonl and TensorBoard.
        previews: Pictures by name, uint8, (Y, X) grey or (Y, X, 3) RGB.
        meta: What inference should know (a threshold, say), kept in the best checkpoint; JSON-able.
    """

    score: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    previews: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Args:
        best_score: Highest validation score.
        best_epoch: The epoch it belongs to, counted from 1.
        best_path: Checkpoint of that epoch's weights, for inference.
        epochs: Finished epochs.
        steps: Finished optimiser steps.
    """

    best_score: float
    best_epoch: int
    best_path: Path
    epochs: int
    steps: int


class Samples(Protocol):
    """A dataset: `samples[epoch, index]` is a pure function of both and of its own settings."""

    def __len__(self) -> int: ...

    def __getitem__(self, epoch_and_index: tuple[int, int], /) -> Any: ...


LossFunction = Callable[[nn.Module, Any], tuple[Tensor, Mapping[str, float | Tensor]]]
Validate = Callable[[nn.Module], Validation]
