"""How similar a map looks to its label: SSIM, which is not how well ink is found.

It is here to be looked at beside F0.5: most of a label is empty, so that a map with no ink at all
is already similar to it.
"""

from __future__ import annotations

import cv2
import numpy as np

SIGMA_PX = 1.5
RADIUS_PX = 5  # an 11 x 11 window
C1, C2 = 0.01**2, 0.03**2  # for values in 0..1


class StructuralSimilarity:
    """Mean SSIM of two maps over valid pixels, taken in bands of rows from the top down.

    The window is Gaussian, 11 x 11 with a standard deviation of 1.5 pixels; beyond its edge the map
    is mirrored. A few rows are held back until those below them are known.

    Args:
        height: Rows of the whole map.

    Reference: Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity, IEEE Transactions on Image Processing 2004, equation 13.
    """

    def __init__(self, height: int) -> None:
        self._height = height
        self._rows = 0  # counted so far
        self._top = 0  # first row that is held
        self._held: list[np.ndarray] = []  # first, second, valid: float64 (3, rows, X)
        self._sum = 0.0
        self._count = 0

    def add(self, first_YX: np.ndarray, second_YX: np.ndarray, valid_YX: np.ndarray) -> None:
        """Take the next rows: two maps of 0..1 and the pixels that count."""
        self._held.append(np.stack([first_YX, second_YX, valid_YX]).astype(np.float64))
        rows = np.concatenate(self._held, axis=1)
        stop = self._top + rows.shape[1]
        ready = stop if stop == self._height else max(stop - RADIUS_PX, self._rows)
        similarity = _similarity(rows[0], rows[1])
        chosen = slice(self._rows - self._top, ready - self._top)
        is_valid = rows[2, chosen] > 0
        self._sum += float(similarity[chosen][is_valid].sum())
        self._count += int(is_valid.sum())
        top = max(ready - RADIUS_PX, 0)
        self._held, self._rows, self._top = [rows[:, top - self._top :]], ready, top

    def mean(self) -> float:
        """Return the mean SSIM, in -1..1; 1 where no pixel counts."""
        return self._sum / self._count if self._count else 1.0


def _similarity(first_YX: np.ndarray, second_YX: np.ndarray) -> np.ndarray:
    """Return the SSIM of each pixel (Y, X)."""
    mean_1, mean_2 = _smooth(first_YX), _smooth(second_YX)
    var_1 = _smooth(first_YX**2) - mean_1**2
    var_2 = _smooth(second_YX**2) - mean_2**2
    covariance = _smooth(first_YX * second_YX) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1**2 + mean_2**2 + C1)
    structure: np.ndarray = (2 * covariance + C2) / (var_1 + var_2 + C2)
    return luminance * structure


def _smooth(map_YX: np.ndarray) -> np.ndarray:
    side = 2 * RADIUS_PX + 1
    return cv2.GaussianBlur(map_YX, (side, side), SIGMA_PX, borderType=cv2.BORDER_REFLECT_101)
