"""Maps on disk, written and read band by band of rows: uncompressed TIFFs, or a Zarr array.

They are written through a file, not through memory: a full disk is then an error, not a crash.
Several processes may write a Zarr array at once if none writes a chunk of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import named_when_full
from core.inference import Journal

BAND_ROWS = 256


class MapFile:
    """A TIFF of one map (Y, X), or of several (C, Y, X), a page for each.

    Args:
        path: The file, which must exist; see `create`.

    Attributes:
        path: The file.
        shape: (Y, X) or (C, Y, X).
        metadata: What `create` was told to store with it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no TIFF.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tifffile.TiffFile(path) as file:
                self.shape = file.series[0].shape
                self.metadata: dict[str, Any] = (file.shaped_metadata or ({},))[0]
                self._dtype = file.series[0].dtype.newbyteorder(file.byteorder)
                self._offset = file.pages.first.dataoffsets[0]
        except (tifffile.TiffFileError, LookupError) as error:  # without pages, or one without tags
            raise ValueError(_damaged(path, str(error))) from error

    @classmethod
    def create(
        cls, path: Path, shape: tuple[int, ...], dtype: type = np.float32, **metadata: Any
    ) -> MapFile:
        """Make the file, all zeros, in place of what was there, and its folder.

        Args:
            path: The file.
            shape: (Y, X) or (C, Y, X).
            dtype: Of the values.
            **metadata: Stored in the first page's description, as JSON.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with named_when_full(path):
            tifffile.imwrite(
                path, shape=shape, dtype=dtype, photometric="minisblack", metadata=metadata
            )
        return cls(path)

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        journal: Journal,
        shape: tuple[int, ...],
        dtype: type = np.float32,
        **metadata: Any,
    ) -> MapFile:
        """Make the file that a stream will fill, or find the one its journal tells of.

        Raises:
            ValueError: If there is a journal and no file, or the journal is of another prediction.
        """
        if journal.load() is None:
            return cls.create(path, shape, dtype, **metadata)
        if not path.exists():
            raise ValueError(
                f"{path} is gone but {path.parent} tells of a half-done prediction; "
                "delete that folder to start again"
            )
        return cls(path)

    def write(self, start: int, stop: int, values: np.ndarray) -> None:
        """Write the rows start..stop of every map, (C, rows, X).

        They are on the disk when this returns, so a power cut cannot lose rows that a journal,
        committed after them, tells of.
        """
        with named_when_full(self.path), self.path.open("r+b") as file:
            for page, rows in enumerate(values):
                file.seek(self._place(page, start))
                file.write(np.ascontiguousarray(rows, self._dtype).data)
            file.flush()
            os.fsync(file.fileno())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start..stop of every map, (C, rows, X).

        Raises:
            ValueError: If the file ends before them.
        """
        num_maps = int(np.prod(self.shape[:-2]))
        values = np.empty((num_maps, stop - start, self.shape[-1]), self._dtype)
        with self.path.open("rb") as file:
            for page, rows in enumerate(values):
                file.seek(self._place(page, start))
                if file.readinto(rows.data) != rows.nbytes:
                    raise ValueError(_damaged(self.path, "cut off"))
        return values

    def _place(self, page: int, row: int) -> int:
        """Return where a row of a map begins in the file: pages follow each other."""
        height, width = self.shape[-2:]
        return self._offset + (page * height + row) * width * self._dtype.itemsize


class ZarrMaps:
    """Maps (C, Y, X) in a Zarr array whose chunks are bands of rows, used like a `MapFile`.

    Args:
        path: The array, which must exist; see `create`.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self._path = path
        self._array: Any = zarr.open_array(path, mode="r+")

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: type, band_rows: int) -> ZarrMaps:
        """Make the array, all zeros.

        Args:
            path: The array, which must not exist.
            shape: (C, Y, X).
            dtype: Of the values.
            band_rows: Rows of a chunk.
        """
        import zarr

        chunks = (shape[0], min(band_rows, shape[1]), shape[2])
        zarr.create_array(path, shape=shape, chunks=chunks, dtype=dtype, compressors=None)
        return cls(path)

    def write(self, start: int, stop: int, values: np.ndarray) -> None:
        """Write the rows start..stop of every map, (C, rows, X); they are on the disk then."""
        height = self._array.chunks[1]
        with named_when_full(self._path):
            self._array[:, start:stop] = values
            for band in range(start // height, -(-stop // height)):
                chunk = self._path / self._array.metadata.encode_chunk_key((0, band, 0))
                if chunk.exists():  # one of zeros alone is left out
                    with chunk.open("rb") as file:
                        os.fsync(file.fileno())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start..stop of every map, (C, rows, X)."""
        rows: np.ndarray = self._array[:, start:stop]
        return rows


def bands(height: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that cover a map of that height."""
    for start in range(0, height, BAND_ROWS):
        yield start, min(start + BAND_ROWS, height)


def _damaged(path: Path, reason: str) -> str:
    """Return the error text for a file that cannot be read."""
    return f"{path} is damaged ({reason}); delete its folder or choose another --out"
