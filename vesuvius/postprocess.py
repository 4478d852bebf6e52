"""Cleaning an ink mask by its connected components: hysteresis, and small ones removed.

A component is a set of ink pixels that touch by side or corner. Components are found in bands of
rows and joined across them, so beside the masks, a byte per pixel, memory is that of a band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BAND_ROWS = 512


def keep_components(
    mask_YX: NDArray[np.bool_],
    min_pixels: int = 1,
    seeds_YX: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return the mask with those components only that are large enough and hold a seed.

    With `mask_YX` the pixels above a low threshold and `seeds_YX` those above a high one this is
    hysteresis: faint ink stays where it is connected to clear ink.

    Args:
        mask_YX: Ink mask, (Y, X) bool.
        min_pixels: Fewest pixels of a component that is kept.
        seeds_YX: Pixels one of which a component must hold, (Y, X) bool; None asks for no seed.

    Raises:
        ValueError: If `min_pixels` is below 1.

    Reference: Canny, A Computational Approach to Edge Detection, 1986, for hysteresis.
    """
    if min_pixels < 1:
        raise ValueError(f"min_pixels {min_pixels} is below 1; a component has at least one pixel")
    parents = [0]  # component 0 is the background
    pixels, is_seeded = [np.zeros(1, np.int64)], [np.zeros(1, bool)]
    above = np.zeros(mask_YX.shape[1], np.int64)
    for rows, band in _labelled(mask_YX):
        parents.extend(range(len(parents), len(parents) + band.count))
        pixels.append(band.counted(band.labels))
        if seeds_YX is not None:
            is_seeded.append(band.counted(band.labels[seeds_YX[rows]]) > 0)
        _join(parents, above, band.components(band.labels[0]))
        above = band.components(band.labels[-1])
    roots = np.array([_root(parents, component) for component in range(len(parents))])
    is_kept = np.bincount(roots, np.concatenate(pixels))[roots] >= min_pixels
    if seeds_YX is not None:
        is_kept &= np.bincount(roots, np.concatenate(is_seeded))[roots] > 0
    is_kept[0] = False
    kept_YX = np.empty_like(mask_YX)
    for rows, band in _labelled(mask_YX):
        kept_YX[rows] = is_kept[band.components(band.labels)]
    return kept_YX


@dataclass(frozen=True, eq=False)
class _Band:
    """The components of a band of rows.

    Attributes:
        labels: 0 for the background, 1..count for its components, int32 (rows, X).
        count: How many there are.
        before: How many there are in the bands before.
    """

    labels: np.ndarray
    count: int
    before: int

    def counted(self, labels: np.ndarray) -> np.ndarray:
        """Return how often each component is among labels, int64 (count,)."""
        return np.bincount(labels.ravel(), minlength=self.count + 1)[1:]

    def components(self, labels: np.ndarray) -> np.ndarray:
        """Return the numbers among all bands of labels of this one."""
        return np.where(labels > 0, labels.astype(np.int64) + self.before, 0)


def _labelled(mask_YX: NDArray[np.bool_]) -> Iterator[tuple[slice, _Band]]:
    """Yield bands of rows and their components."""
    before = 0
    for start in range(0, len(mask_YX), BAND_ROWS):
        rows = slice(start, min(start + BAND_ROWS, len(mask_YX)))
        count, labels = cv2.connectedComponents(mask_YX[rows].astype(np.uint8), connectivity=8)
        yield rows, _Band(labels, count - 1, before)
        before += count - 1


def _join(parents: list[int], above_X: np.ndarray, below_X: np.ndarray) -> None:
    """Unite the components that touch across the edge of two bands, by side or corner."""
    width = len(above_X)
    pairs = set()
    for shift in (-1, 0, 1):
        upper = above_X[max(shift, 0) : width + min(shift, 0)]
        lower = below_X[max(-shift, 0) : width + min(-shift, 0)]
        touch = (upper > 0) & (lower > 0)
        pairs.update(zip(upper[touch].tolist(), lower[touch].tolist(), strict=True))
    for upper, lower in sorted(pairs):
        first, second = sorted((_root(parents, upper), _root(parents, lower)))
        parents[second] = first


def _root(parents: list[int], component: int) -> int:
    """Return the first of the components that this one is united with, and shorten the way."""
    while parents[component] != component:
        parents[component] = parents[parents[component]]
        component = parents[component]
    return component
