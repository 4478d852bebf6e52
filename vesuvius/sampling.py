"""Which patches are trained on: a mixture of strategies, each with its count.

Ink is rare, and a patch in the middle of a stroke teaches little. So patches are centred near the
edges of strokes and then drawn evenly over the ink fraction of their label ("buckets"); void
patches, papyrus without any ink, are added so that bare fibres are seen too. To compare with:
edges as they come, a grid, and every position on the papyrus ("raw").

Points are top-left corners of patches, int32 (N, 2) in (y, x), in pixels of the whole fragment.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from vesuvius.corners import edge_corners, fill_buckets, grid_corners, patch_sums, void_corners
from vesuvius.folds import Piece

if TYPE_CHECKING:
    from vesuvius.prepared import PreparedVolume

Balance = Literal["none", "fewest", "most"]


@dataclass(frozen=True)
class SamplingConfig:
    """How many patches of which kind are drawn from each piece; 0 switches a kind off.

    Args:
        patch_size: Rows and columns of a patch, in pixels.
        num_buckets: Number of equal ranges of the ink fraction, (0, 1].
        bucket_cap: Most patches in each bucket.
        num_void: Most patches without ink.
        translation: Least and greatest random shift of the centre away from the edge of a stroke,
            in pixels, drawn for y and x; both ends included.
        num_edges: Most patches near edges of strokes, whatever their ink fraction.
        num_raw: Most patches out of every position whose centre is papyrus.
        num_grid: Most patches out of a grid of such positions.
        grid_step: Pixels between the positions of the grid.
        balance: "fewest" leaves out random patches until every fragment has as many as the one
            with the fewest; "most" repeats random patches until it has as many as the one with
            the most; "none" keeps what was drawn.
    """

    patch_size: int = 64
    num_buckets: int = 10
    bucket_cap: int = 1000
    num_void: int = 5000
    translation: tuple[int, int] = (-32, 16)
    num_edges: int = 0
    num_raw: int = 0
    num_grid: int = 0
    grid_step: int = 32
    balance: Balance = "none"

    def __post_init__(self) -> None:
        for name in ("patch_size", "num_buckets", "grid_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it is at least 1")
        for name in COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it is at least 0")
        if not any(getattr(self, name) for name in COUNTS):
            raise ValueError(f"sampling draws nothing; set one of {', '.join(COUNTS)} above 0")
        if self.translation[0] > self.translation[1]:
            raise ValueError(f"sampling.translation {self.translation} is not (least, greatest)")
        if self.balance not in get_args(Balance):
            raise ValueError(
                f"sampling.balance {self.balance!r} is not one of {', '.join(get_args(Balance))}"
            )

    @property
    def most_patches(self) -> int:
        """Return how many patches are drawn from a piece in which all of them are found."""
        others = self.num_void + self.num_edges + self.num_raw + self.num_grid
        return self.num_buckets * self.bucket_cap + others


COUNTS = ("bucket_cap", "num_void", "num_edges", "num_raw", "num_grid")


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
    labels: dict[str, NDArray[np.bool_]] = {}
    points: dict[str, list[NDArray[np.int32]]] = {piece.fragment: [] for piece in pieces}
    has_ink = False
    for number, piece in enumerate(pieces):
        volume = volumes[piece.fragment]
        if volume.ink_label is None:
            raise ValueError(
                f"{volume.path} has no ink label and cannot be trained on; add inklabels.png to "
                "the fragment and prepare it again, or leave it out"
            )
        if piece.fragment not in labels:
            labels[piece.fragment] = _trusted_label(volume)
        rng = np.random.default_rng([seed, number])
        points[piece.fragment].append(
            sample_points(labels[piece.fragment], volume.labelled_papyrus, piece, config, rng)
        )
        has_ink = has_ink or bool(labels[piece.fragment][piece.slices].any())
    if not has_ink:
        raise ValueError(
            f"no ink in the training label of {', '.join(points)}; at least one training piece "
            "needs ink: check inklabels.png, or hold out another part"
        )
    joined = {name: np.concatenate(parts) for name, parts in points.items()}
    return balance_points(joined, config.balance, np.random.default_rng([seed, len(pieces)]))


def _trusted_label(volume: PreparedVolume) -> NDArray[np.bool_]:
    """Return the ink of a labelled fragment, but none of where its label is not to be believed."""
    if volume.labelled_papyrus is volume.papyrus_mask:
        return volume.ink_label
    return volume.ink_label & volume.labelled_papyrus


def sample_points(
    label_YX: NDArray[np.bool_],
    mask_YX: NDArray[np.bool_],
    piece: Piece,
    config: SamplingConfig,
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """Return the corners of all kinds of patches, all inside one piece.

    They come kind by kind: buckets, void, edges, raw, grid.

    Args:
        label_YX: Ink label of the whole fragment.
        mask_YX: Labelled papyrus of the whole fragment.
        piece: Where to draw.
        config: What to draw.
        rng: Advanced by the draw.

    Returns:
        (N, 2) int32; no bucket patches where the piece has no edge of a stroke.

    Raises:
        ValueError: The piece is smaller than a patch.
    """
    check_fits(piece, config.patch_size)
    label_YX = np.ascontiguousarray(label_YX[piece.slices]).view(np.uint8)
    mask_YX, patch_size = mask_YX[piece.slices], config.patch_size
    corners = [
        *_near_edges(label_YX, cv2.integral(label_YX), mask_YX, config, rng),
        grid_corners(mask_YX, patch_size, 1, config.num_raw, rng),
        grid_corners(mask_YX, patch_size, config.grid_step, config.num_grid, rng),
    ]
    return np.add(np.concatenate(corners), (piece.y_start, piece.x_start)).astype(np.int32)


def _near_edges(
    label_YX: NDArray[np.uint8],
    ink_integral: NDArray[np.int32],
    mask_YX: NDArray[np.bool_],
    config: SamplingConfig,
    rng: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Return the patches that depend on the ink: buckets, void, edges."""
    patch_size = config.patch_size
    edges = edge_corners(label_YX, patch_size, config.translation, rng)
    fraction = patch_sums(ink_integral, edges, patch_size) / patch_size**2
    inked, fraction = edges[fraction > 0], fraction[fraction > 0]
    buckets = inked[fill_buckets(fraction, config.num_buckets, config.bucket_cap, rng)]
    void = void_corners(ink_integral, mask_YX, patch_size, config.num_void, rng)
    num_edges = min(config.num_edges, len(edges))
    return [buckets, void, edges[rng.choice(len(edges), num_edges, replace=False)]]


def balance_points(
    points: Mapping[str, NDArray[np.int32]], balance: Balance, rng: np.random.Generator
) -> dict[str, NDArray[np.int32]]:
    """Return as many points for each fragment, as `SamplingConfig.balance` says.

    Raises:
        ValueError: A fragment has no point to balance with.
    """
    if balance == "none":
        return dict(points)
    empty = [name for name, corners in points.items() if not len(corners)]
    if empty:
        raise ValueError(
            f"no patch was found in {', '.join(empty)}, so fragments cannot be balanced; leave it "
            "out or draw another kind of patches from it"
        )
    wanted = (min if balance == "fewest" else max)(map(len, points.values()))
    return {
        name: corners[_thin_or_repeat(len(corners), wanted, rng)]
        for name, corners in points.items()
    }


def _thin_or_repeat(num_points: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `wanted` indices below `num_points`: all as often as each other, but for one."""
    whole, rest = divmod(wanted, num_points)
    some = np.sort(rng.permutation(num_points)[:rest])
    return np.concatenate([np.tile(np.arange(num_points), whole), some])


def points_csv(points: Mapping[str, NDArray[np.int32]]) -> str:
    """Return the points as CSV: fragment, y and x, one row per patch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fragment", "y", "x"])
    writer.writerows([name, y, x] for name, corners in points.items() for y, x in corners.tolist())
    return text.getvalue()


def check_fits(piece: Piece, patch_size: int) -> None:
    """Refuse a piece that is smaller than a patch.

    Raises:
        ValueError: Naming both sizes.
    """
    height, width = piece.y_stop - piece.y_start, piece.x_stop - piece.x_start
    if min(height, width) < patch_size:
        raise ValueError(
            f"{piece} is {height} x {width} px, smaller than a patch of {patch_size}; "
            "use a smaller patch_size or a larger piece"
        )
