"""Prediction: from a trained run and a fragment to its map of ink, streamed and resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from core.inference import Journal, Write, choose_device, stream
from core.lock import locked
from core.provenance import collect
from core.terminal import note, progress
from core.tiling import TilePlan
from core.uncertainty import predictor
from vesuvius.ensemble import Ensemble, EnsembleConfig, load_ensemble
from vesuvius.fragment import Fragment, fingerprint, open_fragment
from vesuvius.inkmap import (
    InkModel,
    Window,
    note_other_order,
    note_other_window,
    window_reader,
)
from vesuvius.orientation import LayerOrder, estimate_layer_order, note_layer_order
from vesuvius.prediction_folder import PredictionFolder
from vesuvius.shards import Shard
from vesuvius.statistics import VolumeStatistics, layer_histograms, note_low_contrast
from vesuvius.voxel_size import MapGrid, Resampling, input_identity

Advance = Callable[[int], object]
# one path for each --ensemble: an option that takes several would swallow the fragment after it
Averaged = Annotated[EnsembleConfig, tyro.conf.arg(name=""), tyro.conf.UseAppendAction]
Sized = Annotated[Resampling, tyro.conf.arg(name="")]


def predict(
    run: Path,
    fragment: Path,
    /,
    out: Path,
    mask: Path | None = None,
    z_start: int | None = None,
    reverse_layers: bool = False,
    task: str | None = None,
    tile_size: int = 128,
    stride: int = 64,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    shard: str | None = None,
    sized: Sized = Resampling(),  # noqa: B008 - frozen
    averaged: Averaged = EnsembleConfig(),  # noqa: B008 - frozen
) -> None:
    """Map the ink of a fragment with a trained model.

    Reads bands of rows: but for a byte per pixel for the papyrus mask, memory does not grow with
    the fragment. The same command again continues where it was stopped. Writes prob.tif (float32
    (Y, X), 0..1, 0 outside the mask), preview.png and provenance.json. Where several predictions
    are averaged, prob.tif is their mean and uncertainty.tif, pictured in uncertainty.png, how far
    they disagree: standard deviation, predictive entropy and mutual information in bits, float32
    (3, Y, X). --mc-samples can be added later. Equal device and batch size give equal bits.

    Args:
        run: Run folder of `vesuvius train`, or one of its checkpoints.
        fragment: Folder in Kaggle layout, scroll segment, TIFF layers, OME-Zarr or prepared volume.
        out: Folder to write.
        mask: Papyrus mask (PNG) to use instead of the fragment's own.
        z_start: First layer of the window; by default as in training, or centred on the sheet.
        reverse_layers: Read the last layer first, as is done anyway where training did; z_start
            counts from there.
        task: Name of the task, "unknown" for the mean gate; by default that of the fragment's ink.
        tile_size: Rows and columns of a tile.
        stride: Step between tiles; half of tile_size blends best, a multiple of 16 for samples.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.
        shard: 1/8 to 8/8 are eight jobs that share `out`, in any order; the same command without
            then joins them to the bits of one job. Processes of torchrun are shards by themselves.
        sized: What is done about voxel sizes.
        averaged: Which predictions are averaged.

    Raises:
        FileNotFoundError: If the run or the fragment does not exist.
        ValueError: If they do not fit each other or what `out` holds.
    """
    part = Shard.parse(shard) if shard else Shard.of_process()
    computing = _computing(device, batch_size)
    ensemble = load_ensemble(run, averaged)
    seen, grid = sized.apply(open_fragment(fragment, mask, with_label=False), ensemble.models)
    _check_layers(seen, ensemble.models[0], z_start)
    settings = ensemble.settings() | input_identity(seen, grid)
    settings |= _chosen(ensemble.models[0], seen.name, z_start, reverse_layers, task)
    settings |= {"tile_size": tile_size, "stride": stride}
    job = _Job(ensemble, seen, grid, settings, computing)
    folder = PredictionFolder(out, settings, computing, averaged.mc_samples, grid)
    with locked(out, f"shard-{part.index}-of-{part.count}" if part else ""):
        job.fill(folder, part)


def _chosen(
    model: InkModel, name: str, z_start: int | None, reverse_layers: bool, task: str | None
) -> dict[str, Any]:
    """Return what is predicted of a fragment of that name: as asked for, else as in training."""
    return {
        "z_start": model.recipe.window.z_start if z_start is None else z_start,
        "reverse_layers": reverse_layers or model.saw_reversed(name),
        "task": model.tasks.choose(task, name),
    }


def _computing(device: str, batch_size: int) -> dict[str, Any]:
    """Return what the rounding depends on."""
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give the tiles per prediction")
    return {"device": str(choose_device(device)), "batch_size": batch_size}


@dataclass(frozen=True, eq=False)
class _Job:
    """What is predicted by what, and how; the fragment is as the models see it."""

    ensemble: Ensemble
    fragment: Fragment
    grid: MapGrid
    settings: dict[str, Any]
    computing: dict[str, Any]

    def fill(self, folder: PredictionFolder, shard: Shard | None) -> None:
        """Write what is missing of the prediction or of a shard of it, which may be nothing."""
        if folder.is_finished():
            note(f"{folder.path} is already finished")
        elif shard:
            self.map_shard(folder, shard)
            return
        elif folder.shards.exists():
            self.merge(folder)
        elif self.ensemble.num_members == 1:
            self.map_one(folder)
        else:
            self.map_all(folder)
        folder.clear()
        note(f"map in {folder.path / 'prob.tif'}, picture in {folder.path / 'preview.png'}")

    def map_one(self, folder: PredictionFolder) -> None:
        """Write the map of the only member, or the rest of one that was stopped."""
        self._introduce()
        prob = folder.begin()
        with progress(self.fragment.name, self._num_tiles, "tiles") as advance:
            self._stream(0, 1, folder.journal, prob.write, advance)
        folder.finish(prob, self._provenance())

    def map_all(self, folder: PredictionFolder) -> None:
        """Write mean and spread of all members, or what is missing of them."""
        self._introduce()
        moments, num_members = folder.moments, self.ensemble.num_members
        missing = moments.missing(num_members)
        with progress(self.fragment.name, missing * self._num_tiles, "tiles") as advance:
            while moments.missing(num_members):
                some = moments.begin(num_members, self.ensemble.members_per_pass)
                share = partial(_advance_each, advance, some.stop - some.start)
                self._stream(some.start, some.stop, some.journal, some.write, share)
                moments.commit()
        folder.finish_moments(self._provenance())

    def map_shard(self, folder: PredictionFolder, shard: Shard) -> None:
        """Write the part of a shard, or what is missing of it."""
        if folder.journal.path.exists():
            raise ValueError(
                f"{folder.path} holds a half-done prediction without shards; finish it without "
                f"--shard, or delete {folder.journal.path} to give it up"
            )
        held = folder.moments.held() if self.ensemble.num_members > 1 else None
        if held and folder.moments.count() == self.ensemble.num_members:
            raise ValueError(
                f"{folder.path} has all its predictions and only has to be finished; leave out "
                "--shard"
            )
        self._introduce()
        facts = self._facts | self.computing | {
            "num_shards": shard.count,
            "num_held": folder.moments.count() if held else 0,
            "num_per_pass": self.ensemble.members_per_pass,
        }  # fmt: skip
        store = folder.shards
        store.begin(facts, self.grid.predicted.shape, self._plan.stride[0])
        passes = list(store.passes(shard, self._plan, self._wanted, held))
        num_tiles = sum((each.stop - each.start) * self._count(each.rows) for each in passes)
        with progress(f"{self.fragment.name} {shard}", num_tiles, "tiles") as advance:
            for each in passes:
                share = partial(_advance_each, advance, each.stop - each.start)
                self._stream(each.start, each.stop, each.journal, each.write, share, each.rows)
        missing = store.unfinished(self._plan, self._wanted)
        rest = "as all are: now without --shard" if not missing else f"{_listed(missing)} not yet"
        note(f"shard {shard} of {folder.path} is done, {rest}")

    def merge(self, folder: PredictionFolder) -> None:
        """Write the maps that all shards have predicted."""
        store = folder.shards
        store.check(self._facts)
        missing = store.unfinished(self._plan, self._wanted)
        if missing:
            raise ValueError(
                f"{folder.path} lacks shard {_listed(missing)}; run it with --shard, or delete "
                f"{store.folder} to predict without"
            )
        facts = store.facts
        computing = {name: facts[name] for name in self.computing}
        told = self._provenance() | {"device": None, "num_shards": facts["num_shards"]}
        folder.computed_by(computing).finish_shards(told)

    @cached_property
    def _window(self) -> Window:
        return choose_window(
            self.fragment, self.ensemble.models[0], self.settings["z_start"], self._is_reversed
        )

    @cached_property
    def _read_window(self) -> Window:
        """All layers that some view looks at."""
        reach = self.ensemble.config.tta_z_shift
        return self._window.widened(reach, self.fragment.volume.shape[0])

    @cached_property
    def _order(self) -> LayerOrder:
        return estimate_layer_order(self.fragment.volume, self.fragment.papyrus_mask)

    @property
    def _is_reversed(self) -> bool:
        return bool(self.settings["reverse_layers"])

    @cached_property
    def _plan(self) -> TilePlan:
        tile, stride = (self.settings["tile_size"],) * 2, (self.settings["stride"],) * 2
        return TilePlan(self.grid.predicted.shape, tile, stride)

    @cached_property
    def _wanted(self) -> np.ndarray:
        return self._plan.wanted(self.grid.predicted)

    @property
    def _num_tiles(self) -> int:
        return int(self._wanted.sum())

    def _count(self, rows: range) -> int:
        """Return how many tiles it takes to complete some tile rows."""
        reach = self._plan.with_reach(rows)
        return int(self._wanted[reach.start : reach.stop].sum())

    @property
    def _facts(self) -> dict[str, Any]:
        """All that the maps depend on, but for rounding."""
        return self.settings | {"num_members": self.ensemble.num_members}

    def _introduce(self) -> None:
        """Refuse what does not fit before anything is written, and say what is about to be done."""
        for model in self.ensemble.models:
            model.tasks.gates(self.settings["task"])
        self.ensemble.check_tile(self.settings["tile_size"])
        self.ensemble.note_gentle_samples()
        number = self.ensemble.num_members
        order = ", reversed" if self._is_reversed else ""
        note(
            f"{self.fragment.name}: layers {self._window.z_start}..{self._window.z_stop - 1} of "
            f"{self.fragment.volume.shape[0]}{order}, on {self.computing['device']}"
            + (f", mean of {number} predictions" if number > 1 else "")
        )
        note_layer_order(self.fragment.name, self._order, self._is_reversed)
        seen = self._order.seen(self._is_reversed)
        note_other_order(self.fragment.name, seen, self.ensemble.models[0])
        _ = self._plan, self._read_window

    def _stream(
        self,
        start: int,
        stop: int,
        journal: Journal,
        write: Write,
        advance: Advance,
        rows: range | None = None,
    ) -> None:
        """Predict tile rows of the fragment with the members start..stop, a channel for each."""
        members = self.ensemble.members(start, stop, self.settings["task"], self._window)
        stream(
            self._plan,
            window_reader(self.fragment.volume, self._read_window),
            predictor(members, self.computing["device"]),
            write,
            batch_size=self.computing["batch_size"],
            num_channels=stop - start,
            mask=self.grid.predicted,
            journal=journal,
            advance=advance,
            rows=rows,
        )
        if fingerprint(self.fragment) != self.settings["input_fingerprint"]:
            raise ValueError(
                f"{self.fragment.path} was changed while it was predicted; delete what was begun "
                "of the prediction and start again"
            )

    def _provenance(self) -> dict[str, Any]:
        """Return what the prediction says about itself."""
        fragment, ensemble = self.fragment, self.ensemble
        return collect(
            self.computing["device"],
            name=fragment.name,
            input=str(fragment.path.resolve()),
            layout=fragment.layout,
            shape=list(self.grid.mask.shape),
            predicted_shape=list(self.grid.predicted.shape),
            voxel_size_um=fragment.voxel_size_um,
            resampled_from_um=fragment.resampled_from_um,
            threshold=ensemble.threshold,
            models=[model.facts() for model in ensemble.models],
            window=asdict(self._window),
            intensity=ensemble.models[0].recipe.window.intensity,
            layer_order="reversed" if self._is_reversed else "as stored",
            is_own_task=ensemble.models[0].tasks.is_own(self.settings["task"], fragment.name),
            estimated_layer_order=asdict(self._order),
            tta=ensemble.describe_views(),
            mc_samples=ensemble.config.mc_samples,
            num_predictions=ensemble.num_members,
            settings=self.settings,
        )


def _advance_each(advance: Advance, num_members: int, num_tiles: int) -> None:
    """Report tiles that each of some members has predicted."""
    advance(num_members * num_tiles)


def _listed(shards: Sequence[Shard]) -> str:
    return ", ".join(map(str, shards))


def choose_window(
    fragment: Fragment, model: InkModel, z_start: int | None, is_reversed: bool = False
) -> Window:
    """Return the layers and the normalisation for a fragment; say so if training saw other ones.

    Args:
        fragment: What is predicted.
        model: Its recipe decides all but the first layer.
        z_start: First layer; None centres the window on the sheet.
        is_reversed: Whether to read the layers from the last to the first.

    Raises:
        ValueError: If the fragment has too few layers.
    """
    statistics = VolumeStatistics(layer_histograms(fragment.volume, fragment.papyrus_mask))
    note_low_contrast(fragment.path, statistics.mean_std(0, fragment.volume.shape[0])[1])
    window = Window.of(statistics, replace(model.recipe.window, z_start=z_start), is_reversed)
    note_other_window(fragment.name, window, statistics, model)
    return window


def _check_layers(fragment: Fragment, model: InkModel, z_start: int | None) -> None:
    """Refuse a Kaggle fragment with other layers than those trained on, unless told where to look.

    A layer missing at either end would shift the window unnoticed. How many layers a resampled
    fragment has depends on rounding.
    """
    found = fragment.volume.shape[0]
    is_whole = fragment.source_layout == "kaggle" and not fragment.resampled_from_um
    if is_whole and z_start is None and found != model.num_layers:
        raise ValueError(
            f"{fragment.path} has {found} layers but the model was trained on {model.num_layers}; "
            "restore missing or remove extra layers, or name the first layer with --z-start"
        )
