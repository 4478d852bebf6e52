"""Which pixels of a patch count in the loss: labelled papyrus, but for bands along its edges.

A label drawn by hand on a photograph is a few pixels off, and at the rim of the papyrus it says
little; what lies that near to an edge can be left out of the loss. Scores count it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelConfig:
    """What of the label is not trusted.

    Args:
        edge_band: Pixels on both sides of the edges of ink that do not count; 0 counts all.
        mask_band: Pixels inside the edges of labelled papyrus that do not count; 0 counts all.
    """

    edge_band: int = 0
    mask_band: int = 0

    def __post_init__(self) -> None:
        for name in ("edge_band", "mask_band"):
            if getattr(self, name) < 0:
                raise ValueError(f"labels.{name} is {getattr(self, name)}; it is at least 0")


def patch_maps(
    label_YX: NDArray[np.bool_],
    papyrus_YX: NDArray[np.bool_],
    corner: tuple[int, int],
    patch_size: int,
    config: LabelConfig,
) -> NDArray[np.uint8]:
    """Return label and loss mask of a patch, (Y, X, 2) of 0 and 1, or of a photograph's greys.

    Args:
        label_YX: Ink label of the whole fragment; a photograph, uint8, if no `edge_band` is set.
        papyrus_YX: Its labelled papyrus.
        corner: (y, x) of the patch.
        patch_size: Rows and columns of it, inside the fragment.
        config: Which bands do not count. Where the fragment ends is no edge.
    """
    margin = max(config.edge_band, config.mask_band)
    top, left = (min(start, margin) for start in corner)
    y, x = corner[0] - top, corner[1] - left
    around = (
        slice(y, y + top + patch_size + margin),
        slice(x, x + left + patch_size + margin),
    )
    label, counts = (
        np.asarray(map_YX)[around].astype(np.uint8) for map_YX in (label_YX, papyrus_YX)
    )
    if config.mask_band:
        counts = cv2.erode(counts, _square(config.mask_band))
    if config.edge_band:
        square = _square(config.edge_band)
        counts[cv2.dilate(label, square) != cv2.erode(label, square)] = 0
    maps = np.stack([label, counts], axis=-1)
    return maps[top : top + patch_size, left : left + patch_size]


def _square(radius: int) -> NDArray[np.uint8]:
    """Return the neighbourhood of pixels at most `radius` away along y and x."""
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
