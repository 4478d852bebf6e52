"""Turn fragments into prepared volumes.

The layers are read once, a band of rows at a time, and every band is transposed from (Z, rows, X)
to (rows, X, Z) and appended, so memory does not grow with the fragment. The folder appears under
its name when all of it is written; until then it is a draft, whose bands are not read again.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from core.draft import Draft
from core.files import check_space, read_json, save_array, write_json
from core.lock import locked
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
from vesuvius.voxel_size import cubic, in_um, resampled, with_voxel_size

BAND_BYTES = 128 * 2**20  # uint8 voxels of a band; three such arrays exist at a time


def prepare(
    fragments: tuple[Path, ...],
    /,
    out: Path,
    voxel_size: float | None = None,
    input_voxel_size: float | None = None,
) -> None:
    """Convert fragments to prepared volumes, from which training and prediction read fast.

    A fragment that is already there is skipped; one that was stopped half-way continues.

    Args:
        fragments: Folders of fragments: Kaggle layout, scroll segment, TIFF layers or OME-Zarr.
        out: Folder to write `<name>.vol` into.
        voxel_size: Resample fragments, with masks and labels, to voxels of that size in um.
        input_voxel_size: Voxel size of the fragments in um, where their files tell none or a wrong
            one.

    Raises:
        ValueError: If an input is bad or fragments in Kaggle layout differ in their number of
            layers, found before the first fragment is converted.
    """
    for fragment in _find_pending(fragments, out, voxel_size, input_voxel_size):
        prepare_fragment(fragment, out, voxel_size, input_voxel_size)


def prepare_fragment(
    fragment_path: str | Path,
    out_dir: str | Path,
    voxel_size: float | None = None,
    input_voxel_size: float | None = None,
) -> Path:
    """Convert one fragment and return the folder of its prepared volume.

    Args:
        fragment_path: Its folder.
        out_dir: As `prepare`.
        voxel_size: As `prepare`.
        input_voxel_size: As `prepare`.

    Raises:
        ValueError: If the fragment is bad or something else is stored under its name.
    """
    fragment = _open(fragment_path, voxel_size, input_voxel_size)
    target = _target(fragment, Path(out_dir))
    with locked(target.parent, target.name):
        draft = Draft(target)
        draft.settle()
        if not _is_finished(fragment, target):
            _write_store(fragment, draft)
    return target


def _open(path: str | Path, voxel_size: float | None, input_voxel_size: float | None) -> Fragment:
    """Open a fragment at the voxel size asked for."""
    fragment = with_voxel_size(open_fragment(path), input_voxel_size)
    return fragment if voxel_size is None else resampled(fragment, cubic(voxel_size))


def _find_pending(
    fragments: tuple[Path, ...],
    out: Path,
    voxel_size: float | None,
    input_voxel_size: float | None,
) -> list[Path]:
    """Return the fragments still to convert; raise ValueError if any of them cannot be.

    Fragments are opened one after the other and not kept, as their masks take memory.
    """
    if not fragments:
        raise ValueError("no fragment given; name at least one folder")
    pending, targets, size = [], [], 0
    depths = _stored_depths(out)
    for path in fragments:
        fragment = _open(path, voxel_size, input_voxel_size)
        target = _target(fragment, out)
        targets.append(target)
        if fragment.layout == "kaggle" and not fragment.resampled_from_um:
            depths[path] = fragment.volume.shape[0]
        if not _is_finished(fragment, target):
            pending.append(path)
            size += math.prod(fragment.volume.shape) - Draft(target).held_bytes()
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} fragments would become {target}; rename their folders")
    _check_depths(depths)
    check_space(out, size)
    return pending


def _stored_depths(out: Path) -> dict[Path, int]:
    """Return the number of layers of each volume in `out` that comes from Kaggle layout as it is.

    Those of resampled volumes depend on how they are rounded.
    """
    depths = {}
    for record in sorted(out.glob(f"[!.]*{SUFFIX}/volume.json")):
        info = read_json(record)
        if info.get("layout") == "kaggle" and not info.get("resampled_from_um"):
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
    info = open_prepared(target).info
    stored = tuple(info["voxel_size_um"] or ()) or None
    if stored and stored != fragment.voxel_size_um:
        raise ValueError(
            f"{target} has voxels of {in_um(stored)}, not of {in_um(fragment.voxel_size_um)}; "
            "delete it or choose another --out"
        )
    if info["fingerprint"] != fingerprint(fragment):
        raise ValueError(
            f"{target} was prepared from other files than {fragment.path} holds now; "
            "delete it or choose another --out"
        )
    is_lacking = fragment.voxel_size_um and not stored
    note(f"{target} is already prepared{', without its voxel size' if is_lacking else ''}")
    return True


def _write_store(fragment: Fragment, draft: Draft) -> None:
    """Write a prepared volume, or the rest of one.

    Raises:
        ValueError: If the fragment changes meanwhile.
    """
    identity = fingerprint(fragment)
    with draft.begin({"format_version": FORMAT_VERSION, "fingerprint": identity}) as done:
        with progress(f"preparing {fragment.name}", fragment.volume.shape[1], "rows") as advance:
            layer_sha256 = _write_volume(fragment.volume, draft, done, advance)
        _write_maps(fragment, draft.folder, layer_sha256, identity)
        if fingerprint(fragment) != identity:
            raise ValueError(f"{fragment.path} changed while it was prepared; prepare it again")


def _write_maps(fragment: Fragment, folder: Path, layer_sha256: list[str], identity: str) -> None:
    """Write what there is beside the voxels, and what they are."""
    num_layers, height, width = fragment.volume.shape
    save_array(folder / "papyrus_mask.npy", fragment.papyrus_mask)
    if fragment.ink_label is not None:
        save_array(folder / INK_LABEL, fragment.ink_label)
    if fragment.labelled_area is not None:
        save_array(folder / LABELLED, fragment.labelled_papyrus)
    if fragment.ir_image is not None:
        save_array(folder / IR_IMAGE, fragment.ir_image)
    volume = LayersInnermost(np.load(folder / "volume.npy", mmap_mode="r"))
    histograms = layer_histograms(volume, fragment.papyrus_mask)
    save_array(folder / "layer_histograms.npy", histograms)
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
        "resampled_from_um": fragment.resampled_from_um,
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


def _write_volume(
    volume: VolumeReader, draft: Draft, done: Mapping[int, int], advance: Callable[[int], None]
) -> list[str]:
    """Write the voxels as (Y, X, Z) and return the SHA-256 of each layer's uint8 (Y, X).

    A band that is there already is read from there, for the sake of the hashes, not from its
    source.
    """
    num_layers, height, width = volume.shape
    rows = max(1, BAND_BYTES // (num_layers * width))
    digests = [hashlib.sha256() for _ in range(num_layers)]
    header = {"descr": "|u1", "fortran_order": False, "shape": (height, width, num_layers)}
    path = draft.folder / "volume.npy"
    path.touch()
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for y_start in range(0, height, rows):
            y_stop = min(y_start + rows, height)
            place = file.tell()
            stored = file.read((y_stop - y_start) * width * num_layers) if y_start in done else b""
            if stored and done[y_start] == zlib.crc32(stored):
                voxels = np.frombuffer(stored, np.uint8).reshape(-1, num_layers)
                band = cv2.transpose(voxels).reshape(num_layers, -1, width)
            else:
                band = volume.read(0, num_layers, y_start, y_stop)
                voxels = cv2.transpose(band.reshape(num_layers, -1))
                file.seek(place)
                file.write(voxels)
                file.flush()
                draft.finish(y_start, zlib.crc32(voxels))
            for digest, layer in zip(digests, band, strict=True):
                digest.update(layer)
            advance(y_stop - y_start)
    return [digest.hexdigest() for digest in digests]
