"""A trained model, read from a run of `ssp train` or from an official checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoint import WEIGHTS, load, load_weights
from core.config import from_dict
from core.extend import rebuild
from core.official import load_official_checkpoint
from core.provenance import file_hash
from core.unet3d import TaskConditioned
from ssp.networks.backbone import Target
from ssp.networks.registry import MODELS, build_network
from ssp.recipes import PATCH_SIZE, CellRecipe

OFFICIAL_VOXEL_SIZE_UM = (0.29, 0.29, 0.29)
OFFICIAL_MULTIPLE = 16  # an official network halves its input four times


@dataclass(frozen=True)
class TaskFacts:
    """What is known of the training targets of a task.

    Attributes:
        mean: Mean over the training images of the mean of their original intensities.
        std: Likewise of the standard deviation.
        num_images: How many there were.
    """

    mean: float
    std: float
    num_images: int


@dataclass(frozen=True, eq=False)
class CellModel:
    """A trained model.

    Attributes:
        network: The network of all tasks, weights loaded, on the CPU.
        tasks: Names of the tasks, in the order of their indices.
        path: The checkpoint.
        sha256: Hash of that file.
        tile: (Z, Y, X) of the patches it was trained on and the tiles it predicts.
        multiple: Of what its inputs are padded to.
        voxel_size_um: (Z, Y, X) of the images it was trained on; None if they did not say it.
        target: What it predicts.
        num_layers: Z of its inputs, where one map is predicted for a whole stack.
        facts: What is known of each task's targets; {} for official checkpoints.
        recipe: What it was trained with; None for official checkpoints.
        num_extensions: How many of its tasks were added by `ssp extend`.
    """

    network: TaskConditioned
    tasks: tuple[str, ...]
    path: Path
    sha256: str
    tile: tuple[int, int, int] = PATCH_SIZE
    multiple: int = OFFICIAL_MULTIPLE
    voxel_size_um: tuple[float, float, float] | None = OFFICIAL_VOXEL_SIZE_UM
    target: Target = "stack"
    num_layers: int | None = None
    facts: dict[str, TaskFacts] = field(default_factory=dict)
    recipe: CellRecipe | None = None
    num_extensions: int = 0

    def choose(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the wanted tasks, each once; all if none is wanted.

        Raises:
            ValueError: If one is unknown.
        """
        wanted = tuple(dict.fromkeys(wanted))
        unknown = [name for name in wanted if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"unknown task {', '.join(unknown)}; {self.path} knows {', '.join(self.tasks)}"
            )
        return wanted or self.tasks


def load_model(path: Path) -> CellModel:
    """Return the model of a run folder, of a checkpoint of one, or of an official checkpoint.

    Raises:
        FileNotFoundError: If there is none, or the run has no finished epoch yet.
        ValueError: If the checkpoint is damaged, or of another model or version.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no run or checkpoint at {path.absolute()}; give the --out of `ssp train`, or an "
            "official checkpoint"
        )
    if path.is_dir():
        return _load_run(_best(path))
    if path.suffix == ".safetensors":
        return _load_run(path)
    network, tasks = load_official_checkpoint(path)
    return CellModel(network, tuple(tasks), path, file_hash(path))


def _best(run: Path) -> Path:
    """Return the best checkpoint of a run folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = run / "checkpoints" / "best.safetensors"
    if path.exists():
        return path
    if (run / "config.json").exists():
        raise FileNotFoundError(
            f"{run} has no finished epoch yet; wait, or continue it with `ssp train ... --resume`"
        )
    raise FileNotFoundError(
        f"{run} is no run folder: it has no checkpoints/best.safetensors; give the --out of "
        "`ssp train`, or an official checkpoint"
    )


def _load_run(path: Path) -> CellModel:
    """Return the model of a checkpoint of `ssp train` or `ssp extend`."""
    tensors, meta = load(path, WEIGHTS)
    description: dict[str, Any] = meta["description"]
    if description.get("model") not in MODELS:
        raise ValueError(
            f"{path} holds a model of {description.get('model')!r}; `ssp` reads "
            f"{', '.join(MODELS)}: give a run of `ssp train`"
        )
    recipe = from_dict(CellRecipe, description["recipe"], where=str(path))
    tasks, num_extensions = tuple(description["tasks"]), description["num_extensions"]
    num_layers, backbone = description["num_layers"], recipe.network.backbone
    network = build_network(recipe.network, len(tasks) - num_extensions, num_layers)
    network = rebuild(network, num_extensions)
    load_weights(network, tensors, path)
    size_um = description["voxel_size_um"]
    return CellModel(
        network=network.eval(),
        tasks=tasks,
        path=path,
        sha256=file_hash(path),
        tile=recipe.patches.size,
        multiple=2**backbone.num_stages,
        voxel_size_um=None if size_um is None else tuple(size_um),
        target=backbone.target,
        num_layers=num_layers,
        facts={task: TaskFacts(**facts) for task, facts in description["targets"].items()},
        recipe=recipe,
        num_extensions=num_extensions,
    )
