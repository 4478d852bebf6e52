"""Everything that changes during a training run, and its way to and from one checkpoint.

The checkpoint holds the tensors `model.NAME`, `optimizer.KEY.NAME` and `average.NAME` (NAME is the
name of the parameter or buffer) and, as JSON, the position in the run, the random generators of
each process and the gradient scaler. A run restored from it continues bit by bit where arithmetic
on the device is deterministic, as it is on a CPU.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from core import checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Position:
    """How far a run is.

    Args:
        epoch: Finished epochs.
        step: Finished optimiser steps of the epoch after those.
        totals: Sums over the batches of that epoch of the loss and its parts.
        seconds: Time spent on those batches.
        best_score: Highest validation score so far.
        best_epoch: The epoch it belongs to, counted from 1; 0 if there is none yet.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0

    def start_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; the best score stays."""
        self.epoch, self.step, self.totals, self.seconds = epoch, 0, {}, 0.0


class TrainingState:
    """Network, optimiser, average weights and position of a run, on the device of `accelerator`.

    Args:
        accelerator: Device, processes and precision.
        model: The network; it is moved to the device.
        learning_rate: Of AdamW, until the schedule sets another.
        weight_decay: Of AdamW.
        ema_decay: Decay of the average of the weights; 0 keeps none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        self.accelerator = accelerator
        self.ema_decay = ema_decay
        self.position = Position()
        average = copy.deepcopy(model).requires_grad_(False) if ema_decay else None
        self.model = accelerator.prepare_model(model)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        trained = {name: p for name, p in self.plain.named_parameters() if p.requires_grad}
        self.trained_names = list(trained)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=weight_decay)
        )
        self.average: nn.Module | None = None
        if average is not None:
            self.average = accelerator.prepare_model(average, evaluation_mode=True)

    @property
    def evaluated(self) -> nn.Module:
        """Return the network that is validated and kept: the average if there is one."""
        return self.plain if self.average is None else self.average

    def average_statistics(self) -> None:
        """Average the running statistics over the processes, each of which saw its own share.

        So every process holds the same network after a step, and that is what is saved.
        """
        statistics = [buffer for buffer in self.plain.buffers() if buffer.is_floating_point()]
        if self.accelerator.num_processes == 1 or not statistics:
            return
        flat = torch.cat([buffer.flatten() for buffer in statistics])
        means = self.accelerator.reduce(flat, reduction="mean")
        sizes = [buffer.numel() for buffer in statistics]
        for buffer, mean in zip(statistics, means.split(sizes), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def update_average(self, step: int) -> None:
        """Move the average towards the weights after optimiser step `step` of the run (from 1).

        The decay grows as (1 + step) / (10 + step) up to `ema_decay`, so that the random weights
        of the start are soon forgotten. Counters of buffers are copied.
        """
        if self.average is None:
            return
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        current = self.plain.state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(current[name], 1 - decay)
            else:
                kept.copy_(current[name])

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the state to `path`, with `facts` beside it; called by all processes together."""
        from accelerate.utils import gather_object

        device, scaler = self.accelerator.device, self.accelerator.scaler
        meta = {
            **facts,
            "position": asdict(self.position),
            "random_states": gather_object([capture_random_state(device)]),
            "scaler": scaler.state_dict() if scaler else None,
        }
        if self.accelerator.is_main_process:
            checkpoint.save(path, checkpoint.TRAINING_STATE, self._tensors(), meta)
        self.accelerator.wait_for_everyone()

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Go back to a saved state.

        Args:
            tensors: As `core.checkpoint.load` gives them.
            meta: Likewise.
            path: Where they come from, for the error.

        Raises:
            ValueError: If the network is another one.
        """
        checkpoint.load_weights(self.plain, _named(tensors, "model."), path)
        if self.average is not None:
            checkpoint.load_weights(self.average, _named(tensors, "average."), path)
        moments: dict[int, dict[str, Tensor]] = {}
        for key_and_name, tensor in _named(tensors, "optimizer.").items():
            key, _, name = key_and_name.partition(".")
            moments.setdefault(self.trained_names.index(name), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        self.position = Position(**meta["position"])
        own = meta["random_states"][self.accelerator.process_index]
        restore_random_state(own, self.accelerator.device)

    def release(self) -> None:
        """Take what the precision wrapped around the network off again."""
        self.accelerator.unwrap_model(self.plain, keep_fp32_wrapper=False)
        self.plain.__dict__.pop("_is_accelerate_prepared", None)  # or fit would not wrap it again

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by their names in the checkpoint."""
        tensors = {f"model.{name}": tensor for name, tensor in self.plain.state_dict().items()}
        if self.average is not None:
            kept = self.average.state_dict()
            tensors |= {f"average.{name}": tensor for name, tensor in kept.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            name = self.trained_names[index]
            tensors |= {f"optimizer.{key}.{name}": moment for key, moment in moments.items()}
        return tensors


def capture_random_state(device: torch.device) -> dict[str, Any]:
    """Return the generators of Python, numpy, torch and, on a GPU, of `device`, as JSON."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 (libraries draw from this one)
    assert isinstance(legacy, dict)
    words = {"key": legacy["state"]["key"].tolist(), "pos": legacy["state"]["pos"]}
    state = {
        "python": random.getstate(),
        "numpy": {**legacy, "state": words},
        "torch": _to_hex(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _to_hex(torch.cuda.get_rng_state(device))
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to what `capture_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(_from_hex(state["torch"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(_from_hex(state["cuda"]), device)


def _to_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
