"""Which patches are trained on: the "buckets" strategy.

Ink is rare, and a patch in the middle of a stroke teaches little. So patches are centred near the
edges of strokes and then drawn evenly over the ink fraction of their label; void patches, papyrus
without any ink, are added so that bare fibres are seen too.

Points are top-left corners of patches, int32 (N, 2) in (y, x), in pixels of the whole fragment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from vesuvius.folds import Piece

if TYPE_CHECKING:
    from vesuvius.prepared import PreparedVolume

CANNY_THRESHOLDS = (100, 200)  # on a label of 0 and 255
VOID_MIN_PAPYRUS = 0.5  # fraction of a void patch that is papyrus
VOID_MAX_DRAWS = 100  # per void patch wanted; where bare papyrus is rare, fewer are found


@dataclass(frozen=True)
class SamplingConfig:
    """How many patches of which kind are drawn from each piece.

    Args:
        patch_size: Rows and columns of a patch, in pixels.
        num_buckets: Number of equal ranges of the ink fraction, (0, 1].
        bucket_cap: Most patches in each bucket.
        num_void: Most patches without ink.
        translation: Least and greatest random shift of the centre away from the edge of a stroke,
            in pixels, drawn for y and x; both ends included.
    """

    patch_size: int = 64
    num_buckets: int = 10
    bucket_cap: int = 1000
    num_void: int = 5000
    translation: tuple[int, int] = (-32, 16)

    def __post_init__(self) -> None:
        for name in ("patch_size", "num_buckets", "bucket_cap"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it is at least 1")
        if self.num_void < 0:
            raise ValueError(f"sampling.num_void is {self.num_void}; it is at least 0")
        if self.translation[0] > self.translation[1]:
            raise ValueError(f"sampling.translation {self.translation} is not (least, greatest)")


def sample_fragments(
    volumes: Mapping[str, PreparedVolume],
    pieces: Sequence[Piece],
    config: SamplingConfig,
    seed: int,
) -> dict[str, NDArray[np.int32]]:
    """Return the points to train on in each fragment.

    Args:
        volumes: Each fragment by name.
        pieces: Pieces of these fragments; those for validation are left out.
        config: What to draw.
        seed: Everything random follows from it.

    Returns:
        The points (N, 2) of each fragment that has training pieces.

    Raises:
        ValueError: A fragment has no ink label, none has ink, or a piece is smaller than a patch.
    """
    pieces = [piece for piece in pieces if piece.role == "train"]
    points: dict[str, list[NDArray[np.int32]]] = {piece.fragment: [] for piece in pieces}
    has_ink = False
    for number, piece in enumerate(pieces):
        volume = volumes[piece.fragment]
        if volume.ink_label is None:
            raise ValueError(
                f"{volume.path} has no ink label and cannot be trained on; add inklabels.png to "
                "the fragment and prepare it again, or leave it out"
            )
        rng = np.random.default_rng([seed, number])
        points[piece.fragment].append(
            sample_points(volume.ink_label, volume.papyrus_mask, piece, config, rng)
        )
        has_ink = has_ink or bool(volume.ink_label[piece.slices].any())
    if not has_ink:
        raise ValueError(
            f"no ink in the training label of {', '.join(points)}; at least one training piece "
            "needs ink: check inklabels.png, or hold out another part"
        )
    return {name: np.concatenate(parts) for name, parts in points.items()}


def sample_points(
    label_YX: NDArray[np.bool_],
    mask_YX: NDArray[np.bool_],
    piece: Piece,
    config: SamplingConfig,
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """Return the corners of bucket patches, then of void patches, all inside one piece.

    Args:
        label_YX: Ink label of the whole fragment.
        mask_YX: Papyrus mask of the whole fragment.
        piece: Where to draw.
        config: What to draw.
        rng: Advanced by the draw.

    Returns:
        (N, 2) int32; no bucket patches where the piece has no edge of a stroke.

    Raises:
        ValueError: The piece is smaller than a patch.
    """
    _check_fits(piece, config.patch_size)
    label_YX = np.ascontiguousarray(label_YX[piece.slices]).view(np.uint8)
    ink_integral = cv2.integral(label_YX)
    corners = np.concatenate(
        [
            _bucket_corners(label_YX, ink_integral, config, rng),
            _void_corners(ink_integral, mask_YX[piece.slices], config, rng),
        ]
    )
    return np.add(corners, (piece.y_start, piece.x_start)).astype(np.int32)


def patch_sums(
    integral: NDArray[np.int32], corners: NDArray[np.integer], patch_size: int
) -> NDArray[np.int32]:
    """Return the sum over each patch from an integral image.

    Args:
        integral: (Y + 1, X + 1); entry (y, x) is the sum over rows before y and columns before x.
        corners: (N, 2) top-left corners.
        patch_size: Rows and columns of a patch.
    """
    y, x = corners[:, 0], corners[:, 1]
    bottom, right = y + patch_size, x + patch_size
    return integral[bottom, right] - integral[y, right] - integral[bottom, x] + integral[y, x]


def _bucket_corners(
    label_YX: NDArray[np.uint8],
    ink_integral: NDArray[np.int32],
    config: SamplingConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return patches near edges of strokes, spread evenly over the ink fraction."""
    patch_size = config.patch_size
    edges = np.argwhere(cv2.Canny(label_YX * np.uint8(255), *CANNY_THRESHOLDS))
    least, greatest = config.translation
    centres = edges + rng.integers(least, greatest, size=edges.shape, endpoint=True)
    corners = np.clip(centres - patch_size // 2, 0, np.subtract(label_YX.shape, patch_size))
    corners = np.unique(corners, axis=0)
    fraction = patch_sums(ink_integral, corners, patch_size) / patch_size**2
    corners, fraction = corners[fraction > 0], fraction[fraction > 0]
    bucket = np.minimum((fraction * config.num_buckets).astype(int), config.num_buckets - 1)
    return corners[_capped(bucket, config.bucket_cap, rng)]


def _capped(bucket: NDArray[np.int64], cap: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `cap` random indices of each bucket.

    The indices are shuffled, then sorted by bucket; an index stays if fewer than `cap` of its own
    bucket stand before it.
    """
    order = rng.permutation(bucket.size)
    order = order[np.argsort(bucket[order], kind="stable")]
    bucket = bucket[order]
    rank = np.arange(bucket.size) - np.searchsorted(bucket, bucket)
    return order[rank < cap]


def _void_corners(
    ink_integral: NDArray[np.int32],
    mask_YX: NDArray[np.bool_],
    config: SamplingConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return random patches on papyrus without any ink."""
    patch_size = config.patch_size
    papyrus_integral = cv2.integral(np.ascontiguousarray(mask_YX).view(np.uint8))
    found = np.zeros((0, 2), dtype=np.int64)
    for _ in range(VOID_MAX_DRAWS):
        if len(found) >= config.num_void:
            break
        highest = np.subtract(mask_YX.shape, patch_size)
        corners = rng.integers(0, highest, size=(config.num_void, 2), endpoint=True)
        papyrus = patch_sums(papyrus_integral, corners, patch_size) / patch_size**2
        is_void = patch_sums(ink_integral, corners, patch_size) == 0
        found = np.concatenate([found, corners[is_void & (papyrus >= VOID_MIN_PAPYRUS)]])
    return found[: config.num_void]


def _check_fits(piece: Piece, patch_size: int) -> None:
    height, width = piece.y_stop - piece.y_start, piece.x_stop - piece.x_start
    if min(height, width) < patch_size:
        raise ValueError(
            f"{piece} is {height} x {width} px, smaller than a patch of {patch_size}; "
            "use a smaller patch_size or a larger piece"
        )
