"""The one training loop of both tasks.

AdamW under a gradual warm-up and a cosine, gradient clipping and accumulation, mixed precision,
average weights, and a run that can be stopped after any step and continued exactly. `accelerate`
brings devices, precision and processes; what a sample, a loss or a score is, the caller says.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from core import checkpoint
from core.run_folder import RunFolder, RunLog, finite
from core.schedule import EpochPlan, learning_rate_factor
from core.training_config import (
    FitResult,
    LossFunction,
    Samples,
    TrainingConfig,
    Validate,
    Validation,
)
from core.training_state import Position, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit(
    model: nn.Module,
    dataset: Samples,
    loss_fn: LossFunction,
    validate: Validate,
    config: TrainingConfig,
    run_path: str | Path,
    description: Mapping[str, Any],
    resume: bool = False,
    files: Mapping[str, str] | None = None,
) -> FitResult:
    """Train `model` and keep its best weights.

    Args:
        model: The network; it ends on the training device with the weights of the last step.
        dataset: The samples; what it returns is collated into batches on the device.
        loss_fn: Takes the network and a batch and returns the loss, a scalar averaged over the
            batch, and parts of it to be logged.
        validate: Takes the network in evaluation mode (with the average weights if there are
            any), without gradients, after each epoch.
        config: Settings of the loop.
        run_path: Folder for config.json, metrics.jsonl, checkpoints, previews and TensorBoard.
        description: What the run is (recipe, tasks), JSON-able; kept in every checkpoint.
        resume: Continue the run in `run_path` from its last checkpoint.
        files: Further text files for the folder of a new run, by name.

    Returns:
        How the run ended.

    Raises:
        ValueError: If settings do not fit each other, the folder holds a run and `resume` is
            False, or the configuration changed since the run to be resumed was started.
        FileNotFoundError: If there is no checkpoint to resume from.
        RuntimeError: If the loss, a part of it, a gradient or the score is not finite, or this
            process trained in another precision before.
    """
    folder = RunFolder(run_path)
    folder.check_resumable() if resume else folder.check_new()
    run = _set_up(model, len(dataset), config, folder, description)
    try:
        run.restore() if resume else run.start(files or {})
        batches = _batches(run, dataset)
        with run.open_log() as log:
            while run.position.epoch < config.epochs:
                _train_epoch(run, batches, loss_fn, log)
                _finish_epoch(run, validate, log)
    finally:
        run.state.release()
    return run.result()


def _set_up(
    model: nn.Module,
    num_samples: int,
    config: TrainingConfig,
    folder: RunFolder,
    description: Mapping[str, Any],
) -> _Run:
    """Return a run that is neither started nor restored; the arguments are those of `fit`."""
    from accelerate.utils import set_seed

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
    return _Run(accelerator, config, plan, identity, folder, state)


def start_accelerator(precision: str) -> Accelerator:
    """Return an accelerator for this process's device in the given precision.

    Raises:
        ValueError: If the device lacks the precision.
        RuntimeError: If this process has another precision already; it can have only one.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import parse_flag_from_env

    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
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
    return Accelerator(mixed_precision=precision)


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


@dataclass(frozen=True)
class _Run:
    """A run in progress: what stays fixed, and the state that changes."""

    accelerator: Accelerator
    config: TrainingConfig
    plan: EpochPlan
    identity: dict[str, Any]
    folder: RunFolder
    state: TrainingState

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
        return RunLog(self.folder.path, self.position.epoch, self.steps, num_samples)

    def start(self, files: Mapping[str, str]) -> None:
        """Write the configuration of the new run."""
        if self.accelerator.is_main_process:
            self.folder.start(self.identity, self.accelerator.device, files)

    def restore(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            ValueError: If it is damaged or of a run with another identity.
        """
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


def _batches(run: _Run, dataset: Samples) -> Iterator[Any]:
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


def _train_epoch(
    run: _Run, batches: Iterator[Any], loss_fn: LossFunction, log: RunLog | None
) -> None:
    """Take the optimiser steps that are left of the current epoch."""
    position = run.position
    run.state.model.train()
    while position.step < run.plan.num_steps:
        started_s = time.perf_counter()
        num_batches = run.plan.batches_in_step(position.step)
        losses = _optimise(run, batches, num_batches, loss_fn)
        for name, mean in losses.items():
            position.totals[name] = position.totals.get(name, 0.0) + mean * num_batches
        position.seconds += time.perf_counter() - started_s
        position.step += 1
        if log:
            values = {**losses, "learning_rate": run.learning_rate(run.steps - 1)}
            log.add_step(values, run.steps, num_batches * run.config.batch_size)
        every = run.config.checkpoint_every_steps
        if every and run.steps % every == 0:
            run.save()


def _optimise(
    run: _Run, batches: Iterator[Any], num_batches: int, loss_fn: LossFunction
) -> dict[str, float]:
    """Take one optimiser step.

    Returns:
        The loss and its parts, averaged over the batches of the step and over processes.

    Raises:
        RuntimeError: If the loss, a part of it or the gradient is not finite; the weights are as
            before.
    """
    from accelerate.utils import send_to_device

    accelerator, state = run.accelerator, run.state
    for group in state.optimizer.param_groups:
        group["lr"] = run.learning_rate(run.steps)
    state.optimizer.zero_grad()
    sums: dict[str, Tensor] = {}
    for batches_left in reversed(range(num_batches)):
        batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
        is_last = batches_left == 0
        with contextlib.nullcontext() if is_last else accelerator.no_sync(state.model):
            loss, parts = loss_fn(state.model, batch)
            accelerator.backward(loss / num_batches)
        for name, value in {"loss": loss, **parts}.items():
            detached = torch.as_tensor(value, dtype=torch.float32, device=loss.device).detach()
            sums[name] = sums.get(name, 0) + detached
    limit = run.config.clip_norm or math.inf
    norm = accelerator.clip_grad_norm_(state.plain.parameters(), limit)
    means = accelerator.reduce(torch.stack(list(sums.values())) / num_batches, reduction="mean")
    losses = dict(zip(sums, means.tolist(), strict=True))
    _check_finite(run, losses, norm)
    state.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        state.update_average(run.steps + 1)
    elif (scale := accelerator.scaler.get_scale()) < 1:
        what = f"gradient (its scale fell to {scale:g}, every overflow halves it)"
        raise _not_finite(run, what, losses)
    return losses


def _check_finite(run: _Run, losses: Mapping[str, float], norm: Tensor) -> None:
    """Raise RuntimeError if the loss, a part or, without a gradient scaler, the gradient is not.

    A gradient scaler meets infinite gradients as a matter of course and skips those steps itself.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise _not_finite(run, "loss" if name == "loss" else f"loss part {name!r}", losses)
    if run.accelerator.scaler is None and not math.isfinite(norm.item()):
        raise _not_finite(run, "gradient", losses)


def _not_finite(run: _Run, what: str, losses: Mapping[str, float]) -> RuntimeError:
    """Return the error that says where the run was and what can be done."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    last_path = run.folder.last_path
    return RuntimeError(
        f"the {what} is not finite at epoch {run.position.epoch + 1} step {run.position.step + 1} "
        f"of {run.plan.num_steps}, learning rate {run.learning_rate(run.steps):.3g}: {values}; "
        f"last good checkpoint: {last_path if last_path.exists() else 'none yet'}; check the data "
        "or start again with a lower learning_rate or precision 'no'"
    )


def _finish_epoch(run: _Run, validate: Validate, log: RunLog | None) -> None:
    """Validate, keep the weights if they are the best so far, log, and save the state."""
    position, network = run.position, run.state.evaluated
    network.eval()
    with torch.no_grad():
        validation = _checked(validate(network), position.epoch + 1)
    if position.best_score is None or validation.score > position.best_score:
        position.best_score, position.best_epoch = validation.score, position.epoch + 1
        if log:
            _save_best(run, network, validation)
    if log:
        log.add_epoch(_row(run, validation), validation.previews)
    position.start_epoch(position.epoch + 1)
    run.save()


def _checked(validation: Validation, epoch: int) -> Validation:
    """Return the validation with plain floats.

    Raises:
        RuntimeError: If the score is not finite.
    """
    score = float(validation.score)
    metrics = {name: float(value) for name, value in validation.metrics.items()}
    if not math.isfinite(score):
        raise RuntimeError(
            f"the validation score of epoch {epoch} is {score}, it must be finite to choose the "
            f"best epoch; metrics: {metrics}; check the validation data"
        )
    return replace(validation, score=score, metrics=metrics)


def _save_best(run: _Run, network: nn.Module, validation: Validation) -> None:
    """Write the checkpoint for inference."""
    found = {
        "epoch": run.position.epoch + 1,
        "step": run.steps,
        "score": validation.score,
        "metrics": validation.metrics,
        "meta": validation.meta,
    }
    meta = {**run.identity, "validation": finite(found)}
    checkpoint.save(run.folder.best_path, checkpoint.WEIGHTS, network.state_dict(), meta)


def _row(run: _Run, validation: Validation) -> dict[str, Any]:
    """Return the epoch's line of metrics.jsonl."""
    position, num_batches = run.position, run.plan.num_batches
    return {
        "epoch": position.epoch + 1,
        "step": run.steps,
        "lr": run.learning_rate(run.steps - 1),
        "train": {name: total / num_batches for name, total in position.totals.items()},
        "score": validation.score,
        "validation": validation.metrics,
        "seconds": position.seconds,
        "samples_per_s": num_batches * run.config.batch_size / position.seconds,
    }
