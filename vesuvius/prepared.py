"""A prepared volume: one folder `<name>.vol` whose voxels are mapped, not loaded.

`volume.npy` keeps the layers innermost, (Y, X, Z), so that a patch is a few contiguous pieces of
the file. Beside it lie `papyrus_mask.npy`, `ink_label.npy` where there is a label,
`labelled_papyrus.npy` where that does not cover all of the papyrus, `ir_image.npy` where there is
an infrared photograph, `layer_histograms.npy` and `volume.json`, which says where all of it came
from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from core.files import read_json
from vesuvius.statistics import VolumeStatistics

FORMAT_VERSION = 1
SUFFIX = ".vol"
INK_LABEL = "ink_label.npy"
LABELLED = "labelled_papyrus.npy"
IR_IMAGE = "ir_image.npy"
OF_TRAINING = {INK_LABEL, LABELLED, IR_IMAGE}  # files that prediction does without


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A prepared volume, open for reading; pickles as its path.

    Attributes:
        name: Name of the fragment.
        path: The folder.
        volume: uint8 (Y, X, Z), mapped.
        papyrus_mask: bool (Y, X), mapped.
        ink_label: bool (Y, X), mapped, or None if there is none or it was not asked for.
        statistics: Intensities per layer inside the mask.
        info: What `volume.json` says.
        labelled_papyrus: bool (Y, X), mapped: papyrus whose label is known, which is all of
            `papyrus_mask`, and the same array, unless the fragment says otherwise.
        ir_image: Infrared photograph, uint8 (Y, X), mapped, or None as `ink_label`.
    """

    name: str
    path: Path
    volume: np.ndarray
    papyrus_mask: np.ndarray
    ink_label: np.ndarray | None
    statistics: VolumeStatistics
    info: dict[str, Any]
    labelled_papyrus: np.ndarray
    ir_image: np.ndarray | None = None

    def sha256(self) -> str:
        """Return the hash of all that is trained on; every byte is read, which takes a while."""
        from core.provenance import file_hash

        files = sorted(self.path.glob("[!.]*.npy"))
        told = "".join(f"{file.name} {file_hash(file)}\n" for file in files)
        return hashlib.sha256(told.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        with_label = self.ink_label is not None or self.ir_image is not None
        return open_prepared, (self.path, with_label)


class LayersInnermost:
    """Reads a (Y, X, Z) array as a volume.

    Each band of a mapped file is mapped anew, as pages stay in memory as long as their map.

    Args:
        volume_YXZ: uint8, an array or a whole mapped file.

    Attributes:
        shape: (Z, Y, X).
    """

    def __init__(self, volume_YXZ: np.ndarray) -> None:
        is_mapped = isinstance(volume_YXZ, np.memmap)
        assert not is_mapped or isinstance(volume_YXZ.base, mmap), "a part of a map"
        height, width, num_layers = volume_YXZ.shape
        self.shape = (num_layers, height, width)
        self._volume_YXZ = volume_YXZ

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""
        num_layers, _, width = self.shape
        voxels = self._read_rows(y_start, y_stop).reshape(-1, num_layers)
        return cv2.transpose(voxels[:, z_start:z_stop]).reshape(-1, y_stop - y_start, width)

    def _read_rows(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return rows, uint8 (rows, X, Z)."""
        volume = self._volume_YXZ
        if not isinstance(volume, np.memmap):
            return volume[y_start:y_stop]
        start = volume.offset + y_start * volume.strides[0]
        shape = (y_stop - y_start, *volume.shape[1:])
        return np.memmap(volume.filename, np.uint8, "r", start, shape)


def open_prepared(path: str | Path, with_label: bool = True) -> PreparedVolume:
    """Open a prepared volume without loading its voxels.

    Args:
        path: The folder.
        with_label: Whether to open the ink label and the infrared photograph if there are any.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If it was written in another format, or its files do not fit each other.
    """
    path = Path(path)
    info = read_json(path / "volume.json")
    found = info.get("format_version")
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {found}, this program reads {FORMAT_VERSION}; "
            "delete it and prepare the fragment again"
        )
    height, width, num_layers = info["shape"]
    volume = _open_array(path / "volume.npy", np.uint8, (height, width, num_layers))
    papyrus_mask = _open_array(path / "papyrus_mask.npy", bool, (height, width))
    ink_label = None
    if with_label and info["has_ink_label"]:
        ink_label = _open_array(path / INK_LABEL, bool, (height, width))
    labelled_papyrus = papyrus_mask
    if ink_label is not None and info.get("is_partly_labelled"):
        labelled_papyrus = _open_array(path / LABELLED, bool, (height, width))
    ir_image = None
    if with_label and info.get("has_ir_image"):
        ir_image = _open_array(path / IR_IMAGE, np.uint8, (height, width))
    histograms = _open_array(path / "layer_histograms.npy", np.int64, (num_layers, 256))
    return PreparedVolume(
        name=info["name"],
        path=path,
        volume=volume,
        papyrus_mask=papyrus_mask,
        ink_label=ink_label,
        statistics=VolumeStatistics(np.array(histograms)),
        info=info,
        labelled_papyrus=labelled_papyrus,
        ir_image=ir_image,
    )


def _open_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array; raise ValueError unless it is whole and has this type and shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        found = f"cannot be read ({error})"
    else:
        if array.dtype == dtype and array.shape == shape:
            return array
        found = f"is {array.dtype} {array.shape}"
    raise ValueError(
        f"{path} {found}, expected {np.dtype(dtype)} {shape}; "
        f"delete {path.parent} and prepare the fragment again"
    )
