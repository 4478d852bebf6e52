"""The control for invented ink: the same training on labels that lie where no ink is.

A model that finds ink which is not there, or a validation that leaks, scores well on such labels.
The voxels are linked, not copied; only the labels, and infrared photographs with them, are shifted,
so a volume of the control is told from its original by its place alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.config import from_dict
from core.files import atomic_dir, read_json, save_array, write_json
from core.lock import holds
from core.metrics import ProbabilityHistogram
from core.provenance import collect
from core.terminal import note
from vesuvius.evaluate import averages, check_replaceable, score
from vesuvius.evaluation_report import text_table, write_evaluation
from vesuvius.held_out import scored_held_out
from vesuvius.networks.pretrained import open_pretrained
from vesuvius.prepared import INK_LABEL, IR_IMAGE, SUFFIX, PreparedVolume
from vesuvius.recipes import InkRecipe
from vesuvius.scored import ScoredMap, run_description
from vesuvius.survey import draw_offsets
from vesuvius.train import open_volumes, train

NUM_SHIFTS = 39  # by luck alone 1 label in 20 scores outside the range of so many
RECORD = "control.json"
PREPARED = "prepared"


@holds("out")
def control(
    run: Path, /, data: Path, out: Path, seed: int = 0, pretrained: Path | None = None
) -> None:
    """Train a run's recipe again on labels shifted far away, and score both: is ink invented?

    The control must score at chance: on its own shifted labels, for there is nothing to learn, and
    on the true ones. Chance is what the same map scores on copies of the true label that are
    shifted at random. Writes `prepared` (links to the volumes, shifted labels), `run`, and in
    `report` the same page and table as `vesuvius evaluate`. The same command again continues.

    Args:
        run: A finished run of `vesuvius train`.
        data: Folder of the prepared volumes that it was trained on.
        out: Folder to write.
        seed: Decides the shifts.
        pretrained: What the run was given as --pretrained, if anything.

    Raises:
        FileNotFoundError: If the run or a volume does not exist.
        ValueError: If a volume has no label, `out` holds other files, or the run started from
            other weights.
    """
    report = out / "report"
    check_replaceable(report)
    description = run_description(run)
    _check_start(run, description.get("pretrained_sha256"), pretrained)
    recipe = from_dict(InkRecipe, description["recipe"], where=str(run))
    shifted_data = shift_labels(open_volumes(data), out / PREPARED, seed)
    control_run = out / "run"
    is_started = (control_run / "checkpoints" / "last.safetensors").exists()
    train(shifted_data, control_run, recipe, resume=is_started, pretrained=pretrained)
    maps = [
        *_titled(scored_held_out(run, data, report / "maps"), "the run"),
        *_titled(
            scored_held_out(control_run, shifted_data, report / "maps"),
            "control, on its own shifted labels",
        ),
        *(
            true := _titled(
                scored_held_out(control_run, data, report / "maps"), "control, on the true labels"
            )
        ),
    ]
    evaluated = score(maps)
    verdicts = [judge(scored, seed) for scored in true]
    record: dict[str, Any] = {
        "provenance": collect(),
        "maps": [one.describe() for one in evaluated],
        "averages": averages(evaluated),
        "control": [str(verdict) for verdict in verdicts],
    }
    write_evaluation(report, evaluated, record)
    write_json(report / "evaluation.json", record)
    print(text_table(record))
    for verdict in verdicts:
        note(str(verdict))
    note(f"{report / 'report.html'} shows curves and pictures")


def _check_start(run: Path, sha256: str | None, pretrained: Path | None) -> None:
    """Refuse a control that would start from other weights than its run."""
    given = None if pretrained is None else open_pretrained(pretrained).sha256
    if given != sha256:
        started = "random weights" if sha256 is None else "a pretrained encoder"
        remedy = "leave --pretrained out" if sha256 is None else "give the same with --pretrained"
        raise ValueError(f"{run} started from {started} and its control would not; {remedy}")


@dataclass(frozen=True)
class Verdict:
    """Whether a map of the control says anything about where the ink is.

    Attributes:
        title: The piece.
        roc_auc: That of the map on the true label.
        least: The least of the same map on shifted copies of the label.
        greatest: The greatest of them.
    """

    title: str
    roc_auc: float
    least: float
    greatest: float

    @property
    def is_chance(self) -> bool:
        """Whether the true label is to the map as the shifted ones are."""
        return self.least <= self.roc_auc <= self.greatest

    def __str__(self) -> str:
        if self.is_chance:
            said = "at chance"
        elif self.roc_auc > self.greatest:
            said = "NOT at chance; look for a leak between training and held-out pieces"
        else:
            said = "below chance; the shifted labels avoid the ink, try another --seed"
        return (
            f"{self.title}: ROC AUC of the control {self.roc_auc:.3f}, on shifted labels "
            f"{self.least:.3f} to {self.greatest:.3f}: {said}"
        )


def judge(scored: ScoredMap, seed: int) -> Verdict:
    """Return whether a map is at chance, by its ROC AUC on copies of the label shifted around.

    Raises:
        ValueError: If the piece has no ink, or nothing but ink.
    """
    label = scored.label & scored.valid
    band = scored.band(0, len(label))

    def roc_auc(of: np.ndarray) -> float:
        histogram = ProbabilityHistogram()
        histogram.add(band.prob, of, band.valid)
        return histogram.roc_auc()

    offsets = draw_offsets(label.shape, NUM_SHIFTS, seed)
    shifted = [roc_auc(np.roll(label, tuple(offset), axis=(0, 1))) for offset in offsets.tolist()]
    return Verdict(scored.title, roc_auc(label), min(shifted), max(shifted))


def shift_labels(volumes: dict[str, PreparedVolume], out: Path, seed: int) -> Path:
    """Write prepared volumes with the same voxels under labels shifted far away; return `out`.

    A label goes down by a quarter to three quarters of the height, and any way to the right, around
    the edges, to where it meets ink as often as papyrus. What is there from the same volumes and
    seed is left as it is.

    Args:
        volumes: By name.
        out: Folder to write `<name>.vol` into.
        seed: Decides the shifts.

    Raises:
        ValueError: If a volume has no label, or another control is there.
    """
    identity = {
        "seed": seed,
        "data": {name: volume.info["fingerprint"] for name, volume in volumes.items()},
    }
    if out.exists():
        if not (out / RECORD).exists() or read_json(out / RECORD) != identity:
            raise ValueError(f"{out} is of another control; choose another --out or delete it")
        return out
    with atomic_dir(out) as folder:
        for number, volume in enumerate(volumes.values()):
            _write_shifted(volume, folder, (seed, number))
        write_json(folder / RECORD, identity)
    return out


def _write_shifted(volume: PreparedVolume, folder: Path, seed: tuple[int, int]) -> None:
    """Write the links, and label and photograph shifted alike, of one volume."""
    if volume.ink_label is None:
        raise ValueError(f"{volume.path} has no ink label to shift; prepare it with its label")
    target = folder / f"{volume.name}{SUFFIX}"
    target.mkdir()
    for file in volume.path.iterdir():
        if file.name not in (INK_LABEL, IR_IMAGE):
            os.symlink(file.resolve(), target / file.name)
    label = volume.ink_label & volume.papyrus_mask
    offset = even_shift(label, volume.papyrus_mask, seed)
    save_array(target / INK_LABEL, np.roll(label, offset, axis=(0, 1)) & volume.papyrus_mask)
    if volume.ir_image is not None:  # which shows the ink as well
        save_array(target / IR_IMAGE, np.roll(volume.ir_image, offset, axis=(0, 1)))


def even_shift(
    label: np.ndarray, papyrus_mask: np.ndarray, seed: int | Sequence[int]
) -> tuple[int, int]:
    """Return of many far shifts, rows and columns, the one that meets ink as often as all papyrus.

    A label that avoids the ink would teach where the ink is as well as the true one does.

    Args:
        label: Ink on papyrus, bool (Y, X).
        papyrus_mask: bool (Y, X).
        seed: Decides the shifts that are tried.
    """
    ink_share = label.sum() / max(papyrus_mask.sum(), 1)
    best, least = (0, 0), np.inf
    for down, right in draw_offsets(label.shape, NUM_SHIFTS, seed).tolist():
        moved = np.roll(label, (down, right), axis=(0, 1)) & papyrus_mask
        unevenness = abs((moved & label).sum() / max(moved.sum(), 1) - ink_share)
        if unevenness < least:
            best, least = (down, right), unevenness
    return best


def _titled(maps: Sequence[ScoredMap], title: str) -> list[ScoredMap]:
    """Return maps under a title of their own."""
    return [
        replace(scored, way=replace(scored.way, key=f"{title} {scored.way.key}", title=title))
        for scored in maps
    ]
