"""Maps on disk: uncompressed TIFFs of one size, written and read band by band of rows.

They are written through a file, not through memory: a full disk is then an error, not a crash.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import named_when_full
from core.inference import Journal


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


def _damaged(path: Path, reason: str) -> str:
    """Return the error text for a file that cannot be read."""
    return f"{path} is damaged ({reason}); delete its folder or choose another --out"
