"""Run-length encoding of ink masks as the competition defines it.

A mask is read row by row (row-major) and its pixels are numbered from 1. Each run of ink becomes a
pair `start length`; pairs are separated by spaces, sorted, and do not overlap.

Worked example: the mask [[1, 1, 0], [0, 1, 1]] is the pixel row 1 1 0 0 1 1, hence "1 2 5 2".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIGITS_AND_SPACES = b"0123456789 \t\r\n"


def encode(mask_YX: NDArray[np.bool_]) -> str:
    """Return the runs of ink as text.

    Args:
        mask_YX: (Y, X), bool, or an integer type where everything but zero is ink.

    Returns:
        `start length` pairs, 1-indexed and row-major; the empty string for a mask without ink.

    Raises:
        ValueError: The mask is not 2D, or holds floats (threshold them first).
    """
    mask_YX = np.asarray(mask_YX)
    if mask_YX.ndim != 2:
        raise ValueError(f"mask has shape {mask_YX.shape}; a mask to encode is 2D (Y, X)")
    if mask_YX.dtype.kind not in "bui":
        raise ValueError(f"mask is {mask_YX.dtype}, not bool; apply a threshold first: prob >= t")
    pixels = mask_YX.astype(bool, copy=False).ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    # As if a zero stood before the first and after the last pixel, without copying the mask.
    first = [0] if pixels[:1].any() else []
    last = [pixels.size] if pixels[-1:].any() else []
    runs = np.concatenate([first, changes, last]).astype(np.int64).reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    runs[:, 0] += 1
    return " ".join(map(str, runs.ravel().tolist()))


def decode(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask that a run-length text describes.

    Args:
        text: `start length` pairs, 1-indexed and row-major; empty for no ink.
        shape: height and width of the mask.

    Returns:
        (Y, X) bool.

    Raises:
        ValueError: The text is no run-length encoding of such a mask; names the place.
    """
    height, width = shape
    starts, lengths = _checked_runs(_parse(text), height, width)
    edges = np.zeros(2 * starts.size + 2, dtype=np.int64)
    edges[1:-1:2] = starts - 1
    edges[2:-1:2] = starts - 1 + lengths
    edges[-1] = height * width
    is_ink = np.arange(edges.size - 1) % 2 == 1
    return np.repeat(is_ink, np.diff(edges)).reshape(height, width)


def _parse(text: str) -> NDArray[np.int64]:
    """Return the numbers of a text of whole numbers."""
    text = text.strip()
    if not text:
        return np.zeros(0, dtype=np.int64)
    if text.encode().translate(None, _DIGITS_AND_SPACES):
        entries = text.split()
        for place, entry in enumerate(entries, 1):
            if not (entry.isascii() and entry.isdigit()):
                raise ValueError(
                    f"RLE number {place} of {len(entries)} is {entry[:40]!r}; "
                    "starts and lengths are whole numbers from 1, separated by spaces"
                )
        text = " ".join(entries)  # only unusual white space, such as a no-break space
    # Seven times as fast as int(); what it would misread is excluded above, and what does not fit
    # 64 bits becomes the largest number, which no image reaches.
    return np.fromstring(text, dtype=np.int64, sep=" ")


def _checked_runs(
    numbers: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and lengths, after making sure that they fit the image and each other."""
    if numbers.size % 2:
        raise ValueError(
            f"RLE has {numbers.size} numbers, an odd count; it is made of `start length` pairs "
            "(is the end cut off?)"
        )
    starts, lengths = numbers[::2], numbers[1::2]
    size = height * width
    # Written so that no sum can overflow: start + length - 1 <= size.
    last_start = size + 1 - lengths
    _refuse(starts < 1, starts, lengths, "starts before pixel 1 (RLE counts from 1, not from 0)")
    _refuse(lengths < 1, starts, lengths, "has no pixel; a length is at least 1")
    _refuse(
        starts > last_start,
        starts,
        lengths,
        f"ends past pixel {size}, the last of {height} x {width} (height x width); "
        "is this the right image?",
    )
    overlaps = np.zeros(starts.shape, dtype=bool)
    overlaps[1:] = starts[1:] < starts[:-1] + lengths[:-1]
    _refuse(overlaps, starts, lengths, "begins before the end of the pair before it; sort the runs")
    return starts, lengths


def _refuse(
    is_wrong: NDArray[np.bool_], starts: NDArray[np.int64], lengths: NDArray[np.int64], why: str
) -> None:
    """Raise a ValueError that names the first wrong pair, if there is one."""
    if is_wrong.any():
        i = int(is_wrong.argmax())
        raise ValueError(
            f"RLE pair {i + 1} of {starts.size} (start {starts[i]}, length {lengths[i]}) {why}"
        )
