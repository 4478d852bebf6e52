"""How far two histograms of intensity lie apart, in four ways.

All functions take counts (..., V) of V equally spaced values, compare them along the last axis and
scale each to a sum of 1. Where one of the two is empty the answer is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def shares(counts: np.ndarray) -> FloatArray:
    """Return counts divided by their sum along the last axis, NaN if that is 0."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=-1, keepdims=True)


def total_variation(first: np.ndarray, second: np.ndarray) -> FloatArray:
    """Return the share of voxels, 0..1, that would have to change to make both alike.

    It is sum |p - q| / 2, and 1 minus the overlap of the two.
    """
    p, q = shares(first), shares(second)
    return np.abs(p - q).sum(axis=-1) / 2


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> FloatArray:
    """Return the Jensen-Shannon divergence, 0..1 bits.

    That is what one voxel tells about its class where both classes are equally frequent.

    Reference:
        Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37, 1991.
    """
    p, q = shares(first), shares(second)
    middle = (p + q) / 2
    return (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2


def wasserstein(first: np.ndarray, second: np.ndarray) -> FloatArray:
    """Return the Wasserstein-1 distance: mean way, in steps of value, from one to the other."""
    p, q = shares(first), shares(second)
    return np.abs(np.cumsum(p - q, axis=-1)).sum(axis=-1)


def auc(positive: np.ndarray, negative: np.ndarray) -> FloatArray:
    """Return the area under the ROC curve of the value as a classifier, 0..1.

    It is the probability that a positive voxel is brighter than a negative one, ties counted half:
    .5 tells nothing, below .5 positive voxels are the darker ones.
    """
    p, q = shares(positive), shares(negative)
    darker = np.cumsum(q, axis=-1) - q / 2
    return (p * darker).sum(axis=-1)


def contrast(first: np.ndarray, second: np.ndarray) -> FloatArray:
    """Return (mean of first - mean of second) / pooled standard deviation, Cohen's d.

    It is infinite, or NaN where the means are alike too, if each holds one value only.
    """
    (mean_p, variance_p), (mean_q, variance_q) = moments(first), moments(second)
    num_p, num_q = first.sum(axis=-1), second.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (num_p * variance_p + num_q * variance_q) / (num_p + num_q)
        return (mean_p - mean_q) / np.sqrt(pooled)


def moments(counts: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of the values."""
    p, values = shares(counts), np.arange(counts.shape[-1])
    mean = p @ values
    return mean, (p * (values - mean[..., None]) ** 2).sum(axis=-1)


def _relative_entropy(p: FloatArray, q: FloatArray) -> FloatArray:
    """Return sum p log2(p / q), where p = 0 counts 0; q is 0 only where p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.where(np.isnan(p), np.nan, p * np.log2(ratio)).sum(axis=-1)
