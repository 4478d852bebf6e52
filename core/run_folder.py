"""The folder of a training run: configuration, checkpoints, metrics, logs and previews."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import flat
from core.files import atomic_path, read_json, write_json
from core.lock import locked, names_in
from core.provenance import collect
from core.terminal import is_first_process, note, progress
from core.wandb_log import open_wandb


class RunFolder:
    """Names the files of a run and guards them against another run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last_path = self.path / "checkpoints" / "last.safetensors"
        self.best_path = self.path / "checkpoints" / "best.safetensors"
        self.config_path = self.path / "config.json"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to continue from."""
        return self.last_path.exists()

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Return what keeps other runs out of the folder; the first process does it for all."""
        return locked(self.path) if is_first_process() else contextlib.nullcontext()

    def check_new(self) -> None:
        """Raise ValueError if the folder already holds a run, or anything else."""
        if self.has_checkpoint:
            raise ValueError(
                f"{self.path} already holds a run (checkpoints/{self.last_path.name}); continue it "
                "with --resume or choose another --out"
            )
        if names_in(self.path) and not self.config_path.exists():
            raise ValueError(f"{self.path} holds other files and no run; choose another --out")

    def check_resumable(self) -> None:
        """Raise FileNotFoundError if the folder holds no run.

        One that was stopped before its first checkpoint is one, and begins again.
        """
        if not self.has_checkpoint and not self.config_path.exists():
            raise FileNotFoundError(
                f"{self.last_path}: no checkpoint to resume from; check --out or leave out --resume"
            )

    def check_unchanged(self, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Raise ValueError with the first settings that differ from the checkpoint's."""
        old, new = flat(saved), flat(given)
        changes = [
            f"{key} was {old.get(key, 'not set')!r}, now {new.get(key, 'not set')!r}"
            for key in dict.fromkeys([*old, *new])
            if key not in old or key not in new or old[key] != new[key]
        ]
        if not changes:
            return
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ValueError(
            f"{self.path} cannot be resumed with another configuration: {'; '.join(changes[:3])}"
            f"{more}; use that of {self.config_path} (training.epochs included, for the learning "
            "rate follows it) or choose another --out"
        )

    def check_unchanged_start(self, given: Mapping[str, Any]) -> None:
        """Raise ValueError if a run without a checkpoint was begun with other settings."""
        self.check_unchanged(read_json(self.config_path), given)
        note(f"{self.path} was stopped before its first checkpoint; it begins again")

    def start(
        self, config: Mapping[str, Any], device: torch.device, files: Mapping[str, str]
    ) -> None:
        """Write the configuration of a new run, where it began, and further text files by name."""
        write_json(self.config_path, config)
        write_json(self.path / "provenance.json", collect(device))
        for name, text in files.items():
            with atomic_path(self.path / name) as partial:
                partial.write_text(text, encoding="utf-8")


class RunLog:
    """Progress bar, metrics.jsonl, previews, TensorBoard and, if wanted, W&B of a run.

    What an interrupted run logged after the checkpoint is removed, for it will be logged again.

    Args:
        path: Folder of the run.
        epoch: Finished epochs of the checkpoint.
        step: Its finished optimiser steps.
        num_samples: Samples from there to the end of the run.
        wandb: Project of Weights & Biases to log to as well; None for none.
        config: What W&B shows of the configuration.
    """

    def __init__(
        self,
        path: Path,
        epoch: int,
        step: int,
        num_samples: int,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.epoch = epoch
        self.step = step
        self.num_samples = num_samples
        self.wandb = wandb
        self.config = config or {}

    def __enter__(self) -> RunLog:
        from torch.utils.tensorboard import SummaryWriter

        self._cut_metrics()
        with contextlib.ExitStack() as stack:
            board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self.step + 1)
            self.writers: list[Any] = [stack.enter_context(board)]
            if self.wandb is not None:
                remote = open_wandb(self.wandb, self.path, self.config)
                self.writers.append(stack.enter_context(remote))
            self.advance = stack.enter_context(progress("training", self.num_samples, "samples"))
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def add_step(self, values: Mapping[str, float], step: int, num_samples: int) -> None:
        """Log an optimiser step, counted over the run from 1, that took `num_samples`."""
        self._add_scalars("step", values, step)
        self.advance(num_samples)

    def add_epoch(self, row: Mapping[str, Any], previews: Mapping[str, NDArray[np.uint8]]) -> None:
        """Log a finished epoch.

        Args:
            row: Its line of metrics.jsonl: epoch (from 1), step, score, train and validation
                (both numbers by name) and more; what is not finite becomes null.
            previews: Pictures by name, uint8, (Y, X) grey or (Y, X, 3) RGB.
        """
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        self._add_scalars("train", row["train"], row["step"])
        self._add_scalars("validation", {"score": row["score"], **row["validation"]}, row["step"])
        for name, image in previews.items():
            self._add_preview(name, image, row["epoch"], row["step"])
        note(f"epoch {row['epoch']}: loss {row['train']['loss']:.4g}, score {row['score']:.4g}")

    def _add_scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for writer in self.writers:
            for name, value in values.items():
                writer.add_scalar(f"{group}/{name}", value, step)

    def _add_preview(self, name: str, image: NDArray[np.uint8], epoch: int, step: int) -> None:
        from PIL import Image

        with atomic_path(self.path / "previews" / f"epoch_{epoch:03d}_{name}.png") as partial:
            Image.fromarray(image).save(partial)
        axes = "HW" if image.ndim == 2 else "HWC"
        for writer in self.writers:
            writer.add_image(f"previews/{name}", image, step, dataformats=axes)

    def _cut_metrics(self) -> None:
        """Keep the rows of finished epochs, one each."""
        if not self.metrics_path.exists():
            return
        with (
            open(self.metrics_path, encoding="utf-8") as file,
            atomic_path(self.metrics_path) as partial,
        ):
            rows = itertools.islice(file, self.epoch)
            partial.write_text("".join(rows), encoding="utf-8")


def finite(value: Any) -> Any:
    """Return a JSON-able value with every NaN and infinity replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
