"""Prediction: from a trained run and a fragment to its map of ink, streamed and resumable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from core.deploy import specialize
from core.files import named_when_full, read_json, write_json
from core.inference import Journal, choose_device, stream
from core.provenance import collect
from core.terminal import note, progress
from core.tiling import TilePlan
from vesuvius.fragment import Fragment, fingerprint, open_fragment
from vesuvius.inkmap import (
    INK_TASK,
    InkModel,
    Window,
    ink_predictor,
    load_model,
    window_reader,
)
from vesuvius.pictures import shrink, write_png
from vesuvius.statistics import VolumeStatistics, layer_histograms, note_low_contrast


def predict(
    run: Path,
    fragment: Path,
    /,
    out: Path,
    mask: Path | None = None,
    z_start: int | None = None,
    task: int = INK_TASK,
    tile_size: int = 128,
    stride: int = 64,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Map the ink of a fragment with a trained model.

    Reads TIFF layers, a prepared volume or OME-Zarr, a band of rows at a time: beside one byte per
    pixel for the papyrus mask, memory does not grow with the fragment. The same command again
    continues where it was stopped, and does nothing once it is finished. Writes prob.tif (float32
    (Y, X), 0..1, 0 outside the papyrus mask), preview.png and provenance.json.

    Args:
        run: Run folder of `vesuvius train`, or one of its checkpoints.
        fragment: Folder in Kaggle layout, scroll segment, TIFF layers, OME-Zarr or prepared volume.
        out: Folder to write.
        mask: Papyrus mask (PNG) to use instead of the fragment's own.
        z_start: First layer of the window; by default that of the recipe, or the window is centred
            on the sheet.
        task: Index of the task to predict; 0 is ink.
        tile_size: Rows and columns of a tile.
        stride: Step between tiles, at most tile_size; half of it blends most smoothly.
        batch_size: Tiles predicted at once.
        device: Where to compute; auto takes the GPU if there is one.

    Raises:
        FileNotFoundError: If the run or the fragment does not exist.
        ValueError: If they do not fit each other, or `out` holds another prediction.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give the tiles per prediction")
    model = load_model(run)
    opened = open_fragment(fragment, mask, with_label=False)
    _check_layers(opened, model, z_start)
    settings = {
        "checkpoint_sha256": model.sha256,
        "input_fingerprint": fingerprint(opened),
        "z_start": model.recipe.window.z_start if z_start is None else z_start,
        "task": task,
        "tile_size": tile_size,
        "stride": stride,
        "batch_size": batch_size,
        "device": str(choose_device(device)),
    }
    journal = Journal(out / ".journal", _identity(settings))
    if _is_finished(out, settings):
        note(f"{out} is already finished")
    else:
        _map_ink(model, opened, out, settings, journal)
    journal.remove()


def _map_ink(
    model: InkModel, fragment: Fragment, out: Path, settings: dict[str, Any], journal: Journal
) -> None:
    """Write a prediction, or the rest of one that was stopped."""
    plain = specialize(model.network, settings["task"])
    window = choose_window(fragment, model, settings["z_start"])
    tile, stride = (settings["tile_size"],) * 2, (settings["stride"],) * 2
    plan = TilePlan(fragment.papyrus_mask.shape, tile, stride)
    note(
        f"{fragment.name}: layers {window.z_start}..{window.z_stop - 1} of "
        f"{fragment.volume.shape[0]}, on {settings['device']}"
    )
    prob = _PartialMap(out / ".prob.partial.tif", plan.shape)
    prob.open(is_resumed=journal.load() is not None)
    num_tiles = int(plan.wanted(fragment.papyrus_mask).sum())
    with progress(fragment.name, num_tiles, "tiles") as advance:
        stream(
            plan,
            window_reader(fragment.volume, window),
            ink_predictor(plain, window, settings["device"]),
            prob.write,
            batch_size=settings["batch_size"],
            mask=fragment.papyrus_mask,
            journal=journal,
            advance=advance,
        )
    write_png(out / "preview.png", shrink(tifffile.memmap(prob.path, mode="r")))
    facts = _facts(fragment, model, window, settings)
    write_json(out / "provenance.json", collect(settings["device"], **facts))
    prob.path.replace(out / "prob.tif")


def choose_window(fragment: Fragment, model: InkModel, z_start: int | None) -> Window:
    """Return the layers and the normalisation for a fragment.

    Args:
        fragment: What is predicted.
        model: Its recipe decides all but the first layer.
        z_start: First layer; None centres the window on the sheet.

    Raises:
        ValueError: If the fragment has too few layers.
    """
    statistics = VolumeStatistics(layer_histograms(fragment.volume, fragment.papyrus_mask))
    note_low_contrast(fragment.path, statistics.mean_std(0, fragment.volume.shape[0])[1])
    return Window.of(statistics, replace(model.recipe.window, z_start=z_start))


def _check_layers(fragment: Fragment, model: InkModel, z_start: int | None) -> None:
    """Refuse a Kaggle fragment with other layers than those trained on, unless told where to look.

    A layer missing at either end would shift the window unnoticed.
    """
    found = fragment.volume.shape[0]
    if fragment.source_layout == "kaggle" and z_start is None and found != model.num_layers:
        raise ValueError(
            f"{fragment.path} has {found} layers but the model was trained on {model.num_layers}; "
            "restore missing or remove extra layers, or name the first layer with --z-start"
        )


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Tell whether `out` holds this very prediction.

    Raises:
        ValueError: If it holds another one.
    """
    if not (out / "prob.tif").exists():
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if names and not names & {".journal", ".prob.partial.tif"}:
            raise ValueError(f"{out} holds other files and no prediction; choose another --out")
        return False
    stored = read_json(out / "provenance.json").get("settings")
    if stored != settings:
        changed = [key for key in settings if (stored or {}).get(key) != settings[key]]
        raise ValueError(
            f"{out} holds a prediction with other {', '.join(changed)}; "
            "delete it or choose another --out"
        )
    return True


def _identity(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _facts(
    fragment: Fragment, model: InkModel, window: Window, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what a prediction says about itself."""
    return {
        "name": fragment.name,
        "input": str(fragment.path.resolve()),
        "layout": fragment.layout,
        "shape": list(fragment.papyrus_mask.shape),
        "threshold": model.threshold,
        "window": asdict(window),
        "intensity": model.recipe.window.intensity,
        "layer_order": "as stored",
        "tta": "none",
        "mc_samples": 1,
        "settings": settings,
    }


class _PartialMap:
    """The unfinished probability map: an uncompressed TIFF filled band by band.

    Written through a file, not through memory: a full disk is then an error, not a crash.

    Args:
        path: The file.
        shape: (Y, X).
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self._shape = shape
        self._offset = 0

    def open(self, is_resumed: bool) -> None:
        """Make the file, or find it again.

        Raises:
            ValueError: If a journal tells of rows and there is no file that could hold them.
        """
        if not is_resumed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(self.path, shape=self._shape, dtype=np.float32)
        elif not self.path.exists():
            raise ValueError(
                f"{self.path} is gone but {self.path.parent} tells of a half-done prediction; "
                "delete that folder to start again"
            )
        with tifffile.TiffFile(self.path) as file:
            self._offset = file.pages.first.dataoffsets[0]

    def write(self, start: int, stop: int, values: np.ndarray) -> None:
        """Write the rows start..stop, float32 (1, rows, X)."""
        with named_when_full(self.path), self.path.open("r+b") as file:
            file.seek(self._offset + start * self._shape[1] * values.itemsize)
            file.write(np.ascontiguousarray(values[0], dtype="<f4").data)
