"""What a fragment looks like on disk; the only module that knows folder layouts.

| layout | voxels | papyrus mask | ink label | infrared photograph |
|---|---|---|---|---|
| kaggle | `surface_volume/00.tif` ... | `mask.png` | `inklabels.png` | `ir.png` |
| segment | `layers/NN.tif` ... | `mask.png`, `*_mask.png` | `*inklabels.png` | `*_ir.png` too |
| tiff | numbered TIFF files in the folder itself | as segment | as segment | as segment |
| zarr | OME-Zarr 0.4 or 0.5, full resolution | as segment | as segment | as segment |
| prepared | `<name>.vol` as written by `vesuvius prepare` | inside | inside | inside |

Masks, labels and photographs may be missing, save the mask of the kaggle layout. The voxel size is
that of the metadata of OME-Zarr and of prepared volumes, and of the kaggle layout that of the
competition.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from core.ome_zarr import METADATA_FILES
from core.terminal import note
from vesuvius.layers import is_layer, open_layers
from vesuvius.ome_zarr import VoxelSize, open_zarr
from vesuvius.prepared import OF_TRAINING, SUFFIX, LayersInnermost, open_prepared

Layout = Literal["kaggle", "segment", "tiff", "zarr", "prepared"]

KAGGLE_VOXEL_SIZE_UM: VoxelSize = (4.0, 4.0, 4.0)

_TIFF_FOLDERS = {"kaggle": "surface_volume", "segment": "layers", "tiff": "."}


class VolumeReader(Protocol):
    """Voxels that are read in bands of rows, as uint8 whatever the source.

    Sources of 16 bits are read as value >> 8.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """An opened fragment.

    Attributes:
        name: The name of its folder, without `.vol` or `.zarr`.
        path: Its folder.
        layout: How the folder is laid out.
        source_layout: The same, but of a prepared volume the layout it was prepared from.
        volume: The voxels.
        papyrus_mask: bool (Y, X), somewhere True.
        ink_label: bool (Y, X), or None if there is none or it was not asked for.
        files: All files it was read from.
        voxel_size_um: (Z, Y, X), or None if unknown.
        labelled_area: bool (Y, X), where the ink label is to be believed, or None if that is
            everywhere or no label was asked for.
        ir_image: Infrared photograph, uint8 (Y, X), or None if there is none or no label was
            asked for.
        resampled_from_um: The voxel size it was resampled from, or None if it was not.
    """

    name: str
    path: Path
    layout: Layout
    source_layout: Layout
    volume: VolumeReader
    papyrus_mask: np.ndarray
    ink_label: np.ndarray | None
    files: tuple[Path, ...]
    voxel_size_um: VoxelSize | None = None
    labelled_area: np.ndarray | None = None
    ir_image: np.ndarray | None = None
    resampled_from_um: VoxelSize | None = None

    @property
    def labelled_papyrus(self) -> np.ndarray:
        """Papyrus whose label is to be believed, bool (Y, X)."""
        if self.labelled_area is None:
            return self.papyrus_mask
        return self.papyrus_mask & self.labelled_area


def open_fragment(
    path: str | Path, mask_path: str | Path | None = None, with_label: bool = True
) -> Fragment:
    """Open a fragment of any layout; only headers, mask, label and photograph are read.

    Args:
        path: The folder.
        mask_path: A papyrus mask to use instead of the fragment's own.
        with_label: Whether to look for the ink label and the infrared photograph; prediction does
            without.

    Raises:
        FileNotFoundError: If the folder, or a mask that must be there, does not exist.
        ValueError: If the folder has no known layout, or its files are damaged or do not fit.
    """
    path = Path(path)
    layout = _find_layout(path)
    if layout == "prepared":
        return _open_store(path, mask_path, with_label)
    voxel_size_um = KAGGLE_VOXEL_SIZE_UM if layout == "kaggle" else None
    if layout == "zarr":
        volume, voxel_size_um = open_zarr(path)
        files = _files_below(path)
    else:
        volume = open_layers(path / _TIFF_FOLDERS[layout], 0 if layout == "kaggle" else None)
        files = [layer.path for layer in volume.layers]
    mask_path = mask_path or _find_image(path, "mask.png", "*_mask.png")
    label_path = _find_image(path, "inklabels.png", "*inklabels.png") if with_label else None
    ir_path = _find_image(path, "ir.png", "*_ir.png") if with_label else None
    area_path = None
    if label_path is not None:
        area_path = _find_image(path, "labelled_area.png", "*_labelled_area.png")
    if mask_path is None and layout == "kaggle":
        raise FileNotFoundError(f"{path / 'mask.png'} not found; copy the papyrus mask there")
    return Fragment(
        name=_name(path),
        path=path,
        layout=layout,
        source_layout=layout,
        volume=volume,
        papyrus_mask=_read_mask(path, mask_path, volume.shape[1:]),
        ink_label=None if label_path is None else _read_fitting(label_path, volume.shape[1:]),
        files=tuple([*files, *(Path(p) for p in (mask_path, label_path, area_path, ir_path) if p)]),
        voxel_size_um=voxel_size_um,
        labelled_area=None if area_path is None else _read_area(area_path, volume.shape[1:]),
        ir_image=None if ir_path is None else _read_fitting(ir_path, volume.shape[1:], read_grey),
    )


def fingerprint(fragment: Fragment) -> str:
    """Return a cheap identity of a fragment: hash of names, sizes and times of its files.

    Resampled to another voxel size it is another one.
    """
    digest = hashlib.sha256()
    for file in sorted(fragment.files):
        stat = file.stat()
        name = os.path.relpath(file, fragment.path)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    if fragment.resampled_from_um:
        digest.update(f"{fragment.resampled_from_um} to {fragment.voxel_size_um}".encode())
    return digest.hexdigest()


def read_binary_png(path: str | Path) -> np.ndarray:
    """Read a black and white image; what is brighter than half of its brightest pixel is True.

    So palette images, 0/1, 0/255 and 0/65535 all read the same. Colour images must be grey.

    Returns:
        bool (Y, X).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded or is coloured.
    """
    grey = _read_image(path, _grey)
    if grey is None:
        raise ValueError(f"{path} is coloured; save it as a black and white PNG")
    return grey > grey.max() / 2


def read_grey(path: str | Path) -> np.ndarray:
    """Read a photograph as grey values, colours by their brightness, 16 bits as value >> 8.

    Returns:
        uint8 (Y, X).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded.
    """
    return _read_image(path, _brightness)


def _read_image(path: str | Path, convert: Callable[[Image.Image], Any]) -> Any:
    """Return what `convert` makes of an image file of any size.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        with _any_image_size(), Image.open(path) as image:
            image.load()
            return convert(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image ({error}); save it again") from error


def _find_layout(path: Path) -> Layout:
    """Tell the layout of a folder; raise ValueError if it has none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found")
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the folder of a fragment")
    names = {entry.name for entry in path.iterdir()}
    if path.suffix == SUFFIX:
        return "prepared"
    if _TIFF_FOLDERS["kaggle"] in names:
        return "kaggle"
    if _TIFF_FOLDERS["segment"] in names:
        return "segment"
    if names.intersection(METADATA_FILES):
        return "zarr"
    if any(is_layer(path / name) for name in names):
        return "tiff"
    raise ValueError(
        f"{path} {'holds no layers' if names else 'is empty'}; expected surface_volume/ or layers/ "
        "with numbered TIFF files, such files themselves, OME-Zarr, or a prepared volume (.vol)"
    )


def _name(path: Path) -> str:
    """Return the name of a fragment: "1", "a.vol" and "a.ome.zarr" give "1", "a" and "a"."""
    name = Path(os.path.abspath(path)).name  # links are not followed
    for suffix in (SUFFIX, ".ome.zarr", ".zarr"):
        name = name.removesuffix(suffix)
    return name


def _open_store(path: Path, mask_path: str | Path | None, with_label: bool) -> Fragment:
    """Open a prepared volume as a fragment."""
    store = open_prepared(path, with_label)
    files = [file for file in _files_below(path) if with_label or file.name not in OF_TRAINING]
    size = store.papyrus_mask.shape
    voxel_size_um, resampled_from_um = (
        tuple(size) if size else None
        for size in (store.info["voxel_size_um"], store.info.get("resampled_from_um"))
    )
    is_all_labelled = store.labelled_papyrus is store.papyrus_mask
    return Fragment(
        name=store.name,
        path=path,
        layout="prepared",
        source_layout=store.info["layout"],
        volume=LayersInnermost(store.volume),
        papyrus_mask=_read_mask(path, mask_path, size) if mask_path else store.papyrus_mask,
        ink_label=store.ink_label,
        files=tuple([*files, *([Path(mask_path)] if mask_path else [])]),
        voxel_size_um=voxel_size_um,
        labelled_area=None if is_all_labelled else store.labelled_papyrus,
        ir_image=store.ir_image,
        resampled_from_um=resampled_from_um,
    )


def _files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _find_image(folder: Path, name: str, pattern: str) -> Path | None:
    """Return the image of that name, else the only one that fits the pattern, else None.

    Hidden files are not looked at.
    """
    if (folder / name).exists():
        return folder / name
    found = sorted(image for image in folder.glob(pattern) if not image.name.startswith("."))
    if len(found) > 1:
        names = ", ".join(image.name for image in found)
        raise ValueError(f"{folder} holds several images: {names}; rename the right one to {name}")
    return found[0] if found else None


def _read_mask(path: Path, mask_path: str | Path | None, size: tuple[int, int]) -> np.ndarray:
    """Read the papyrus mask; all True if there is none."""
    if mask_path is None:
        _note_no_mask(path)
        return np.ones(size, bool)
    mask = _read_fitting(mask_path, size)
    if not mask.any():
        raise ValueError(f"{mask_path} is all black, so there is no papyrus; give another mask")
    return mask


def _read_area(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read where a fragment is labelled."""
    area = _read_fitting(path, size)
    if not area.any():
        raise ValueError(f"{path} is all black, so nothing is labelled; make labelled pixels white")
    return area


@functools.cache
def _note_no_mask(path: Path) -> None:
    """Say it once, however often the fragment is opened."""
    note(f"{path}: no papyrus mask found, so all of it counts as papyrus")


def _read_fitting(
    path: str | Path,
    size: tuple[int, int],
    read: Callable[[str | Path], np.ndarray] = read_binary_png,
) -> np.ndarray:
    """Read a mask, label or photograph; raise ValueError unless it has the size of the layers."""
    image = read(path)
    if image.shape != size:
        raise ValueError(
            f"{path} is {image.shape[0]} x {image.shape[1]} but the layers are {size[0]} x "
            f"{size[1]} (height x width); give the image of these layers"
        )
    return image


def _grey(image: Image.Image) -> np.ndarray | None:
    """Return the grey values (Y, X) of an image whatever its mode, None if it is coloured."""
    pixels = np.asarray(image)
    if image.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        stored = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(stored)] = stored
        is_used = np.array(image.histogram()) > 0
        is_grey = (palette[is_used] == palette[is_used, :1]).all()
        return palette[pixels, 0] if is_grey else None
    if pixels.ndim == 2:
        return pixels
    num_colours = pixels.shape[2] - ("A" in image.getbands())
    is_grey = all((pixels[..., i] == pixels[..., 0]).all() for i in range(1, num_colours))
    return pixels[..., 0] if is_grey else None


def _brightness(image: Image.Image) -> np.ndarray:
    """Return an image of any mode as uint8 (Y, X)."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow may hold in 32
        return (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
    return np.asarray(image.convert("L"))


@contextmanager
def _any_image_size() -> Iterator[None]:
    """Let Pillow open images of any size: fragments exceed what it takes for an attack."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
