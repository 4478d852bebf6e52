"""One fragment looked into: everything `vesuvius analyze` shows about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.terminal import progress
from vesuvius.claim import FEWEST_SHIFTS, InkContrast, ink_contrast
from vesuvius.fragment import Fragment
from vesuvius.orientation import LayerOrder, estimate_layer_order
from vesuvius.sample_patches import SamplePatch, sample_patches
from vesuvius.statistics import VolumeStatistics
from vesuvius.survey import Survey, draw_offsets, survey


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that was found in one fragment.

    Attributes:
        fragment: The fragment.
        survey: What was counted in it.
        layer_order: Which way the sheet lies, as far as intensities tell.
        contrast: What intensity says about ink, None without labelled ink.
        patches: Sample patches by kind.
    """

    fragment: Fragment
    survey: Survey
    layer_order: LayerOrder
    contrast: InkContrast | None
    patches: Mapping[str, list[SamplePatch]]

    @cached_property
    def statistics(self) -> VolumeStatistics:
        """Intensities of all voxels inside the papyrus mask."""
        return VolumeStatistics(self.survey.papyrus)

    @property
    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation (0..255) of all voxels inside the papyrus mask."""
        return self.statistics.mean_std(0, len(self.survey.papyrus))

    @cached_property
    def coverage(self) -> dict[str, Any]:
        """Pixels and shares of mask and label; None for those of a label that does not exist."""
        mask, label = self.fragment.papyrus_mask, self.fragment.ink_label
        papyrus = int(self.survey.block_pixels.sum())
        ink = None if label is None else int(self.survey.block_ink.sum())
        return {
            "pixels": mask.size,
            "papyrus_pixels": papyrus,
            "papyrus_share": papyrus / mask.size,
            "ink_pixels": ink,
            "ink_share_of_papyrus": None if ink is None else ink / papyrus,
            "ink_pixels_off_papyrus": None if ink is None else int(np.sum(label)) - ink,
        }


def analyze_fragment(
    fragment: Fragment, num_shifts: int, num_patches: int, patch_size: int, seed: int
) -> Analysis:
    """Analyze one fragment; the options are those of `analyze`, checked."""
    size = fragment.papyrus_mask.shape
    with progress(f"analyze {fragment.name}", size[0], "rows") as advance:
        counted = survey(fragment, draw_offsets(size, num_shifts, seed), advance)
    return Analysis(
        fragment=fragment,
        survey=counted,
        layer_order=estimate_layer_order(fragment.volume, fragment.papyrus_mask),
        contrast=ink_contrast(counted),
        patches=sample_patches(fragment, counted, num_patches, patch_size, seed),
    )


def why_no_contrast(found: Analysis) -> str:
    """Return why nothing can be said about ink."""
    if found.fragment.ink_label is None:
        return "there is no ink label, so nothing can be said about ink"
    if found.survey.ink is None:
        return "the ink label shows no ink on papyrus, so nothing can be said about ink"
    if (found.survey.ink == found.survey.papyrus).all():
        return "the ink label calls all papyrus ink, so ink cannot be compared with anything"
    return (
        f"fewer than {FEWEST_SHIFTS} shifted labels lie on papyrus, so nothing can be said about "
        "ink; give more --shifts"
    )
