"""The infrared photograph of a fragment as something to learn: ink is dark on it, papyrus bright.

The target is the photograph's brightness, 0..1 between two percentiles of the papyrus. It needs no
label by hand, so patches come from anywhere on the papyrus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vesuvius.corners import grid_corners
from vesuvius.folds import Piece
from vesuvius.sampling import check_fits

if TYPE_CHECKING:
    from vesuvius.prepared import PreparedVolume

PERCENTILES = (1, 99)  # of the papyrus that become 0 and 1
BAND_ROWS = 256
SEED = 1  # beside that of the run, so that these draws are no others


def infrared_levels(volume: PreparedVolume) -> NDArray[np.uint8]:
    """Return what each grey of a photograph is as a target, (256,) of 0..255.

    Raises:
        ValueError: If the photograph shows the papyrus in one grey.
    """
    counts = np.zeros(256, np.int64)
    for start in range(0, len(volume.papyrus_mask), BAND_ROWS):
        rows = slice(start, start + BAND_ROWS)
        inside = np.asarray(volume.ir_image[rows])[np.asarray(volume.papyrus_mask[rows])]
        counts += np.bincount(inside, minlength=256)
    shares = counts.cumsum() / counts.sum()
    low, high = (int(np.searchsorted(shares, percent / 100)) for percent in PERCENTILES)
    if low == high:
        raise ValueError(
            f"the infrared photograph of {volume.path} is nearly one grey ({low}) on the papyrus, "
            "so there is nothing to learn; check ir.png, or prepare the fragment without it"
        )
    levels = (np.arange(256) - low) * (255 / (high - low))
    return levels.round().clip(0, 255).astype(np.uint8)


def sample_infrared(
    volumes: Mapping[str, PreparedVolume],
    pieces: Sequence[Piece],
    patch_size: int,
    num_patches: int,
    seed: int,
) -> dict[str, NDArray[np.int32]]:
    """Return random points on the papyrus of each fragment that has a photograph.

    Args:
        volumes: Each fragment by name.
        pieces: Pieces of these fragments; those for validation are left out.
        patch_size: Rows and columns of a patch, in pixels.
        num_patches: How many are wanted in all, as many of every fragment, all where there are
            fewer.
        seed: Everything random follows from it.

    Returns:
        Corners (N, 2) in (y, x) of each fragment with a photograph and training pieces.

    Raises:
        ValueError: If no fragment that is trained on has a photograph, or a piece is smaller than
            a patch.
    """
    parts: dict[str, list[Piece]] = {}
    for piece in pieces:
        if piece.role == "train" and volumes[piece.fragment].ir_image is not None:
            check_fits(piece, patch_size)
            parts.setdefault(piece.fragment, []).append(piece)
    if not parts:
        raise ValueError(
            "no fragment that is trained on has an infrared photograph; add ir.png to one and "
            "prepare it again, or train with --tasks.kind one"
        )
    rng = np.random.default_rng([seed, SEED])
    wanted = -(-num_patches // len(parts))
    points = {}
    for name, own in parts.items():
        mask = volumes[name].papyrus_mask
        parts_of_it = []
        for piece in own:
            corners = grid_corners(mask[piece.slices], patch_size, 1, -(-wanted // len(own)), rng)
            parts_of_it.append(np.add(corners, (piece.y_start, piece.x_start)))
        points[name] = np.concatenate(parts_of_it).astype(np.int32)
    return points
