"""Planes of stacks as small pictures, uint8.

Shape legend: Y X pixels.
"""

from __future__ import annotations

import numpy as np

from core.pictures import shrink

SIDE = 512
CLIPPED = 0.5  # per cent of the pixels that may be black, or white
ERROR_WHITE = 2.0  # standard deviations of the target


def contrast(plane: np.ndarray) -> tuple[float, float]:
    """Return the values of a plane that are black and white in its picture."""
    low, high = np.percentile(plane, (CLIPPED, 100 - CLIPPED))
    return float(low), float(high)


def gray(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return a plane as a picture (Y, X), black and white at the limits."""
    low, high = limits
    return shrink(plane - low, SIDE, white=max(high - low, 1e-6))


def error(difference: np.ndarray) -> np.ndarray:
    """Return z-scored differences as a picture (Y, X, 3): above 0 red, below blue, 0 white."""
    above, below = (
        shrink(np.maximum(sign * difference, 0), SIDE, white=ERROR_WHITE) for sign in (1, -1)
    )
    return 255 - np.stack([below, np.maximum(above, below), above], axis=2)
