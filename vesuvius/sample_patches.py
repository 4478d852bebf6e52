"""A few patches to look at, with ink and without: where they are drawn, and their voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vesuvius.fragment import Fragment
from vesuvius.survey import BLOCK, Survey

PAPYRUS_SHARE = 0.9  # of a patch, where the fragment has such patches


@dataclass(frozen=True, eq=False)
class SamplePatch:
    """One patch.

    Attributes:
        y: Its first row.
        x: Its first column.
        depth: The layer of the sheet in its middle.
        voxels: uint8 (Z, size, size), all layers.
        label: bool (size, size), where ink is labelled; all False without a label.
    """

    y: int
    x: int
    depth: int
    voxels: np.ndarray
    label: np.ndarray

    @property
    def cut(self) -> tuple[int, int]:
        """Row and column of the patch with the most ink, its middle ones if it has none."""
        if not self.label.any():
            return len(self.label) // 2, len(self.label) // 2
        return int(self.label.sum(axis=1).argmax()), int(self.label.sum(axis=0).argmax())


def check_patch_size(patch_size: int, size: tuple[int, int]) -> None:
    """Raise ValueError unless patches are made of whole blocks and fit into a fragment (Y, X)."""
    largest = min(size) // BLOCK * BLOCK
    if patch_size < BLOCK or patch_size % BLOCK or patch_size > largest:
        raise ValueError(
            f"patch_size {patch_size} does not fit a fragment of {size[0]} x {size[1]} (height x "
            f"width); choose a multiple of {BLOCK} from {BLOCK} to {largest}"
        )


def sample_patches(
    fragment: Fragment, survey: Survey, num_patches: int, patch_size: int, seed: int
) -> dict[str, list[SamplePatch]]:
    """Draw patches and read them.

    Patches lie on whole blocks and on papyrus. The more ink a patch holds, the likelier it is
    drawn as one with ink; those without hold none at all.

    Args:
        fragment: The fragment.
        survey: What was counted in it.
        num_patches: How many of each kind at most.
        patch_size: Their side in px, checked by `check_patch_size`.
        seed: Decides which are drawn.

    Returns:
        Lists by kind: "with ink" and "without ink", or "without a label" where there is no ink
        label. A list may be empty.
    """
    rng = np.random.default_rng(seed)
    side = patch_size // BLOCK
    height, width = fragment.papyrus_mask.shape
    whole = np.s_[: height // BLOCK, : width // BLOCK]
    papyrus = _window_sums(survey.block_pixels[whole], side)
    ink = _window_sums(survey.block_ink[whole], side)
    is_papyrus = papyrus >= min(PAPYRUS_SHARE * patch_size**2, max(papyrus.max(), 1))
    if fragment.ink_label is None:
        weights = {"without a label": is_papyrus}
    else:
        weights = {"with ink": ink * is_papyrus, "without ink": (ink == 0) & is_papyrus}
    return {
        kind: [
            _read(fragment, survey, place, patch_size) for place in _draw(rng, weight, num_patches)
        ]
        for kind, weight in weights.items()
    }


def _window_sums(block_map: np.ndarray, side: int) -> np.ndarray:
    """Return the sums over all windows of `side` x `side` blocks, by their first block."""
    windows = np.lib.stride_tricks.sliding_window_view(block_map, (side, side))
    return windows.sum(axis=(-2, -1))


def _draw(rng: np.random.Generator, weight: np.ndarray, num: int) -> list[tuple[int, int]]:
    """Return distinct places (row, column), drawn in proportion to their weight."""
    places = np.flatnonzero(weight)
    if not len(places):
        return []
    shares = weight.ravel()[places] / weight.sum()
    drawn = rng.choice(places, min(num, len(places)), replace=False, p=shares)
    return [divmod(int(place), weight.shape[1]) for place in drawn]


def _read(fragment: Fragment, survey: Survey, place: tuple[int, int], size: int) -> SamplePatch:
    """Read the patch whose first block is `place`."""
    y, x = (BLOCK * index for index in place)
    rows, columns = slice(y, y + size), slice(x, x + size)
    voxels = fragment.volume.read(0, fragment.volume.shape[0], y, y + size)[:, :, columns]
    label = np.zeros((size, size), bool)
    if fragment.ink_label is not None:
        label |= fragment.ink_label[rows, columns] & fragment.papyrus_mask[rows, columns]
    side = size // BLOCK
    depths = survey.depth_map[place[0] : place[0] + side, place[1] : place[1] + side]
    return SamplePatch(y, x, int(np.nanmedian(depths)), voxels.copy(), label)
