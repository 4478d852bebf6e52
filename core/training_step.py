"""One optimiser step over accumulated batches, and what is said of one that is not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from core.training_config import LossFunction
from core.training_run import Run


def take_step(
    run: Run, batches: Iterator[Any], num_batches: int, loss_fn: LossFunction
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
    state.average_statistics()
    if not accelerator.optimizer_step_was_skipped:
        state.update_average(run.steps + 1)
    elif (scale := accelerator.scaler.get_scale()) < 1:
        what = f"gradient (its scale fell to {scale:g}, every overflow halves it)"
        raise _not_finite(run, what, losses)
    return losses


def _check_finite(run: Run, losses: Mapping[str, float], norm: Tensor) -> None:
    """Raise RuntimeError if the loss, a part or, without a gradient scaler, the gradient is not.

    A gradient scaler meets infinite gradients as a matter of course and skips those steps itself.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise _not_finite(run, "loss" if name == "loss" else f"loss part {name!r}", losses)
    if run.accelerator.scaler is None and not math.isfinite(norm.item()):
        raise _not_finite(run, "gradient", losses)


def _not_finite(run: Run, what: str, losses: Mapping[str, float]) -> RuntimeError:
    """Return the error that says where the run was and what can be done."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    last_path = run.folder.last_path
    return RuntimeError(
        f"the {what} is not finite at epoch {run.position.epoch + 1} step {run.position.step + 1} "
        f"of {run.plan.num_steps}, learning rate {run.learning_rate(run.steps):.3g}: {values}; "
        f"last good checkpoint: {last_path if last_path.exists() else 'none yet'}; check the data "
        "or start again with a lower learning_rate or precision 'no'"
    )
