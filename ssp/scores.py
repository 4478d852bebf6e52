"""How close a prediction is to its target, image by image.

Shape legend: Z Y X voxels; a map is an image of one plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.losses import structural_similarity

ALL = "All"
METRICS = ("mse", "mae", "r2", "pearson", "ssim")
LOWER_IS_BETTER = ("mse", "mae")
ROUNDING = 1e-10  # of the squares: blending leaves a constant prediction constant to 1e-7


class ImageScores:
    """The scores of one image, taken plane by plane in any order.

    MSE, MAE, the coefficient of determination and Pearson's r are those of all voxels. SSIM is the
    mean over the planes of the structural similarity in the plane, of images scaled so that the
    target is in 0..1.

    Args:
        low: Lowest value of the target.
        high: Highest value of the target.

    Raises:
        ValueError: If the target is constant.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(f"the target is {low:g} everywhere; nothing of it can be scored")
        self._low, self._range = low, high - low
        self._sums = np.zeros(7)  # t, p, t t, p p, t p, |p - t|, (p - t)^2
        self._similarity = 0.0
        self._num_voxels = 0

    def add(self, predicted_ZYX: np.ndarray, target_ZYX: np.ndarray) -> None:
        """Take some planes of the prediction and of the target."""
        for predicted, target in zip(predicted_ZYX, target_ZYX, strict=True):
            p, t = predicted.astype(np.float64), target.astype(np.float64)
            terms = t, p, t * t, p * p, t * p, np.abs(p - t), np.square(p - t)
            self._sums += [float(term.sum()) for term in terms]
            scaled = (torch.from_numpy((x - self._low) / self._range)[None, None] for x in (p, t))
            self._similarity += float(structural_similarity(*scaled).sum())
            self._num_voxels += t.size

    def result(self) -> dict[str, float]:
        """Return the scores by the names of `METRICS`.

        Pearson's r of a constant prediction is 0.
        """
        t, p, tt, pp, tp, error, squared_error = self._sums / self._num_voxels
        target_variance, variance = tt - t * t, pp - p * p
        is_constant = variance <= ROUNDING * pp
        return {
            "mse": float(squared_error),
            "mae": float(error),
            "r2": float(1 - squared_error / target_variance),
            "pearson": 0.0
            if is_constant
            else float((tp - t * p) / np.sqrt(target_variance * variance)),
            "ssim": self._similarity / self._num_voxels,
        }


@dataclass(frozen=True)
class ScoredImage:
    """The scores of one image.

    Attributes:
        name: Of the image.
        task: Its task.
        scores: By metric.
    """

    name: str
    task: str
    scores: Mapping[str, float]


def summarize(images: Sequence[ScoredImage]) -> dict[str, dict[str, float]]:
    """Return the mean scores over the images of each task, and over all images, as "All".

    "All" is the mean over images, not over tasks, as in the paper.
    """
    tasks = dict.fromkeys(image.task for image in images)
    groups = {task: [image for image in images if image.task == task] for task in tasks}
    return {name: _mean(group) for name, group in (groups | {ALL: list(images)}).items()}


def improvement(scores: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Return by how many per cent scores are better than others, metric by metric of these scores.

    The paper's Delta_Imp is that of "All" over Multi-Net. NaN where the reference is 0.
    """
    found = {}
    for metric in scores:
        better, worse = scores[metric], reference[metric]
        if metric in LOWER_IS_BETTER:
            better, worse = worse, better
        gain = better - worse
        scale = abs(reference[metric])
        found[metric] = 100 * gain / scale if scale else float("nan")
    return found


def _mean(images: Iterable[ScoredImage]) -> dict[str, float]:
    rows = [image.scores for image in images]
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in METRICS}
