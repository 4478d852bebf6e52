"""Prediction: from a transmitted-light image to fluorescence, on the image's own grid.

Shape legend: Z Y X voxels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from core.files import check_space, read_json, write_json
from core.inference import choose_device
from core.lock import holds
from core.pictures import side_by_side, write_png
from core.provenance import collect
from core.samples import MemberConfig
from core.terminal import note, progress
from ssp.ensemble import Ensemble, load_ensemble
from ssp.mapping import Field
from ssp.model import CellModel
from ssp.outputs import SUFFIXES, Format, restored, write_image
from ssp.pictures import contrast, gray
from ssp.resample import Moments, ReadPlanes, Shape
from ssp.sampled import Prediction, mean_and_spread
from ssp.source import InputConfig, Source, open_source

Averaged = Annotated[MemberConfig, tyro.conf.arg(name=""), tyro.conf.UseAppendAction]
Input = Annotated[InputConfig, tyro.conf.arg(name="")]


@holds("out")
def predict(
    run: Path,
    stack: Path,
    /,
    out: Path,
    task: tuple[str, ...] = (),
    original_scale: bool = False,
    format: Format = "ome-tiff",
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    image: Input = InputConfig(),  # noqa: B008 - frozen
    averaged: Averaged = MemberConfig(),  # noqa: B008 - frozen
) -> None:
    """Predict fluorescence from a transmitted-light image with a trained model.

    The image is z-scored as a whole, resampled to the voxel size of training, predicted in
    overlapping tiles blended with Gaussian weights, and the prediction brought back to its own
    voxels. Writes one float32 image for each task, in standard deviations of the fluorescence, a
    picture of the planes in its middle, and where it comes from; of several predictions the mean,
    and their standard deviation as a second image. The same command again continues.

    Args:
        run: Run folder of `ssp train` or `ssp extend`, one of its checkpoints, or an official
            checkpoint (.p).
        stack: CZI, TIFF, OME-TIFF or OME-Zarr, (Z, Y, X) or a single plane (Y, X), of any size.
        out: Folder to write `<task>.ome.tif`, `<task>.png` and `<task>.provenance.json` into.
        task: Names of the structures to predict; all the model knows by default.
        original_scale: Give intensities as the training targets had them, not z-scores.
        format: What to write: OME-TIFF or OME-Zarr 0.4.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.
        image: Which image of the file is predicted, and how large its voxels are.
        averaged: Which predictions are averaged: samples, views, further runs.

    Raises:
        FileNotFoundError: If the run or the image does not exist.
        ValueError: If one of them cannot be read, they do not fit each other, a task is unknown,
            or `out` holds predictions with another model, image or setting.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give the tiles per prediction")
    ensemble = load_ensemble(run, averaged)
    where = choose_device(device)
    source = open_source(stack, image, ensemble.model.voxel_size_um)
    job = _Job(ensemble, source, original_scale, where, batch_size, format)
    tasks = ensemble.model.choose(task)
    job.check(tasks)
    missing = _find_missing(out, tasks, job.settings, format)
    if not missing:
        note(f"{out} is already finished")
        return
    for name in missing:
        # Written before the work, so that an `out` which cannot be written is found now.
        write_json(_record(out, name), collect(where, task=name, **job.facts))
    job.introduce()
    job.check_space(out)
    with job.source.open(out) as signal:
        for name in missing:
            job.predict_task(name, signal, out)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is predicted by what, and how."""

    ensemble: Ensemble
    source: Source
    original_scale: bool
    device: torch.device
    batch_size: int
    format: Format

    @property
    def model(self) -> CellModel:
        """Return the model."""
        return self.ensemble.model

    @cached_property
    def field(self) -> Field:
        """Return how the resampled image is tiled."""
        return Field(
            self.source.resampled_shape, self.model.tile, self.model.target, self.model.num_layers
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return all that the numbers of a prediction depend on."""
        return {
            **self.ensemble.settings,
            "input_sha256": self.source.sha256,
            "channel": self.source.channel,
            "scene": self.source.config.scene,
            "time": self.source.config.time,
            "axes": self.source.config.axes,
            "factors": list(self.source.factors),
            "tile": list(self.field.plan.tile),
            "stride": list(self.field.plan.stride),
            "original_scale": self.original_scale,
            "batch_size": self.batch_size,
            "device": str(self.device),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a prediction says about itself."""
        return {
            "checkpoint": str(self.model.path.resolve()),
            "ensemble": [str(model.path.resolve()) for model in self.ensemble.models[1:]],
            "input": str(self.source.stack.path.resolve()),
            "shape": list(self.source.shape),
            "voxel_size_um": self.source.voxel_size_um,
            "predicted_shape": list(self.field.shape),
            "intensity": "z-score of the whole image, before it is resampled",
            "settings": self.settings,
        }

    def check(self, tasks: tuple[str, ...]) -> None:
        """Refuse what cannot be predicted, before anything is written.

        Raises:
            ValueError: If the image, the samples or the scale do not fit the model.
        """
        if self.ensemble.noise:
            self.field.check_samples(max(model.multiple for model in self.ensemble.models))
        if self.original_scale:
            self.ensemble.check_facts(tasks)

    def introduce(self) -> None:
        """Say what is about to be done."""
        before, after = (" x ".join(map(str, s)) for s in (self.source.shape, self.field.shape))
        resampled = "" if before == after else f", resampled to {after}"
        number = self.ensemble.num_members
        averaged = f", mean of {number} predictions" if number > 1 else ""
        note(
            f"{self.source.stack.path.name}: {before} voxels{resampled}, on {self.device}{averaged}"
        )

    def check_space(self, out: Path) -> None:
        """Refuse a disk too small for the files under way and one task's output."""
        num_maps = min(self.ensemble.num_members, 2)
        resampled, written = (4 * int(np.prod(s)) for s in (self.field.shape, self.source.shape))
        check_space(out, resampled * (1 + 2 * num_maps) + 2 * written)

    def predict_task(self, name: str, signal: np.ndarray, out: Path) -> None:
        """Write the prediction of one task."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        prediction = Prediction(
            self.ensemble, name, signal, self.field, self.device, self.batch_size, out, digest
        )
        with progress(name, prediction.num_tiles, "tiles") as advance:
            moments = prediction.run(advance)
        volumes = moments[:, None] if self.field.is_map else moments
        maps = mean_and_spread(volumes, self.ensemble.num_members)
        middle = volumes.shape[1] // 2
        seen = [read(middle, middle + 1)[0] for read in maps.values()]
        planes = [np.asarray(signal[len(signal) // 2]), *seen]
        picture = side_by_side(*(gray(plane, contrast(plane)) for plane in planes))
        write_png(out / f"{name}.png", picture)
        for kind in reversed(maps):  # the mean last: what is there is finished
            path = _output(out, name, kind, self.format)
            if not path.exists():
                self._write(path, name, kind, maps[kind], volumes.shape[1:])
        prediction.clear()

    def _write(self, path: Path, name: str, kind: str, read: ReadPlanes, shape: Shape) -> None:
        """Write one map of a prediction, on the grid of the image."""
        num_planes = 1 if self.field.is_map else self.source.shape[0]
        new_shape = (num_planes, *self.source.shape[1:])
        planes = restored(read, shape, new_shape, path.parent)
        scaled = (self._scaled(plane, name, kind != "") for plane in planes)
        size_um, title = self.source.voxel_size_um, f"{name} {kind}".strip()
        write_image(path, scaled, new_shape, size_um, title)

    def _scaled(self, plane: np.ndarray, name: str, is_spread: bool) -> np.ndarray:
        """Return a plane on the scale that is asked for; a spread stays at least 0."""
        facts = self.model.facts.get(name)
        scale = Moments(facts.mean, facts.std) if self.original_scale and facts else Moments(0, 1)
        if is_spread:
            return np.maximum(plane, 0) * np.float32(scale.std)
        return plane * np.float32(scale.std) + np.float32(scale.mean)


def _find_missing(
    out: Path, tasks: tuple[str, ...], settings: dict[str, Any], format: Format
) -> list[str]:
    """Return the tasks that `out` holds no prediction of.

    Raises:
        ValueError: If it holds predictions with other settings, or one of these tasks of unknown
            origin.
    """
    suffixes = tuple(SUFFIXES.values())
    for path in sorted(path for path in out.glob("[!.]*") if path.name.endswith(suffixes)):
        name = next(path.name.removesuffix(s) for s in suffixes if path.name.endswith(s))
        record = _record(out, name.removesuffix("-uncertainty"))
        if record.exists():
            stored = read_json(record).get("settings", {})
            names = dict.fromkeys([*settings, *stored])
            changed = [name for name in names if stored.get(name) != settings.get(name)]
            found = f"was predicted with other {', '.join(changed)}"
        else:
            changed, found = name in tasks, "is of unknown origin"
        if changed:
            raise ValueError(f"{path} {found}; delete it or choose another --out")
    return [name for name in tasks if not _output(out, name, "", format).exists()]


def _output(out: Path, task: str, kind: str, format: Format) -> Path:
    """Return the path of one map of the prediction of a task."""
    return out / ("-".join(filter(None, (task, kind))) + SUFFIXES[format])


def _record(out: Path, task: str) -> Path:
    """Return the path of what tells where the prediction of a task comes from."""
    return out / f"{task}.provenance.json"
