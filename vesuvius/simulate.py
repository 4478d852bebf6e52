"""Synthetic fragments in Kaggle layout, to try everything with no download.

The voxels come from `vesuvius.phantom`, band by band of rows, so memory hardly grows with the
fragment. Scores on simulated papyrus say that code works and compare recipes; they say nothing
about real papyrus.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from core.draft import Draft
from core.files import atomic_path, check_space, read_json, write_json
from core.lock import locked
from core.terminal import note, progress
from vesuvius import rle
from vesuvius.fragment import read_binary_png
from vesuvius.glyphs import draw_text
from vesuvius.layers import TiffLayer, read_layer
from vesuvius.phantom import Phantom, Physics
from vesuvius.texture import NOISE_ROWS, SmoothField

SIMULATOR_VERSION = 2  # raised whenever the same parameters give other voxels
RECORD = "simulation.json"
DEFAULT_SIZE = (1024, 1024)
SMALLEST_SIDE = 64
FEWEST_LAYERS = 16
BAND_ROWS = NOISE_ROWS
NUM_THREADS = 2
MARGIN = 0.06  # mean width of the rim without papyrus, of the shorter side


def simulate(
    out: Path,
    /,
    size: tuple[int, int] | None = None,
    layers: int = 65,
    seed: int = 0,
    ink_label: Path | None = None,
    papyrus_mask: Path | None = None,
    difficulty: float = Physics.difficulty,
) -> None:
    """Write a synthetic fragment in Kaggle layout.

    A folder that holds this very simulation is left as it is; one that was stopped half-way
    continues.

    Args:
        out: Folder to create; its name becomes the fragment's.
        size: Height and width in px; those of the given PNGs, or else 1024 1024.
        layers: Number of layers.
        seed: Decides everything random.
        ink_label: PNG with the shape of the ink; lines of text are drawn if not given.
        papyrus_mask: PNG with the shape of the papyrus; a ragged sheet is made if not given.
        difficulty: From 0, where ink replaces the surface, to 1, where it leaves no trace.

    Raises:
        FileNotFoundError: If a PNG does not exist.
        ValueError: If an option is out of range, sizes disagree, a PNG is no usable mask, or `out`
            holds something else.
    """
    _check_options(size, layers, seed, difficulty)
    mask, label = _shapes(size, seed, papyrus_mask, ink_label)
    physics = Physics(difficulty=difficulty)
    parameters = {
        "simulator_version": SIMULATOR_VERSION,
        "size": list(mask.shape),
        "layers": layers,
        "seed": seed,
        "ink_label": _identity(ink_label),
        "papyrus_mask": _identity(papyrus_mask),
        "physics": asdict(physics),
    }
    with locked(out.parent, out.name):
        draft = Draft(out)
        draft.settle()
        if _is_finished(out, parameters):
            note(f"{out} already holds this simulation; nothing to do")
            return
        check_space(out, 2 * layers * mask.size - draft.held_bytes())
        phantom = Phantom(mask, label, layers, seed, physics)
        with draft.begin(parameters) as done:
            _write_binary_png(draft.folder / "mask.png", mask)
            _write_binary_png(draft.folder / "inklabels.png", label)
            (draft.folder / "inklabels_rle.csv").write_text(
                f"Id,Predicted\n{out.name},{rle.encode(label)}", encoding="utf-8"
            )
            with progress(f"simulate {out.name}", mask.shape[0], "rows") as advance:
                _write_voxels(phantom, draft, done, advance)
            write_json(draft.folder / RECORD, parameters)


def draw_papyrus_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the outline of a sheet with ragged edges: bool (Y, X)."""
    margin = max(4.0, MARGIN * min(size))
    ragged = [(0.4, SmoothField(rng, size, 2 * margin)), (0.2, SmoothField(rng, size, margin / 2))]
    ragged.append((0.08, SmoothField(rng, size, max(2.0, margin / 8))))
    x = np.arange(size[1])
    from_side = np.minimum(x, x[::-1])
    mask = np.empty(size, dtype=bool)
    for y_start in range(0, size[0], BAND_ROWS):
        y_stop = min(y_start + BAND_ROWS, size[0])
        y = np.arange(y_start, y_stop)[:, None]
        from_edge = np.minimum(from_side, np.minimum(y, size[0] - 1 - y)) / margin
        roughness = sum(weight * field.read(y_start, y_stop) for weight, field in ragged)
        mask[y_start:y_stop] = from_edge > 1 + roughness
    return mask


def _check_options(size: tuple[int, int] | None, layers: int, seed: int, difficulty: float) -> None:
    """Raise ValueError for an option out of range."""
    if size is not None and min(size) < SMALLEST_SIDE:
        raise ValueError(
            f"size {size[0]} x {size[1]} is too small; height and width are {SMALLEST_SIDE} or more"
        )
    if layers < FEWEST_LAYERS:
        raise ValueError(
            f"layers {layers} cannot hold the sheet; {FEWEST_LAYERS} or more are needed"
        )
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; use 0 or more")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty {difficulty} is outside 0 (easiest) to 1 (no trace of ink)")


def _shapes(
    size: tuple[int, int] | None, seed: int, mask_path: Path | None, label_path: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return papyrus mask and ink label, read or drawn: bool (Y, X) each."""
    given = {path: read_binary_png(path) for path in (mask_path, label_path) if path}
    sizes = {f"{path}": image.shape for path, image in given.items()}
    if size is not None:
        sizes["size"] = tuple(size)
    if len(set(sizes.values())) > 1:
        found = ", ".join(
            f"{name} is {height} x {width}" for name, (height, width) in sizes.items()
        )
        raise ValueError(f"sizes disagree: {found} (height x width); give images of one size")
    size = next(iter(sizes.values()), DEFAULT_SIZE)
    if mask_path and not given[mask_path].any():
        raise ValueError(f"{mask_path} is all black; white is where there is papyrus")
    rng = np.random.default_rng([seed, 0])
    mask = given[mask_path] if mask_path else draw_papyrus_mask(size, rng)
    label = given[label_path] if label_path else draw_text(size, rng) & mask
    return mask, label


def _identity(path: Path | None) -> dict[str, str] | None:
    """Return name and hash of an input file."""
    if path is None:
        return None
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _is_finished(out: Path, parameters: dict[str, Any]) -> bool:
    """Tell whether `out` holds the simulation of `parameters`.

    Raises:
        ValueError: If it holds anything else.
    """
    if not out.exists():
        return False
    if not (out / RECORD).is_file():
        raise ValueError(f"{out} already exists and is no simulation; choose another folder")
    record = read_json(out / RECORD)
    if record == parameters:
        return True
    keys = [key for key, value in parameters.items() if record.get(key) != value]
    raise ValueError(
        f"{out} already holds a simulation with another {', '.join(keys)}; "
        "remove it or choose another folder"
    )


def _write_voxels(
    phantom: Phantom, draft: Draft, done: Mapping[int, int], advance: Callable[[int], None]
) -> None:
    """Write the layers and the infrared photograph, a few bands of rows at a time.

    Of a band that is there already only the rows of the photograph are made again.
    """
    num_layers, height, width = phantom.shape
    folder = draft.folder / "surface_volume"
    folder.mkdir(exist_ok=True)
    layers = [_open_layer(folder / f"{z:02}.tif", (height, width)) for z in range(num_layers)]
    photograph = np.empty((height, width), dtype=np.uint8)

    def write_band(y_start: int) -> int:
        y_stop = min(y_start + BAND_ROWS, height)
        photograph[y_start:y_stop] = phantom.read_infrared(y_start, y_stop)
        if y_start not in done or done[y_start] != stored_checksum(y_start, y_stop):
            volume = phantom.read(y_start, y_stop)
            for layer, rows in zip(layers, volume, strict=True):
                with layer.path.open("r+b") as file:
                    file.seek(layer.offset + y_start * width * rows.itemsize)
                    file.write(rows.tobytes())
            draft.finish(y_start, zlib.crc32(volume))
        return y_stop - y_start

    def stored_checksum(y_start: int, y_stop: int) -> int:
        return zlib.crc32(np.stack([layer.read(y_start, y_stop) for layer in layers]))

    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        for num_rows in pool.map(write_band, range(0, height, BAND_ROWS)):
            advance(num_rows)
    finally:
        pool.shutdown(cancel_futures=True)
    Image.fromarray(photograph).save(draft.folder / "ir.png")


def _open_layer(path: Path, size: tuple[int, int]) -> TiffLayer:
    """Return an uncompressed layer, all zeros unless it was there already."""
    if not path.exists():
        with atomic_path(path) as partial:
            tifffile.memmap(partial, shape=size, dtype=np.uint16, photometric="minisblack")
    return read_layer(path)


def _write_binary_png(path: Path, image: np.ndarray) -> None:
    """Write bool (Y, X) as a grey PNG of 0 and 255."""
    Image.fromarray(image.view(np.uint8) * np.uint8(255)).save(path)
