"""All voxels of a fragment counted in one pass, with and without ink, in bounded memory.

The volume is read once in bands of rows. For the ink label and for copies of it that are shifted
far away, every layer's histogram under the label is counted; eight labels at a time, as their bits
make one number per pixel and one joint histogram of value and number tells all eight. The same pass
averages each layer over square blocks, from which the depth of the sheet follows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from vesuvius.fragment import Fragment, VolumeReader
from vesuvius.statistics import NUM_BINS, smooth_profiles

BLOCK = 32  # px, side of the blocks of all coarse maps
BAND_BYTES = 128 * 2**20  # voxels of a band
MAX_THREADS = 8
BAND_PIXELS = 2**23  # of a layer in a band: cv2 counts in float32, exact up to 2**24

_BITS_OF_CODES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over a fragment has counted.

    Attributes:
        papyrus: int64 (Z, 256), voxels of each value and layer inside the papyrus mask.
        ink: int64 (Z, 256), those under the ink label, or None if no ink is labelled on papyrus.
        shifted_ink: int64 (S, Z, 256), those under each shifted label; S is 0 without a label.
        block_pixels: int64 (rows, columns), papyrus pixels of each block.
        block_ink: int64 (rows, columns), ink pixels on papyrus of each block.
        block_means: float64 (Z, rows, columns), mean intensity of each layer over the papyrus of
            the block, 0 without papyrus.
    """

    papyrus: np.ndarray
    ink: np.ndarray | None
    shifted_ink: np.ndarray
    block_pixels: np.ndarray
    block_ink: np.ndarray
    block_means: np.ndarray

    @cached_property
    def depth_map(self) -> np.ndarray:
        """The layer where each block's smoothed z profile peaks, float64, NaN without papyrus."""
        depth = smooth_profiles(self.block_means).argmax(axis=0)
        return np.where(self.block_pixels > 0, depth, np.nan)


class _Counter:
    """Counts bands into a survey.

    Args:
        shape: (Z, Y, X) of the volume.
        num_labels: How many labels there are, the shifted ones included.
        threads: Count the layers of a band.
    """

    def __init__(self, shape: tuple[int, int, int], num_labels: int, threads: Executor) -> None:
        num_layers, height, width = shape
        blocks = -(-height // BLOCK), -(-width // BLOCK)
        self._threads = threads
        self.papyrus = np.zeros((num_layers, NUM_BINS), np.int64)
        # Float64 holds these counts exactly and takes those of cv2, float32, without a copy.
        self.joint = np.zeros((num_layers, -(-num_labels // 8), NUM_BINS, 256))
        self.block_pixels = np.zeros(blocks, np.int64)
        self.block_ink = np.zeros(blocks, np.int64)
        self.block_sums = np.zeros((num_layers, *blocks), np.int64)

    def add(self, y_start: int, band: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> None:
        """Count a band uint8 (Z, rows, X) under its mask and labels, bool (labels, rows, X)."""
        rows = slice(y_start // BLOCK, -(-(y_start + len(mask)) // BLOCK))
        inside = mask.astype(np.uint8)
        codes = np.packbits(labels, axis=0)
        self.block_pixels[rows] = _block_sums(inside)
        if len(labels):
            self.block_ink[rows] = _block_sums(labels[0])

        def count_layer(z: int) -> None:
            self.papyrus[z] += _count([band[z]], inside)[:, 0].astype(np.int64)
            for joint, code in zip(self.joint[z], codes, strict=True):
                joint += _count([band[z], code], inside)
            self.block_sums[z, rows] = _block_sums(band[z] * inside)

        for _ in self._threads.map(count_layer, range(len(band))):
            pass  # map raises what a layer raised only when its result is taken

    def under_labels(self, num_labels: int) -> np.ndarray:
        """Return int64 (labels, Z, 256), voxels of each value under each label."""
        counts_ZCVB = self.joint @ _BITS_OF_CODES  # code byte C, value V, bit B
        counts_CBZV = counts_ZCVB.transpose(1, 3, 0, 2).astype(np.int64)
        return counts_CBZV.reshape(-1, *self.papyrus.shape)[:num_labels]


def survey(
    fragment: Fragment, offsets: np.ndarray, advance: Callable[[int], object] = lambda rows: None
) -> Survey:
    """Count the voxels of a fragment.

    Args:
        fragment: With or without an ink label.
        offsets: int (S, 2), rows and columns by which copies of the label are shifted, around the
            edges; not used without a label.
        advance: Told the rows that are done.
    """
    label = fragment.ink_label
    offsets = np.array([(0, 0), *offsets]) if label is not None else np.zeros((0, 2), int)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        counter = _Counter(fragment.volume.shape, len(offsets), threads)
        _count_bands(fragment, offsets, counter, advance)
    under = counter.under_labels(len(offsets))
    return Survey(
        papyrus=counter.papyrus,
        ink=under[0] if len(under) and under[0].any() else None,
        shifted_ink=under[1:],
        block_pixels=counter.block_pixels,
        block_ink=counter.block_ink,
        block_means=counter.block_sums / np.maximum(counter.block_pixels, 1),
    )


def _count_bands(
    fragment: Fragment, offsets: np.ndarray, counter: _Counter, advance: Callable[[int], object]
) -> None:
    """Read the volume once and count it under the label, shifted by each of the offsets."""
    for y_start, y_stop in _bands(fragment.volume):
        mask = np.asarray(fragment.papyrus_mask[y_start:y_stop])
        if mask.any():
            labels = np.empty((len(offsets), *mask.shape), bool)
            for out, offset in zip(labels, offsets, strict=True):
                out[:] = shifted(fragment, y_start, y_stop, offset)
            band = fragment.volume.read(0, fragment.volume.shape[0], y_start, y_stop)
            counter.add(y_start, band, mask, labels)
        advance(y_stop - y_start)


def shifted(fragment: Fragment, y_start: int, y_stop: int, offset: np.ndarray) -> np.ndarray:
    """Return rows of the ink on papyrus, shifted around the edges: bool (rows, X).

    Args:
        fragment: With an ink label.
        y_start: First row.
        y_stop: One past the last row.
        offset: Rows and columns, downwards and to the right.
    """
    assert fragment.ink_label is not None
    dy, dx = (int(step) for step in offset)
    rows = np.arange(y_start - dy, y_stop - dy) % len(fragment.papyrus_mask)
    return np.roll(fragment.ink_label[rows] & fragment.papyrus_mask[rows], dx, axis=1)


def draw_offsets(size: tuple[int, int], num_shifts: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draw shifts (S, 2) for a label of this size (Y, X): far along y, any along x.

    Every shift moves by a quarter to three quarters of the height, so what lies under the label
    afterwards is at least a quarter of the height away from where it was.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    dy = rng.integers(-(-height // 4), height * 3 // 4, num_shifts, endpoint=True)
    return np.stack([dy, rng.integers(0, width, num_shifts)], axis=1)


def _bands(volume: VolumeReader) -> Iterator[tuple[int, int]]:
    """Yield row ranges of whole blocks that keep a band within its bounds."""
    num_layers, height, width = volume.shape
    rows = min(BAND_BYTES // num_layers, BAND_PIXELS) // width
    rows = max(rows // BLOCK, 1) * BLOCK
    for y_start in range(0, height, rows):
        yield y_start, min(y_start + rows, height)


def _count(images: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return the joint histogram of one or two uint8 images (Y, X) under a mask, float32.

    Its shape is (256, 1) or (256, 256).
    """
    axes = len(images)
    return cv2.calcHist(images, list(range(axes)), mask, [NUM_BINS] * axes, [0, NUM_BINS] * axes)


def _block_sums(map_YX: np.ndarray) -> np.ndarray:
    """Return the sums of a map (Y, X) over blocks, those at the end cut off by its edge."""
    for axis in (0, 1):  # a sum is at most 255 * 32 * 32
        starts = np.arange(0, map_YX.shape[axis], BLOCK)
        map_YX = np.add.reduceat(map_YX, starts, axis=axis, dtype=np.uint32)
    return map_YX
