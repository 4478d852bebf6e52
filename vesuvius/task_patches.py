"""Which patches belong to which task of a run: those of the ink, and those of the photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from core.mode import has_mixtures
from core.terminal import note
from core.unet3d import TaskConditioned
from vesuvius.dataset import PatchSource
from vesuvius.folds import Piece
from vesuvius.infrared import infrared_levels, sample_infrared
from vesuvius.inkmap import Window
from vesuvius.prepared import PreparedVolume
from vesuvius.sampling import SamplingConfig, points_csv, sample_fragments
from vesuvius.tasks import INFRARED, INK, UNKNOWN, TaskConfig, Tasks

Points = Mapping[str, Mapping[str, NDArray[np.int32]]]  # by target, INK or INFRARED, and fragment

FILES = {INK: "points.csv", INFRARED: "infrared_points.csv"}


def sample_targets(
    volumes: Mapping[str, PreparedVolume],
    pieces: Sequence[Piece],
    sampling: SamplingConfig,
    config: TaskConfig,
    seed: int,
) -> Points:
    """Return the points to train on, of the ink and where it is wanted of the photographs.

    Beside the photographs a fragment may lack its ink label, or the photograph.

    Raises:
        ValueError: If a fragment gives nothing to train on, or there is no ink or photograph.
    """
    if config.kind != "ink-infrared":
        return {INK: _said(INK, sample_fragments(volumes, pieces, sampling, seed))}
    for name in dict.fromkeys(piece.fragment for piece in pieces):
        _check_target(volumes[name])
    labelled = [piece for piece in pieces if volumes[piece.fragment].ink_label is not None]
    ink = sample_fragments(volumes, labelled, sampling, seed)
    wanted = round(config.infrared_per_ink * sum(map(len, ink.values())))
    infrared = sample_infrared(volumes, pieces, sampling.patch_size, wanted, seed)
    return {INK: _said(INK, ink), INFRARED: _said(INFRARED, infrared)}


def _check_target(volume: PreparedVolume) -> None:
    """Refuse a fragment that has neither target, and say it if it lacks one."""
    lacking = {"ink label": volume.ink_label, "infrared photograph": volume.ir_image}
    lacking = {what: found for what, found in lacking.items() if found is None}
    if len(lacking) == 2:
        raise ValueError(
            f"{volume.path} has neither ink label nor infrared photograph to learn; add "
            "inklabels.png or ir.png to the fragment and prepare it again, or leave it out"
        )
    for what in lacking:
        note(f"{volume.name}: no {what}, so it teaches only the other task")


def _said(target: str, points: dict[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    """Return points, having said how many there are."""
    what = "patches" if target == INK else f"{target} patches"
    note(f"{sum(map(len, points.values()))} {what} from {len(points)} fragments")
    return points


def tasks_of(config: TaskConfig, points: Points) -> Tasks:
    """Return the tasks that these patches teach."""
    return Tasks.of(config, (name for name, corners in points[INK].items() if len(corners)))


def check_network(network: TaskConditioned, tasks: Tasks) -> None:
    """Refuse several tasks for a network that would ignore them.

    Raises:
        ValueError: If it has no mixture of experts, which alone listen to the task.
    """
    if len(tasks.names) > 1 and not has_mixtures(network):
        raise ValueError(
            f"tasks.kind {tasks.config.kind!r} makes the tasks {', '.join(tasks.names)}, but this "
            "network has no mixture of experts and would ignore them; use tasks.kind one, or a "
            "repmode recipe"
        )


def task_sources(
    volumes: Mapping[str, PreparedVolume],
    points: Points,
    windows: Mapping[str, Window],
    tasks: Tasks,
) -> list[PatchSource]:
    """Return where the patches of all tasks come from; fragments without any are left out."""
    return [
        PatchSource(
            volumes[name],
            corners,
            task=tasks.index(_task_of(target, name, tasks)),
            levels=infrared_levels(volumes[name]) if target == INFRARED else None,
            **asdict(windows[name]),
        )
        for target, of_fragments in points.items()
        for name, corners in of_fragments.items()
        if len(corners)
    ]


def count_patches(points: Points, tasks: Tasks) -> dict[str, dict[str, int]]:
    """Return how many patches of each fragment belong to each task."""
    counts: dict[str, dict[str, int]] = {name: {} for name in tasks.names}
    for target, of_fragments in points.items():
        for name, corners in of_fragments.items():
            if len(corners):
                counts[_task_of(target, name, tasks)][name] = len(corners)
    return counts


def points_files(points: Points) -> dict[str, str]:
    """Return the points as CSV, by the name of the file in a run folder that they belong in."""
    return {FILES[target]: points_csv(of_fragments) for target, of_fragments in points.items()}


def note_unknown(pieces: Sequence[Piece], tasks: Tasks) -> None:
    """Say which fragments are validated by the mean gate, as no task was trained on their ink."""
    for name in dict.fromkeys(piece.fragment for piece in pieces if piece.role == "validation"):
        if tasks.of_fragment(name) == UNKNOWN:
            note(f"{name}: no task was trained on its ink, so the mean gate maps it")


def _task_of(target: str, fragment: str, tasks: Tasks) -> str:
    """Return the name of the task of a fragment's patches with a target."""
    return INFRARED if target == INFRARED else tasks.of_fragment(fragment)
