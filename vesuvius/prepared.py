"""A prepared volume: one folder `<name>.vol` whose voxels are mapped, not loaded.

`volume.npy` keeps the layers innermost, (Y, X, Z), so that a patch is a few contiguous pieces of
the file. Beside it lie `papyrus_mask.npy`, `ink_label.npy` where there is a label,
`layer_histograms.npy` and `volume.json`, which says where all of it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from core.files import read_json
from vesuvius.statistics import VolumeStatistics

FORMAT_VERSION = 1
SUFFIX = ".vol"


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A prepared volume, open for reading; pickles as its path.

    Attributes:
        name: Name of the fragment.
        path: The folder.
        volume: uint8 (Y, X, Z), mapped.
        papyrus_mask: bool (Y, X), mapped.
        ink_label: bool (Y, X), mapped, or None.
        statistics: Intensities per layer inside the mask.
        info: What `volume.json` says.
    """

    name: str
    path: Path
    volume: np.ndarray
    papyrus_mask: np.ndarray
    ink_label: np.ndarray | None
    statistics: VolumeStatistics
    info: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_prepared, (self.path,)


class LayersInnermost:
    """Reads a (Y, X, Z) array as a volume.

    Attributes:
        shape: (Z, Y, X).
    """

    def __init__(self, volume_YXZ: np.ndarray) -> None:
        height, width, num_layers = volume_YXZ.shape
        self.shape = (num_layers, height, width)
        self._volume_YXZ = volume_YXZ

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""
        num_layers, _, width = self.shape
        voxels = np.asarray(self._volume_YXZ[y_start:y_stop]).reshape(-1, num_layers)
        return cv2.transpose(voxels[:, z_start:z_stop]).reshape(-1, y_stop - y_start, width)


def open_prepared(path: str | Path) -> PreparedVolume:
    """Open a prepared volume without loading its voxels.

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
    if info["has_ink_label"]:
        ink_label = _open_array(path / "ink_label.npy", bool, (height, width))
    histograms = _open_array(path / "layer_histograms.npy", np.int64, (num_layers, 256))
    return PreparedVolume(
        name=info["name"],
        path=path,
        volume=volume,
        papyrus_mask=papyrus_mask,
        ink_label=ink_label,
        statistics=VolumeStatistics(np.array(histograms)),
        info=info,
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
