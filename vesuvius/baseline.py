"""What intensity alone can do: the opponent every ink model has to beat.

Ink is taken to be where the mean of a few layers, smoothed and with or without the slow background
removed, is brighter (or darker) than a threshold. Which layers, how smooth, which sign and which
threshold are fitted on training fragments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from core.metrics import ProbabilityHistogram
from vesuvius.fragment import Fragment
from vesuvius.statistics import VolumeStatistics, layer_histograms

LAYER_OFFSETS = range(-10, 11, 2)  # first layer, counted from the sheet's depth
NUM_LAYERS = (3, 9)
SMOOTHING_PX = (3.0, 8.0)
BACKGROUND_PX = (None, 129)
FULL_RANGE_STD = 8.0  # standard deviations that the scale of 0..1 spans
MARGIN_LAYERS = 26


@dataclass(frozen=True)
class IntensityBaseline:
    """A fitted baseline.

    Attributes:
        offset: First layer, counted from the sheet's depth.
        num_layers: Layers averaged.
        smoothing_px: Sigma of the Gaussian blur.
        background_px: Side of the square whose mean is subtracted as background, or None.
        sign: +1 if ink is brighter, -1 if it is darker.
        threshold: On the scale of `score`, 0..1.
        f05: F0.5 on what it was fitted on.
    """

    offset: int
    num_layers: int
    smoothing_px: float
    background_px: int | None
    sign: int
    threshold: float
    f05: float

    def predict(self, fragment: Fragment) -> np.ndarray:
        """Return the ink mask of a fragment, bool (Y, X)."""
        layers, depth = _layers_around_sheet(fragment)
        start = _first_layer(depth + self.offset, self.num_layers, len(layers))
        mean = _blur(layers[start : start + self.num_layers].mean(axis=0), self.smoothing_px)
        contrast = _without_background(mean, self.background_px, fragment.papyrus_mask)
        score = _score(self.sign * contrast, fragment.papyrus_mask)
        return (score >= self.threshold) & fragment.papyrus_mask


def fit_baseline(fragments: Sequence[Fragment]) -> IntensityBaseline:
    """Return the baseline with the best F0.5 where fragments are labelled, taken together.

    Every combination of the constants above is tried, so memory and time suit small fragments.
    """
    histograms: dict[tuple[int, int, float, int | None, int], ProbabilityHistogram] = {}
    for fragment in fragments:
        assert fragment.ink_label is not None
        mask, scored = fragment.papyrus_mask, fragment.labelled_papyrus
        for choice, contrast in _contrasts(fragment):
            for sign in (1, -1):
                histogram = histograms.setdefault((*choice, sign), ProbabilityHistogram())
                histogram.add(_score(sign * contrast, mask), fragment.ink_label, scored)
    fitted = [
        IntensityBaseline(*choice, *histogram.best_threshold())
        for choice, histogram in histograms.items()
    ]
    return max(fitted, key=lambda baseline: baseline.f05)


def _contrasts(
    fragment: Fragment,
) -> Iterator[tuple[tuple[int, int, float, int | None], np.ndarray]]:
    """Yield every choice of layers, smoothing and background with its map (Y, X)."""
    layers, depth = _layers_around_sheet(fragment)
    for offset, num_layers, smoothing_px in product(LAYER_OFFSETS, NUM_LAYERS, SMOOTHING_PX):
        start = _first_layer(depth + offset, num_layers, len(layers))
        mean = _blur(layers[start : start + num_layers].mean(axis=0), smoothing_px)
        for background_px in BACKGROUND_PX:
            contrast = _without_background(mean, background_px, fragment.papyrus_mask)
            yield (offset, num_layers, smoothing_px, background_px), contrast


def _layers_around_sheet(fragment: Fragment) -> tuple[np.ndarray, int]:
    """Return the layers near the sheet, float32 (Z, Y, X), and the sheet's depth among them."""
    num_layers, height, _ = fragment.volume.shape
    histograms = layer_histograms(fragment.volume, fragment.papyrus_mask)
    depth = VolumeStatistics(histograms).sheet_depth
    start, stop = max(depth - MARGIN_LAYERS, 0), min(depth + MARGIN_LAYERS, num_layers)
    return fragment.volume.read(start, stop, 0, height).astype(np.float32), depth - start


def _first_layer(wanted: int, num_layers: int, depth: int) -> int:
    return min(max(wanted, 0), max(depth - num_layers, 0))


def _blur(map_YX: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(map_YX, (0, 0), sigma)


def _without_background(
    map_YX: np.ndarray, side: int | None, papyrus_mask: np.ndarray
) -> np.ndarray:
    """Subtract the local mean over the papyrus, so that its edges do not count as contrast."""
    if side is None:
        return map_YX
    inside = papyrus_mask.astype(np.float32)
    papyrus = np.maximum(cv2.blur(inside, (side, side)), 1e-6)
    return map_YX - cv2.blur(map_YX * inside, (side, side)) / papyrus


def _score(contrast: np.ndarray, papyrus_mask: np.ndarray) -> np.ndarray:
    """Return the contrast in standard deviations of its fragment, as float64 0..1 (Y, X)."""
    values = contrast[papyrus_mask]
    standard = (contrast - values.mean(dtype=np.float64)) / max(float(values.std()), 1e-6)
    return np.clip(standard / FULL_RANGE_STD + 0.5, 0, 1)
