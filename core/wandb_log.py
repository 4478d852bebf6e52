"""Weights & Biases beside TensorBoard: the same values under the same names, if asked for."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.files import write_json


class WandbWriter:
    """Takes what a TensorBoard writer takes.

    Args:
        run: Of `wandb.init`.
    """

    def __init__(self, run: Any) -> None:
        self.run = run

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Log a number at an optimiser step."""
        self.run.log({name: value}, step=step)

    def add_image(
        self, name: str, image: NDArray[np.uint8], step: int, dataformats: str = "HW"
    ) -> None:
        """Log a picture, (Y, X) grey or (Y, X, 3) RGB, at an optimiser step."""
        import wandb

        self.run.log({name: wandb.Image(image)}, step=step)


@contextlib.contextmanager
def open_wandb(project: str, path: Path, config: Mapping[str, Any]) -> Iterator[WandbWriter]:
    """Log to the W&B run that belongs to a run folder, a new one the first time.

    Its id stands in `wandb.json`, so that a resumed run is one run there too. What is logged anew
    after the checkpoint is what was logged before, and W&B ignores it.

    Args:
        project: Project of the user's account.
        path: Run folder.
        config: What the run is.
    """
    check_wandb(project)
    import wandb

    id_path = path / "wandb.json"
    if not id_path.exists():
        write_json(id_path, {"id": uuid.uuid4().hex})
    run_id = json.loads(id_path.read_text(encoding="utf-8"))["id"]
    with wandb.init(
        project=project,
        id=run_id,
        resume="allow",
        name=path.name,
        dir=str(path),
        config=dict(config),
    ) as run:
        yield WandbWriter(run)


def check_wandb(project: str | None) -> None:
    """Refuse to log to a project that has no name, or without the package.

    Raises:
        ValueError: If so.
    """
    if project is None:
        return
    if not project.strip():
        raise ValueError("wandb is given no project; name one, or leave wandb out")
    try:
        from wandb import init  # noqa: F401 (a folder of W&B's logs can be imported too)
    except ImportError as error:
        raise ValueError(
            f"wandb project {project!r} needs the package wandb, which cannot be imported "
            f"({error}); `pip install wandb`, or leave wandb out"
        ) from error
