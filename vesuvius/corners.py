"""Where patches may lie in one piece: near edges of ink, on bare papyrus, anywhere on papyrus.

Corners are top-left corners of patches, (N, 2) in (y, x), counted in the piece. Label and mask are
the piece's own, (Y, X). Everything is counted over whole arrays: sums over patches come from
integral images, whose entry (y, x) is the sum over the rows before y and the columns before x.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CANNY_THRESHOLDS = (100, 200)  # on a label of 0 and 255
VOID_MIN_PAPYRUS = 0.5  # fraction of a void patch that is papyrus
VOID_MAX_DRAWS = 100  # per void patch wanted; where bare papyrus is rare, fewer are found


def patch_sums(
    integral: NDArray[np.int32], corners: NDArray[np.integer], patch_size: int
) -> NDArray[np.int32]:
    """Return the sum over each patch from an integral image.

    Args:
        integral: (Y + 1, X + 1).
        corners: Of the patches.
        patch_size: Rows and columns of a patch.
    """
    y, x = corners[:, 0], corners[:, 1]
    bottom, right = y + patch_size, x + patch_size
    return integral[bottom, right] - integral[y, right] - integral[bottom, x] + integral[y, x]


def edge_corners(
    label_YX: NDArray[np.uint8],
    patch_size: int,
    translation: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return a patch for every edge pixel of the ink, randomly moved away from it; each once.

    Args:
        label_YX: 0 and 1.
        patch_size: Rows and columns of a patch.
        translation: Least and greatest shift in y and x, both included.
        rng: Advanced by one draw per edge pixel and axis.
    """
    edges = np.argwhere(cv2.Canny(label_YX * np.uint8(255), *CANNY_THRESHOLDS))
    least, greatest = translation
    centres = edges + rng.integers(least, greatest, size=edges.shape, endpoint=True)
    corners = np.clip(centres - patch_size // 2, 0, np.subtract(label_YX.shape, patch_size))
    width = label_YX.shape[1]  # one number per corner sorts far faster than pairs
    return np.stack(np.divmod(np.unique(corners[:, 0] * width + corners[:, 1]), width), axis=1)


def fill_buckets(
    fraction: NDArray[np.float64], num_buckets: int, cap: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return indices of patches spread evenly over the ink fraction.

    The indices are shuffled, then sorted by bucket; an index stays if fewer than `cap` of its own
    bucket stand before it.

    Args:
        fraction: Of ink, (N,) in (0, 1].
        num_buckets: Number of equal ranges of it.
        cap: Most indices in each.
        rng: Advanced by one permutation.
    """
    bucket = np.minimum((fraction * num_buckets).astype(int), num_buckets - 1)
    order = rng.permutation(bucket.size)
    order = order[np.argsort(bucket[order], kind="stable")]
    bucket = bucket[order]
    rank = np.arange(bucket.size) - np.searchsorted(bucket, bucket)
    return order[rank < cap]


def void_corners(
    ink_integral: NDArray[np.int32],
    mask_YX: NDArray[np.bool_],
    patch_size: int,
    num_void: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return at most `num_void` random patches on papyrus without any ink."""
    papyrus_integral = cv2.integral(np.ascontiguousarray(mask_YX).view(np.uint8))
    found = np.zeros((0, 2), dtype=np.int64)
    for _ in range(VOID_MAX_DRAWS):
        if len(found) >= num_void:
            break
        highest = np.subtract(mask_YX.shape, patch_size)
        corners = rng.integers(0, highest, size=(num_void, 2), endpoint=True)
        papyrus = patch_sums(papyrus_integral, corners, patch_size) / patch_size**2
        is_void = patch_sums(ink_integral, corners, patch_size) == 0
        found = np.concatenate([found, corners[is_void & (papyrus >= VOID_MIN_PAPYRUS)]])
    return found[:num_void]


def grid_corners(
    mask_YX: NDArray[np.bool_],
    patch_size: int,
    step: int,
    num_patches: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return at most `num_patches` random patches of a grid, each once, centred on papyrus.

    The positions are counted row by row and only those drawn are looked up, so that a step of 1,
    every position there is, costs no more memory than a sparse grid.

    Args:
        mask_YX: Papyrus.
        patch_size: Rows and columns of a patch.
        step: Between the corners, in y and x.
        num_patches: How many; all of them where there are fewer.
        rng: Advanced by one draw.
    """
    half, limits = patch_size // 2, np.subtract(mask_YX.shape, patch_size) + 1
    is_centre = mask_YX[half : half + limits[0] : step, half : half + limits[1] : step]
    stops = np.count_nonzero(is_centre, axis=1).cumsum()
    total = int(stops[-1])
    ranks = np.sort(rng.choice(total, min(num_patches, total), replace=False, shuffle=False))
    rows, firsts = np.unique(np.searchsorted(stops, ranks, side="right"), return_index=True)
    corners = [np.zeros((0, 2), np.int64)]
    for row, in_row in zip(rows.tolist(), np.split(ranks, firsts[1:]), strict=False):
        columns = np.flatnonzero(is_centre[row])
        chosen = columns[in_row - stops[row] + len(columns)]
        corners.append(np.stack([np.full_like(chosen, row), chosen], axis=1))
    return np.concatenate(corners) * step
