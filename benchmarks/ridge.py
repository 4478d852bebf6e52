"""Ridge regression of fluorescence on blurs and local deviations: what learning must beat.

Every pixel is told by each plane of the signal at several scales: the plane blurred, and the
standard deviation around it. One linear map of these features per structure, its penalty chosen by
cross-validation over blocks of rows, is a strong and cheap opponent where there is one image.

Shape legend: Z planes, Y rows, X columns, F features, P pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

BLURS = (0, 1, 2, 4, 8, 16)  # sigma, px
SPREADS = (1, 2, 4, 8, 16)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_BLOCKS = 4


def features(signal_ZYX: np.ndarray) -> np.ndarray:
    """Return the features of each pixel, float32 (Y, X, F), of a signal z-scored as a whole."""
    signal_ZYX = (signal_ZYX - signal_ZYX.mean()) / signal_ZYX.std()
    found = []
    for plane in signal_ZYX.astype(np.float32):
        found += [gaussian_filter(plane, sigma) if sigma else plane for sigma in BLURS]
        for sigma in SPREADS:
            square = gaussian_filter(plane**2, sigma) - gaussian_filter(plane, sigma) ** 2
            found.append(np.sqrt(np.maximum(square, 0)))
    return np.stack(found, axis=-1)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map of standardised features.

    Attributes:
        weights: (F,).
        mean: Of each feature (F,).
        std: Of each feature (F,).
        offset: Mean of the target.
    """

    weights: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    offset: float

    def __call__(self, features_PF: np.ndarray) -> np.ndarray:
        """Return the prediction (P,)."""
        return ((features_PF - self.mean) / self.std) @ self.weights + self.offset


def fit(features_PF: np.ndarray, target_P: np.ndarray, penalty: float) -> Ridge:
    """Return the map of least squared error, its weights held back by a penalty."""
    mean, std, offset = features_PF.mean(0), features_PF.std(0) + 1e-9, float(target_P.mean())
    scored = ((features_PF - mean) / std).astype(np.float64)
    gram = scored.T @ scored / len(scored) + penalty * np.eye(scored.shape[1])
    weights = np.linalg.solve(gram, scored.T @ (target_P - offset) / len(scored))
    return Ridge(weights, mean, std, offset)


def fit_best(features_YXF: np.ndarray, target_YX: np.ndarray) -> tuple[Ridge, float]:
    """Return the map of the penalty that predicts held-out blocks of rows best, and that penalty.

    The best is that of the highest Pearson correlation, over all blocks together.
    """
    blocks = np.array_split(np.arange(len(target_YX)), NUM_BLOCKS)
    scores = []
    for penalty in PENALTIES:
        predicted = np.empty(target_YX.shape)
        for block in blocks:
            others = np.setdiff1d(np.arange(len(target_YX)), block)
            ridge = fit(_flat(features_YXF[others]), target_YX[others].ravel(), penalty)
            predicted[block] = ridge(_flat(features_YXF[block])).reshape(len(block), -1)
        scores.append(pearson(predicted, target_YX))
    best = PENALTIES[int(np.argmax(scores))]
    return fit(_flat(features_YXF), target_YX.ravel(), best), best


def pearson(predicted: np.ndarray, target: np.ndarray) -> float:
    """Return Pearson's correlation of two images."""
    return float(np.corrcoef(predicted.ravel(), target.ravel())[0, 1])


def _flat(features_YXF: np.ndarray) -> np.ndarray:
    return features_YXF.reshape(-1, features_YXF.shape[-1])
