"""The one training loop of both tasks.

AdamW under a gradual warm-up and a cosine, gradient clipping and accumulation, mixed precision,
average weights, and a run that can be stopped after any step and continued exactly. `accelerate`
brings devices, precision and processes; what a sample, a loss or a score is, the caller says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import checkpoint
from core.run_folder import RunFolder, RunLog, finite
from core.training_config import (
    FitResult,
    LossFunction,
    Samples,
    TrainingConfig,
    Validate,
    Validation,
)
from core.training_run import Run, batches_of, set_up
from core.training_step import take_step


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
    wandb: str | None = None,
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
        resume: Continue the run in `run_path` from its last checkpoint, or from its beginning if it
            was stopped before the first.
        files: Further text files for the folder of a new run, by name.
        wandb: Project of Weights & Biases to log to beside TensorBoard; None for none. It is no
            part of the configuration that a resumed run must repeat.

    Returns:
        How the run ended.

    Raises:
        ValueError: If settings do not fit each other, the package wandb is wanted and missing, the
            folder holds a run and `resume` is False, another process trains in it, or the
            configuration changed since the run to be resumed was started.
        FileNotFoundError: If there is no run to resume.
        RuntimeError: If the loss, a part of it, a gradient or the score is not finite, or this
            process trained in another precision before.
    """
    folder = RunFolder(run_path)
    with folder.hold():
        folder.check_resumable() if resume else folder.check_new()
        run = set_up(model, len(dataset), config, folder, description, wandb)
        try:
            run.begin(resume, files or {})
            batches = batches_of(run, dataset)
            with run.open_log() as log:
                while run.position.epoch < config.epochs:
                    with run.saving_memory():
                        _train_epoch(run, batches, loss_fn, log)
                    _finish_epoch(run, validate, log)
        finally:
            run.state.release()
    return run.result()


def _train_epoch(
    run: Run, batches: Iterator[Any], loss_fn: LossFunction, log: RunLog | None
) -> None:
    """Take the optimiser steps that are left of the current epoch."""
    position = run.position
    run.state.model.train()
    while position.step < run.plan.num_steps:
        started_s = time.perf_counter()
        num_batches = run.plan.batches_in_step(position.step)
        losses = take_step(run, batches, num_batches, loss_fn)
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


def _finish_epoch(run: Run, validate: Validate, log: RunLog | None) -> None:
    """Validate and log in the main process, while the others wait, and save the state."""
    from accelerate.utils import broadcast_object_list

    position = run.position
    if log:
        _validate(run, validate, log)
    best = broadcast_object_list([position.best_score, position.best_epoch])
    position.best_score, position.best_epoch = best
    position.start_epoch(position.epoch + 1)
    run.save()


def _validate(run: Run, validate: Validate, log: RunLog) -> None:
    """Validate, keep the weights if they are the best so far, and log."""
    position, network = run.position, run.state.evaluated
    network.eval()
    with torch.no_grad():
        validation = _checked(validate(network), position.epoch + 1)
    if position.best_score is None or validation.score > position.best_score:
        position.best_score, position.best_epoch = validation.score, position.epoch + 1
        _save_best(run, network, validation)
    log.add_epoch(_row(run, validation), validation.previews)


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


def _save_best(run: Run, network: nn.Module, validation: Validation) -> None:
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


def _row(run: Run, validation: Validation) -> dict[str, Any]:
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
