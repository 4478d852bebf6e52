"""A folder of numbered TIFF layers, read as one volume in bands of rows.

Only headers are read when the folder is opened, and everything that can be wrong with the files is
found then. A band of rows costs the bytes of these rows where layers are stored uncompressed, and
the strips or tiles that cover them where they are compressed. Axes: Z layers, Y rows, X columns.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from core.files import named_when_unreadable

NUM_NAMED = 5  # how many missing layers an error names
CODEC_ERRORS = (RuntimeError, ValueError, zlib.error, lzma.LZMAError)  # classes of all codecs

_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)\.(?P<suffix>tiff?)", re.IGNORECASE)


@dataclass(frozen=True)
class TiffLayer:
    """What the header of one layer says.

    Attributes:
        path: The file.
        shape: Rows and columns (Y, X).
        dtype: As in the file, byte order included: uint8 or uint16.
        offset: Where the first voxel lies if all voxels are stored in one uncompressed piece,
            else None.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype
    offset: int | None

    def read(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return rows y_start..y_stop as stored, (rows, X).

        Raises:
            ValueError: If the file is shorter than it was, or damaged.
        """
        if self.offset is None:
            return self._decode(y_start, y_stop)
        width = self.shape[1]
        start = self.offset + y_start * width * self.dtype.itemsize
        rows = np.fromfile(self.path, self.dtype, (y_stop - y_start) * width, offset=start)
        if rows.size < (y_stop - y_start) * width:
            raise ValueError(
                f"{self.path} cannot be read to row {y_stop - 1}: it was cut off or its disk "
                "fails; copy it again"
            )
        return rows.reshape(-1, width)

    def _decode(self, y_start: int, y_stop: int) -> np.ndarray:
        """Decode the strips or tiles that cover rows y_start..y_stop.

        Raises:
            ValueError: If one of them is damaged.
        """
        band = np.zeros((y_stop - y_start, self.shape[1]), self.dtype)
        with named_when_unreadable(self.path), tifffile.TiffFile(self.path) as tif:
            page = tif.pages[0]
            chunk_height, per_row = page.chunks[0], page.chunked[1]
            first, last = y_start // chunk_height, -(-y_stop // chunk_height)
            for index in range(first * per_row, last * per_row):
                tif.filehandle.seek(page.dataoffsets[index])
                encoded = tif.filehandle.read(page.databytecounts[index]) or None
                try:
                    chunk, position, shape = page.decode(encoded, index, jpegtables=page.jpegtables)
                except CODEC_ERRORS as error:
                    row = index // per_row * chunk_height
                    raise ValueError(
                        f"{self.path} is damaged near row {row} ({error}); copy it again"
                    ) from error
                if chunk is None:  # left out of the file: all zero
                    continue
                top, left = position[2:4]
                start, stop = max(top, y_start), min(top + shape[1], y_stop)
                columns = band[start - y_start : stop - y_start, left : left + shape[2]]
                columns[:] = chunk[0, start - top : stop - top, : columns.shape[1], 0]
        return band


class TiffLayers:
    """A volume of TIFF layers.

    Attributes:
        layers: Headers in the order of the layer numbers.
        shape: (Z, Y, X).
    """

    def __init__(self, layers: Sequence[TiffLayer]) -> None:
        self.layers = tuple(layers)
        self.shape = (len(self.layers), *self.layers[0].shape)

    def read(self, z_start: int, z_stop: int, y_start: int, y_stop: int) -> np.ndarray:
        """Return the rows y_start..y_stop of layers z_start..z_stop, uint8 (Z, rows, X)."""
        band = np.empty((z_stop - z_start, y_stop - y_start, self.shape[2]), np.uint8)
        for out, layer in zip(band, self.layers[z_start:z_stop], strict=True):
            to_uint8(layer.read(y_start, y_stop), out)
        return band


def is_layer(path: Path) -> bool:
    """Tell whether a name is that of a TIFF file; hidden files are not looked at."""
    return path.suffix.lower() in (".tif", ".tiff") and not path.name.startswith(".")


def open_layers(folder: Path, first: int | None = None) -> TiffLayers:
    """Open the numbered TIFF files of a folder.

    Args:
        folder: Holds one file per layer, numbered without a gap: 00.tif, 01.tif ...
        first: The number that the first layer must have; None accepts any.

    Raises:
        ValueError: If a layer is missing, stray or given twice, is truncated, cannot be decoded,
            is not one channel of uint8 or uint16, or differs from the first in size or type.
    """
    layers = [read_layer(path) for path in _numbered_files(folder, first)]
    reference = layers[0]
    for layer in layers[1:]:
        _check_alike(layer.path, _size(layer.shape), reference.path, _size(reference.shape))
        _check_alike(layer.path, layer.dtype.name, reference.path, reference.dtype.name)
    return TiffLayers(layers)


def to_uint8(voxels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return uint8 voxels as they are and uint16 voxels as value >> 8.

    Args:
        voxels: uint8 or uint16.
        out: uint8 array of the same shape to write into; a new one if None.
    """
    out = np.empty(voxels.shape, np.uint8) if out is None else out
    return np.right_shift(voxels, 8 * (voxels.dtype.itemsize - 1), out=out, casting="unsafe")


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]} (height x width)"


def _check_alike(path: Path, found: str, reference: Path, expected: str) -> None:
    """Raise ValueError if a layer has another size or type than the first."""
    if found != expected:
        raise ValueError(
            f"{path} is {found} but {reference.name} is {expected}; all layers must be alike: "
            "copy or convert the odd one again"
        )


def _numbered_files(folder: Path, first: int | None) -> list[Path]:
    """Return the layer files in the order of their numbers, each number exactly once."""
    names = sorted(path.name for path in folder.iterdir() if is_layer(path))
    if not names:
        raise ValueError(f"{folder} holds no TIFF layers; expected files such as 00.tif, 01.tif")
    parts = {name: _NUMBERED.fullmatch(name) for name in names}
    prefixes = Counter(part["prefix"] for part in parts.values() if part)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    by_number: dict[int, str] = {}
    for name, part in parts.items():
        if part is None or part["prefix"] != prefix:
            raise ValueError(
                f"{folder / name} is not a numbered layer like {prefix}00.tif; "
                "move it out of the folder"
            )
        other = by_number.setdefault(int(part["number"]), name)
        if other != name:
            raise ValueError(
                f"{folder} holds one layer twice: {other} and {name}; remove one of them"
            )
    _check_gapless(folder, by_number, first)
    return [folder / by_number[number] for number in sorted(by_number)]


def _check_gapless(folder: Path, by_number: dict[int, str], first: int | None) -> None:
    """Raise ValueError, naming the files, if numbers are left out."""
    start = min(by_number) if first is None else first
    missing = sorted(set(range(start, max(by_number))) - set(by_number))
    if not missing:
        return
    part = _NUMBERED.fullmatch(by_number[min(by_number)])
    assert part is not None
    names = [
        f"{part['prefix']}{number:0{len(part['number'])}d}.{part['suffix']}"
        for number in missing[:NUM_NAMED]
    ]
    if len(missing) > NUM_NAMED:
        names.append(f"and {len(missing) - NUM_NAMED} more")
    raise ValueError(
        f"{folder} lacks {', '.join(names)}; copy what is missing there: layers must be numbered "
        f"without a gap from {start} to {max(by_number)}"
    )


def read_layer(path: Path) -> TiffLayer:
    """Open a layer: read and check its header.

    Raises:
        ValueError: If it is truncated, or no layer that can be read.
    """
    try:
        with named_when_unreadable(path), tifffile.TiffFile(path) as tif:
            num_pages, page = len(tif.pages), tif.pages[0]
            _check_complete(path, page)
            _check_page(path, page, num_pages)
            dtype = np.dtype(tif.byteorder + page.dtype.char)
            offset = page.dataoffsets[0] if page.is_final else None
            return TiffLayer(path, page.shape, dtype, offset)
    except (tifffile.TiffFileError, struct.error, IndexError) as error:
        raise ValueError(f"{path} is not a readable TIFF ({error}); copy it again") from error


def _check_page(path: Path, page: tifffile.TiffPage, num_pages: int) -> None:
    """Raise ValueError unless a page is one channel of uint8 or uint16 that can be decoded."""
    kind = (num_pages, len(page.shape), page.dtype, page.bitspersample)
    if kind not in ((1, 2, np.uint8, 8), (1, 2, np.uint16, 16)):
        raise ValueError(
            f"{path} holds {num_pages} page(s) of shape {page.shape}, {page.bitspersample}-bit "
            f"{page.dtype}; a layer is one page with one channel of uint8 or uint16: convert it"
        )
    has_codec = page.compression in tifffile.TIFF.DECOMPRESSORS
    if not has_codec or page.predictor not in tifffile.TIFF.UNPREDICTORS:
        codec = getattr(page.compression, "name", page.compression)
        raise ValueError(
            f"{path} is compressed ({codec}) and its codec is missing; pip install imagecodecs"
        )


def _check_complete(path: Path, page: tifffile.TiffPage) -> None:
    """Raise ValueError if voxels lie past the end of the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if not len(offsets) == len(counts) == math.prod(page.chunked):
        raise ValueError(f"{path} is damaged: its header is incomplete; copy it again")
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if page.is_final:
        end = max(end, offsets[0] + page.nbytes)
    size = path.stat().st_size
    if size < end:
        raise ValueError(f"{path} is truncated: {size} of {end} bytes; copy it again")
