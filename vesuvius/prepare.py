"""Turn fragments into prepared volumes.

The layers are read once, a band of rows at a time, and every band is transposed from (Z, rows, X)
to (rows, X, Z) and appended, so memory does not grow with the fragment. The folder appears under
its name when all of it is written.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from core.files import atomic_dir, check_space, read_json, write_json
from core.terminal import note, progress
from vesuvius.fragment import Fragment, VolumeReader, fingerprint, open_fragment
from vesuvius.prepared import (
    FORMAT_VERSION,
    INK_LABEL,
    IR_IMAGE,
    LABELLED,
    SUFFIX,
    LayersInnermost,
    open_prepared,
)
from vesuvius.statistics import VolumeStatistics, layer_histograms, note_low_contrast

BAND_BYTES = 128 * 2**20  # uint8 voxels of a band; three such arrays exist at a time


def prepare(fragments: tuple[Path, ...], /, out: Path) -> None:
    """Convert fragments to prepared volumes, from which training and prediction read fast.

    A fragment that is already there is skipped.

    Args:
        fragments: Folders of fragments: Kaggle layout, scroll segment, TIFF layers or OME-Zarr.
        out: Folder to write `<name>.vol` into.

    Raises:
        ValueError: If an input is bad or fragments in Kaggle layout differ in their number of
            layers, found before the first fragment is converted.
    """
    for fragment in _find_pending(fragments, out):
        prepare_fragment(fragment, out)


def prepare_fragment(fragment_path: str | Path, out_dir: str | Path) -> Path:
    """Convert one fragment and return the folder of its prepared volume.

    Raises:
        ValueError: If the fragment is bad or something else is stored under its name.
    """
    fragment = open_fragment(fragment_path)
    target = _target(fragment, Path(out_dir))
    if not _is_finished(fragment, target):
        with atomic_dir(target) as folder:
            _write_store(fragment, folder)
    return target


def _find_pending(fragments: tuple[Path, ...], out: Path) -> list[Path]:
    """Return the fragments still to convert; raise ValueError if any of them cannot be.

    Fragments are opened one after the other and not kept, as their masks take memory.
    """
    if not fragments:
        raise ValueError("no fragment given; name at least one folder")
    pending, targets, size = [], [], 0
    depths = _stored_depths(out)
    for path in fragments:
        fragment = open_fragment(path)
        target = _target(fragment, out)
        targets.append(target)
        if fragment.layout == "kaggle":
            depths[path] = fragment.volume.shape[0]
        if not _is_finished(fragment, target):
            pending.append(path)
            size += math.prod(fragment.volume.shape)
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} fragments would become {target}; rename their folders")
    _check_depths(depths)
    check_space(out, size)
    return pending


def _stored_depths(out: Path) -> dict[Path, int]:
    """Return the number of layers of each volume in `out` that comes from Kaggle layout."""
    depths = {}
    for record in sorted(out.glob(f"[!.]*{SUFFIX}/volume.json")):
        info = read_json(record)
        if info.get("layout") == "kaggle":
            depths[record.parent] = info["shape"][2]
    return depths


def _check_depths(depths: dict[Path, int]) -> None:
    """Raise ValueError if numbers of layers differ: one at the end may be missing."""
    for path, depth in depths.items():
        first = next(iter(depths))
        if depth != depths[first]:
            raise ValueError(
                f"{path} has {depth} layers but {first} has {depths[first]}; check for missing or "
                "extra layers, or choose another --out"
            )


def _target(fragment: Fragment, out: Path) -> Path:
    """Return where a fragment is stored; raise ValueError if it is stored already as it is."""
    if fragment.layout == "prepared":
        raise ValueError(f"{fragment.path} is a prepared volume already; give the fragment itself")
    return out / f"{fragment.name}{SUFFIX}"


def _is_finished(fragment: Fragment, target: Path) -> bool:
    """Tell whether a fragment is stored and say so; raise ValueError if something else is."""
    if not target.exists():
        return False
    if open_prepared(target).info["fingerprint"] != fingerprint(fragment):
        raise ValueError(
            f"{target} was prepared from other files than {fragment.path} holds now; "
            "delete it or choose another --out"
        )
    note(f"{target} is already prepared")
    return True


def _write_store(fragment: Fragment, folder: Path) -> None:
    """Write all files of a prepared volume."""
    num_layers, height, width = fragment.volume.shape
    identity = fingerprint(fragment)
    with progress(f"preparing {fragment.name}", height, "rows") as advance:
        layer_sha256 = _write_volume(fragment.volume, folder / "volume.npy", advance)
    np.save(folder / "papyrus_mask.npy", fragment.papyrus_mask)
    if fragment.ink_label is not None:
        np.save(folder / INK_LABEL, fragment.ink_label)
    if fragment.labelled_area is not None:
        np.save(folder / LABELLED, fragment.papyrus_mask & fragment.labelled_area)
    if fragment.ir_image is not None:
        np.save(folder / IR_IMAGE, fragment.ir_image)
    volume = LayersInnermost(np.load(folder / "volume.npy", mmap_mode="r"))
    histograms = layer_histograms(volume, fragment.papyrus_mask)
    np.save(folder / "layer_histograms.npy", histograms)
    statistics = VolumeStatistics(histograms)
    mean, std = statistics.mean_std(0, num_layers)
    note_low_contrast(fragment.path, std)
    info = {
        "format_version": FORMAT_VERSION,
        "name": fragment.name,
        "source": str(fragment.path.resolve()),
        "layout": fragment.layout,
        "fingerprint": identity,
        "files": [os.path.relpath(file, fragment.path) for file in fragment.files],
        "axes": "YXZ",
        "shape": [height, width, num_layers],
        "voxel_size_um": fragment.voxel_size_um,
        "has_ink_label": fragment.ink_label is not None,
        "is_partly_labelled": fragment.labelled_area is not None,
        "has_ir_image": fragment.ir_image is not None,
        "sheet_depth": statistics.sheet_depth,
        "mean": mean,
        "std": std,
        "z_profile": statistics.z_profile.round(3).tolist(),
        "layer_sha256": layer_sha256,
    }
    write_json(folder / "volume.json", info)


def _write_volume(volume: VolumeReader, path: Path, advance: Callable[[int], None]) -> list[str]:
    """Write the voxels as (Y, X, Z) and return the SHA-256 of each layer's uint8 (Y, X)."""
    num_layers, height, width = volume.shape
    rows = max(1, BAND_BYTES // (num_layers * width))
    digests = [hashlib.sha256() for _ in range(num_layers)]
    header = {"descr": "|u1", "fortran_order": False, "shape": (height, width, num_layers)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for y_start in range(0, height, rows):
            y_stop = min(y_start + rows, height)
            band = volume.read(0, num_layers, y_start, y_stop)
            for digest, layer in zip(digests, band, strict=True):
                digest.update(layer)
            file.write(cv2.transpose(band.reshape(num_layers, -1)))
            advance(y_stop - y_start)
    return [digest.hexdigest() for digest in digests]
