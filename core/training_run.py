"""A training run: what stays fixed, the state that changes, and the batches that are left."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from core import checkpoint
from core.recompute import blocks_of, recomputing
from core.run_folder import RunFolder, RunLog
from core.schedule import EpochPlan, learning_rate_factor
from core.training_config import FitResult, Samples, TrainingConfig
from core.training_state import Position, TrainingState
from core.wandb_log import check_wandb

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST_VALIDATION = timedelta(days=1)  # for which the other processes wait


@dataclass(frozen=True)
class Run:
    """A run in progress: what stays fixed, and the state that changes."""

    accelerator: Accelerator
    config: TrainingConfig
    plan: EpochPlan
    identity: dict[str, Any]
    folder: RunFolder
    state: TrainingState
    wandb: str | None = None

    @property
    def position(self) -> Position:
        """Return how far the run is."""
        return self.state.position

    @property
    def steps(self) -> int:
        """Return the number of finished optimiser steps."""
        return self.position.epoch * self.plan.num_steps + self.position.step

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an optimiser step, counted over the whole run from 0."""
        total_steps = self.config.epochs * self.plan.num_steps
        warmup_steps = round(self.config.warmup_epochs * self.plan.num_steps)
        return self.config.peak_learning_rate * learning_rate_factor(
            step,
            total_steps,
            min(warmup_steps, total_steps - 1),
            start_factor=self.config.warmup_start_factor,
            final_factor=self.config.final_lr_factor,
        )

    def open_log(self) -> contextlib.AbstractContextManager[RunLog | None]:
        """Return the log, to be entered; None in all processes but the main one."""
        if not self.accelerator.is_main_process:
            return contextlib.nullcontext()
        batches = (self.config.epochs - self.position.epoch) * self.plan.num_batches
        batches -= self.position.step * self.plan.accumulate
        num_samples = batches * self.config.batch_size
        return RunLog(
            self.folder.path,
            self.position.epoch,
            self.steps,
            num_samples,
            self.wandb,
            self.identity,
        )

    def saving_memory(self) -> contextlib.AbstractContextManager[None]:
        """Return what optimiser steps are taken in."""
        if not self.config.recompute:
            return contextlib.nullcontext()
        return recomputing(self.state.plain)

    def begin(self, resume: bool, files: Mapping[str, str]) -> None:
        """Go back to the last checkpoint of a run that is resumed, or start.

        Args:
            resume: Whether the folder holds a run to continue.
            files: Text files for a run that starts, by name.

        Raises:
            ValueError: If the checkpoint is damaged, or the run has another identity.
        """
        if resume and self.folder.has_checkpoint:
            self._restore()
            return
        if resume:
            self.folder.check_unchanged_start(self.identity)
        if self.accelerator.is_main_process:
            self.folder.start(self.identity, self.accelerator.device, files)

    def _restore(self) -> None:
        """Go back to the last checkpoint."""
        tensors, meta = checkpoint.load(self.folder.last_path, checkpoint.TRAINING_STATE)
        self.folder.check_unchanged({key: meta[key] for key in self.identity}, self.identity)
        self.state.restore(tensors, meta, self.folder.last_path)

    def save(self) -> None:
        """Write the checkpoint to continue from."""
        self.state.save(self.folder.last_path, self.identity)

    def result(self) -> FitResult:
        """Return how the finished run ended."""
        position = self.position
        assert position.best_score is not None
        return FitResult(
            position.best_score,
            position.best_epoch,
            self.folder.best_path,
            position.epoch,
            self.steps,
        )


def set_up(
    model: nn.Module,
    num_samples: int,
    config: TrainingConfig,
    folder: RunFolder,
    description: Mapping[str, Any],
    wandb: str | None = None,
) -> Run:
    """Return a run that is neither started nor restored; the arguments are those of `fit`."""
    from accelerate.utils import set_seed

    check_wandb(wandb)
    if config.recompute:
        blocks_of(model)
    accelerator = start_accelerator(config.precision)
    config = replace(config, precision=accelerator.mixed_precision)
    plan = _plan(num_samples, config, accelerator.num_processes)
    identity = {
        "training": asdict(config),
        "description": description,
        "samples_per_epoch": num_samples,
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "frozen_parameters": [n for n, p in model.named_parameters() if not p.requires_grad],
    }
    identity = json.loads(json.dumps(identity))  # tuples as lists, as they come back
    set_seed(config.seed, device_specific=True)
    state = TrainingState(
        accelerator, model, config.peak_learning_rate, config.weight_decay, config.ema_decay
    )
    return Run(accelerator, config, plan, identity, folder, state, wandb)


def start_accelerator(precision: str) -> Accelerator:
    """Return an accelerator for this process's device in the given precision.

    Raises:
        ValueError: If the device lacks the precision.
        RuntimeError: If this process has another precision already; it can have only one.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    is_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = PartialState(cpu=is_cpu, timeout=LONGEST_VALIDATION).device
    is_gpu = device.type == "cuda"
    if precision == "auto":
        has_bf16 = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp16" if is_gpu else "no"
    elif precision == "fp16" and not is_gpu:
        raise ValueError(f"precision 'fp16' needs a CUDA GPU, found {device}; use 'auto'")
    if is_initialized() and (first := AcceleratorState().mixed_precision) != precision:
        raise RuntimeError(
            f"precision is {precision!r}, but this process trained with {first!r} before and keeps "
            f"to it; use {first!r} or start a new process"
        )
    # Buffers of the main process would replace the others': `TrainingState` averages them.
    buffers_apart = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[buffers_apart])


def _plan(num_samples: int, config: TrainingConfig, num_processes: int) -> EpochPlan:
    """Return the plan of an epoch.

    Raises:
        ValueError: If there are no samples or the batch cannot be shared among the processes.
    """
    if num_samples == 0:
        raise ValueError("the dataset has 0 samples, 1 or more are needed; check how it is chosen")
    if config.batch_size % num_processes:
        raise ValueError(
            f"batch_size {config.batch_size} is not divisible by {num_processes} processes; "
            f"nearest valid: {math.ceil(config.batch_size / num_processes) * num_processes}"
        )
    return EpochPlan(num_samples, config.batch_size, config.accumulate, config.seed)


def batches_of(run: Run, dataset: Samples) -> Iterator[Any]:
    """Return this process's batches from here to the end of the run."""
    position, accelerator = run.position, run.accelerator
    loader = torch.utils.data.DataLoader(
        cast("torch.utils.data.Dataset[Any]", dataset),
        batch_sampler=run.plan.stream(
            position.epoch,
            position.step,
            run.config.epochs,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        num_workers=run.config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that loading draws nothing from the network's
    )
    return iter(loader)
