"""The loss of fluorescence prediction: the squared error where the label is valid.

Shape legend: N samples, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.losses import valid_mean


def squared_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean squared error over all valid voxels of a batch.

    Every sample has one label, that of its task. What ignored voxels hold, NaN included, changes
    neither value nor gradient.

    Args:
        predicted: Predictions (N, 1, *S).
        target: Labels (N, 1, *S), any dtype.
        valid: Nonzero where a voxel counts, any dtype; all do if None.

    Returns:
        A scalar; 0 with zero gradient if no voxel is valid.

    Raises:
        ValueError: If the shapes differ.
    """
    for name, given in {"target": target, "valid": valid}.items():
        if given is not None and given.shape != predicted.shape:
            raise ValueError(
                f"{name} is {tuple(given.shape)}, the prediction is {tuple(predicted.shape)}; "
                "give the same shape"
            )
    is_valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid != 0
    difference = torch.where(is_valid, predicted - target.to(predicted.dtype), 0)
    return valid_mean(difference.square(), is_valid)
