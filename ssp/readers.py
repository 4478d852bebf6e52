"""Opens microscope images of any known format as stacks."""

from __future__ import annotations

from pathlib import Path

from core.ome_zarr import METADATA_FILES
from ssp.stack import Stack

TIFF_SUFFIXES = (".tif", ".tiff")
CZI_SUFFIXES = (".czi",)
FORMATS = "CZI (.czi), TIFF and OME-TIFF (.tif, .tiff) and OME-Zarr folders"


def open_stack(
    path: str | Path, scene: int | None = None, time: int | None = None, axes: str | None = None
) -> Stack:
    """Open one image of a file; no voxel is read yet.

    Args:
        path: CZI, TIFF, OME-TIFF or the folder of an OME-Zarr.
        scene: Which of several images (CZI scenes, TIFF series), from 0; the only one by default.
        time: Which of several times, from 0; the only one by default.
        axes: For a TIFF that says nothing or the wrong thing about its axes: one letter of T, C,
            Z, Y, X for each axis longer than 1, such as "CZYX".

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If the format is unknown, the file is damaged or holds what is no stack, or a
            scene or time must be chosen.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no image at {path.absolute()}; check the path")
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES and path.is_file():
        from ssp.tiff import open_tiff

        return open_tiff(path, scene, time, axes)
    if suffix in CZI_SUFFIXES and path.is_file():
        from ssp.czi import open_czi

        return open_czi(path, scene, time)
    if is_ome_zarr(path):
        from ssp.zarr_stack import open_ome_zarr

        return open_ome_zarr(path, scene, time)
    raise ValueError(f"{path} is no image of a known format; expected {FORMATS}: convert it")


def is_ome_zarr(path: Path) -> bool:
    """Tell whether a path is a folder that Zarr wrote."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA_FILES)


def is_image(path: Path) -> bool:
    """Tell whether a path looks like an image of a known format; hidden ones are not."""
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in TIFF_SUFFIXES + CZI_SUFFIXES or is_ome_zarr(path)


def plain_name(path: Path) -> str:
    """Return the name of an image without what tells its format: "a.ome.tif" gives "a"."""
    name = path.name
    for suffix in (".zarr", *TIFF_SUFFIXES, *CZI_SUFFIXES, ".ome"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name
