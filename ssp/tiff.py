"""OME-TIFF, ImageJ and plain TIFF as a stack."""

from __future__ import annotations

import logging
import lzma
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from ssp.stack import Stack, choose_one

LEADING = "TCZ"
PAGES = "IQ"  # pages of which the file does not say more
# What tifffile and the codecs, imagecodecs or Python's own, raise on damaged files.
UNREADABLE = (
    tifffile.TiffFileError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    ElementTree.ParseError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
MICRO = {"µm", "μm", "um", "micron", "microns", "micrometer", "\\u00B5m"}
UNITS_UM = {**dict.fromkeys(MICRO, 1.0), "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def open_tiff(
    path: Path, scene: int | None = None, time: int | None = None, axes: str | None = None
) -> Stack:
    """Open a TIFF.

    Args:
        path: The file.
        scene: Which of several images.
        time: Which of several times.
        axes: One letter of T, C, Z, Y, X for each axis longer than 1, where the file is silent or
            wrong about them.

    Raises:
        ValueError: If it is no TIFF or damaged, has other axes, or a scene or time must be chosen.
    """
    with _opened(path) as file:
        num_scenes = len(file.series)
    scene = choose_one(path, "scene", num_scenes, scene)
    with _opened(path) as file:
        series = file.series[scene]
        shape, found, dtype = series.shape, series.axes, np.dtype(series.dtype)
        size_um, names = _described(file, scene)
    letters = _letters(path, shape, found, axes)
    planes_TCZ = _plane_numbers(letters, shape)
    num_times, num_channels, num_planes = planes_TCZ.shape
    time = choose_one(path, "time", num_times, time)

    def read_planes(channel: int, z_start: int, z_stop: int) -> np.ndarray:
        with _opened(path) as file:
            return _read_planes(file, scene, planes_TCZ[time, channel, z_start:z_stop])

    if num_planes == 1 and "Y" in size_um:
        size_um.setdefault("Z", size_um["Y"])
    return Stack(
        path=path,
        shape=(num_channels, num_planes, *shape[-2:]),
        dtype=dtype,
        voxel_size_um=(size_um["Z"], size_um["Y"], size_um["X"]) if len(size_um) == 3 else None,
        channel_names=(*names, *[""] * num_channels)[:num_channels],
        read_planes=read_planes,
    )


class _Truncation(logging.Handler):
    """Collects what tifffile only logs: pages, or the description of them, past the end."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "invalid page offset" in message or "TiffTag 270" in message:
            self.messages.append(message)


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Yield the open file; what damage raises becomes a ValueError of one line that names it."""
    truncation, logger = _Truncation(), logging.getLogger("tifffile")
    logger.addHandler(truncation)
    try:
        with tifffile.TiffFile(path) as file:
            if file.series and truncation.messages:
                raise ValueError(truncation.messages[0])
            yield file
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as TIFF: {reason}; save it again") from error
    finally:
        logger.removeHandler(truncation)


def _letters(path: Path, shape: tuple[int, ...], found: str, given: str | None) -> str:
    """Return the letter of each axis, of T, C, Z, Y and X and ending in YX.

    Raises:
        ValueError: If there are other axes, or one of them twice.
    """
    letters = given or found
    if given is None and sum(axis in PAGES for axis in found) == 1 and "Z" not in found:
        letters = "".join("Z" if axis in PAGES else axis for axis in found)
    is_known = letters.endswith("YX") and set(letters[:-2]) <= {*LEADING}
    if is_known and len(letters) == len(shape) == len(set(letters)):
        return letters
    sizes = ", ".join(f"{axis} {size}" for axis, size in zip(found, shape, strict=True))
    meant = f"axes {given!r} do not fit: give" if given else "give them with axes:"
    raise ValueError(
        f"{path} has axes {sizes}; {meant} one of T, C, Z, Y, X for each, each once, Y and X last"
    )


def _plane_numbers(letters: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return which plane of the file is which: int (T, C, Z)."""
    # Axes ZC, lengths 3 and 2: channel 0 has the planes 0, 2, 4 and channel 1 the planes 1, 3, 5.
    numbers, order = np.arange(np.prod(shape[:-2], dtype=int)).reshape(shape[:-2]), letters[:-2]
    for axis in LEADING:
        if axis not in order:
            numbers, order = numbers[None], axis + order
    return numbers.transpose([order.index(axis) for axis in LEADING])


def _read_planes(file: tifffile.TiffFile, scene: int, numbers: np.ndarray) -> np.ndarray:
    """Return planes of an image by number, (N, Y, X), without reading others where possible."""
    series = file.series[scene]
    size = series.shape[-2:]
    planes = np.zeros((len(numbers), *size), series.dtype)
    if series.dataoffset is not None:
        stored = np.dtype(file.byteorder + series.dtype.char)
        for plane, number in zip(planes, numbers.tolist(), strict=True):
            offset = series.dataoffset + number * planes[0].nbytes
            file.filehandle.seek(offset)
            plane[:] = file.filehandle.read_array(stored, plane.size).reshape(size)
    elif len(series.pages) == np.prod(series.shape[:-2], dtype=int):
        for plane, number in zip(planes, numbers.tolist(), strict=True):
            page = series.pages[number]
            if page is not None:  # left out of the file: all zero
                plane[:] = page.asarray()
    else:  # several planes in one page
        planes[:] = series.asarray().reshape(-1, *size)[numbers]
    return planes


def _described(file: tifffile.TiffFile, scene: int) -> tuple[dict[str, float], list[str]]:
    """Return the voxel size in um by axis and the names of the channels, as far as known."""
    if file.ome_metadata:
        images = ElementTree.fromstring(file.ome_metadata).findall("{*}Image")
        pixels = images[scene].find("{*}Pixels")
        return _ome_size_um(pixels), [c.get("Name", "") for c in pixels.findall("{*}Channel")]
    if file.is_imagej:
        return _imagej_size_um(file), []
    return {}, []


def _ome_size_um(pixels: ElementTree.Element) -> dict[str, float]:
    """Return the voxel size that OME-XML gives; a size without a unit is in micrometres."""
    found = {}
    for axis in "ZYX":
        size = pixels.get(f"PhysicalSize{axis}")
        factor = UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size and factor and float(size) > 0:
            found[axis] = float(size) * factor
    return found


def _imagej_size_um(file: tifffile.TiffFile) -> dict[str, float]:
    """Return the voxel size that ImageJ wrote: spacing, and pixels per unit in the tags."""
    metadata = file.imagej_metadata or {}
    factor = UNITS_UM.get(metadata.get("unit", ""))
    tags = file.pages.first.tags
    if factor is None or "XResolution" not in tags or "YResolution" not in tags:
        return {}
    found = {}
    for axis in "YX":
        count, length = tags[f"{axis}Resolution"].value
        found[axis] = factor * length / count
    if "spacing" in metadata:
        found["Z"] = factor * metadata["spacing"]
    return found
