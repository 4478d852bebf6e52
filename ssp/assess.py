"""One prepared image predicted whole, scored and looked at.

Shape legend: Z Y X voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.pictures import side_by_side
from core.uncertainty import Member
from ssp.mapping import Field, OneChannel, map_image
from ssp.pictures import contrast, error, gray
from ssp.prepared import Image
from ssp.scores import ImageScores


@dataclass(frozen=True, eq=False)
class Assessment:
    """What was found of one image.

    Attributes:
        scores: By the names of `ssp.scores.METRICS`.
        signal: Its middle plane (Y, X), float32.
        target: The same plane of the target, or the target if it is a map.
        predicted: Likewise of the prediction.
    """

    scores: Mapping[str, float]
    signal: np.ndarray
    target: np.ndarray
    predicted: np.ndarray

    def picture(self) -> np.ndarray:
        """Return signal, target and prediction beside each other, uint8 (Y, X).

        Target and prediction share one scale, that of the target.
        """
        limits = contrast(self.target)
        return side_by_side(
            gray(self.signal, contrast(self.signal)),
            gray(self.target, limits),
            gray(self.predicted, limits),
        )

    def picture_with_error(self) -> np.ndarray:
        """Return the same with the error behind it, uint8 (Y, X, 3).

        What is too bright is red and what is too dark blue; full colour is two standard deviations
        of the whole target.
        """
        return side_by_side(self.picture(), error(self.predicted - self.target))


def assess(
    plain: nn.Module,
    image: Image,
    field: Field,
    device: torch.device | str,
    batch_size: int = 1,
    advance: Callable[[int], object] | None = None,
) -> Assessment:
    """Predict one image, score it and keep one plane.

    Args:
        plain: The network for the task of the image.
        image: The image.
        field: How it is tiled.
        device: Where to compute.
        batch_size: Tiles predicted at once.
        advance: Told of tiles done.

    Raises:
        ValueError: If the target is constant.
    """
    signal, target = image.signal.open(), image.target.open()
    middle = image.signal.shape[0] // 2
    planes = target[None] if field.is_map else target
    low = min(float(plane.min()) for plane in planes)
    high = max(float(plane.max()) for plane in planes)
    scores = ImageScores(low, high)
    kept = np.empty(image.signal.shape[1:], np.float32)

    def write(start: int, stop: int, values: np.ndarray) -> None:
        if field.is_map:
            kept[start:stop] = values[0]
            return
        scores.add(values[0], target[start:stop])
        if start <= middle < stop:
            kept[:] = values[0][middle - start]

    map_image(
        [Member(OneChannel(plain))], signal, field, write, device, batch_size, advance=advance
    )
    if field.is_map:
        scores.add(kept[None], target[None])
    seen = target if field.is_map else target[middle]
    return Assessment(
        scores.result(), signal[middle].astype(np.float32), seen.astype(np.float32), kept
    )
