"""The plots of `vesuvius analyze`, each as the bytes of a PNG file.

Ink is orange, papyrus without ink blue, shifted labels grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.page import plot_bytes
from core.pictures import png_bytes, shrink
from vesuvius.claim import InkContrast
from vesuvius.histogram_distance import moments, shares
from vesuvius.sample_patches import SamplePatch
from vesuvius.survey import BLOCK, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, NO_INK, SHIFTED, ALL = "tab:orange", "tab:blue", "0.75", "0.2"
PAPYRUS_GREY, INK_GREY = 0.4, 0.6  # brightness of papyrus, and what ink adds, in the coverage


def histogram_plot(contrast: InkContrast) -> bytes:
    """Return intensities with and without ink, of all layers and of the best one.

    Below them stands the difference, before the range of those of the shifted labels.
    """
    best = contrast.best_layer.layer
    assert best is not None
    papyrus = contrast.ink + contrast.no_ink
    figure = _figure(11, 6)
    columns = figure.subplots(2, 2, sharex="col").T
    for column, title, layers in (
        (columns[0], "all layers", slice(None)),
        (columns[1], f"layer {best}, where ink stands out most", slice(best, best + 1)),
    ):
        _histogram_column(
            column,
            contrast.ink[layers].sum(axis=0),
            contrast.shifted[:, layers].sum(axis=1),
            papyrus[layers].sum(axis=0),
        )
        column[0].set_title(title)
    return plot_bytes(figure)


def _histogram_column(
    column: np.ndarray, ink: np.ndarray, shifted: np.ndarray, papyrus: np.ndarray
) -> None:
    """Draw counts (256,) with ink, (S, 256) under shifted labels and (256,) of all papyrus."""
    values = np.arange(256)
    share, rest = shares(ink), shares(papyrus - ink)
    upper, lower = column
    upper.step(values, share, where="mid", color=INK, label="ink")
    upper.step(values, rest, where="mid", color=NO_INK, label="no ink")
    upper.set(ylabel="share of voxels", ylim=(0, None))
    upper.legend()
    by_place = shares(shifted) - shares(papyrus - shifted)
    lower.fill_between(
        values, by_place.min(axis=0), by_place.max(axis=0), step="mid", color=SHIFTED,
        label="shifted labels",
    )  # fmt: skip
    lower.step(values, share - rest, where="mid", color=INK, label="ink label")
    seen = np.flatnonzero(papyrus > 1e-5 * papyrus.sum())
    lower.set(xlabel="intensity (0..255)", ylabel="with minus without")
    lower.set_xlim(seen[0] - 2, seen[-1] + 2)
    lower.legend()


def layer_plot(contrast: InkContrast) -> bytes:
    """Return contrast and distances over the layers, before the range of the shifted labels."""
    panels = {
        "contrast": "(mean of ink - mean of no ink) / standard deviation",
        "auc": "AUC of intensity as a classifier",
        "jensen_shannon": "Jensen-Shannon divergence (bits)",
        "total_variation": "total variation (share of voxels)",
        "wasserstein": "Wasserstein-1 (grey levels)",
    }
    figure = _figure(11, 8)
    axes_of = figure.subplot_mosaic([["contrast"] * 2, ["auc", "jensen_shannon"],
                                     ["total_variation", "wasserstein"]])  # fmt: skip
    for name, title in panels.items():
        axes: Axes = axes_of[name]
        found = getattr(contrast.layers, name)
        shifted = getattr(contrast.shifted_layers, name)
        layers = np.arange(len(found))
        axes.fill_between(
            layers, shifted.min(axis=0), shifted.max(axis=0), color=SHIFTED, label="shifted labels"
        )
        axes.plot(layers, found, color=INK, label="ink label")
        axes.set(title=title, xlabel="layer", xlim=(0, max(len(found) - 1, 1)))
        axes.grid(alpha=0.3)
    axes_of["contrast"].axhline(0, color=ALL, linewidth=0.8)
    axes_of["contrast"].legend()
    return plot_bytes(figure)


def profile_plot(survey: Survey, contrast: InkContrast | None, sheet_depth: int) -> bytes:
    """Return mean intensity by layer, its spread, and where the sheet lies."""
    figure = _figure(11, 3.2)
    axes: Axes = figure.subplots()
    mean, variance = moments(survey.papyrus)
    layers, std = np.arange(len(mean)), np.sqrt(variance)
    axes.fill_between(layers, mean - std, mean + std, color="0.9", label="one standard deviation")
    axes.plot(layers, mean, color=ALL, label="papyrus")
    if contrast is not None:
        axes.plot(layers, moments(contrast.ink)[0], color=INK, label="ink")
        axes.plot(layers, moments(contrast.no_ink)[0], color=NO_INK, label="no ink")
    axes.axvline(sheet_depth, color="tab:green", linestyle="--", label=f"sheet, {sheet_depth}")
    axes.set(xlabel="layer", ylabel="intensity (0..255)", xlim=(0, max(len(mean) - 1, 1)))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")
    return plot_bytes(figure)


def depth_plot(survey: Survey) -> bytes:
    """Return the map of the sheet's depth, and how often each depth occurs."""
    depth = survey.depth_map
    height, width = (BLOCK * length for length in depth.shape)
    figure = _figure(11, min(max(8 * height / width, 2.5), 9))
    map_axes, count_axes = figure.subplots(1, 2, width_ratios=[3, 1])
    low, high = np.nanpercentile(depth, (1, 99))
    shown = map_axes.imshow(
        depth, extent=(0, width, height, 0), vmin=low, vmax=max(high, low + 1), cmap="viridis"
    )
    map_axes.set(xlabel="x (px)", ylabel="y (px)")
    bar = figure.colorbar(shown, ax=map_axes, label="layer")
    bar.locator.set_params(integer=True)
    found = depth[~np.isnan(depth)].astype(int)
    layers = np.arange(len(survey.papyrus) + 1) - 0.5
    count_axes.hist(found, layers, color=ALL)
    count_axes.set(xlabel="layer", ylabel="blocks", xlim=(found.min() - 2, found.max() + 2))
    count_axes.xaxis.get_major_locator().set_params(integer=True)
    return plot_bytes(figure)


def coverage_picture(papyrus_mask: np.ndarray, ink_label: np.ndarray | None) -> bytes:
    """Return papyrus grey and labelled ink brighter, outside black."""
    picture = PAPYRUS_GREY * shrink(papyrus_mask)
    if ink_label is not None:
        picture += INK_GREY * shrink(ink_label)
    return png_bytes(np.round(picture).astype(np.uint8))


def patch_plot(patches: list[SamplePatch], limits: tuple[float, float]) -> bytes:
    """Return patches, a row each: the plane of the sheet, and cuts along y and along x.

    Args:
        patches: At least one.
        limits: Intensities drawn black and white.
    """
    num_layers, size, _ = patches[0].voxels.shape
    figure = _figure(11, 0.4 + len(patches) * (0.3 + 3 * max(num_layers / size, 1)))
    for row, patch in zip(figure.subplots(len(patches), 3, squeeze=False), patches, strict=True):
        cut_y, cut_x = patch.cut
        planes = {
            f"YX, layer {patch.depth}, from y {patch.y}, x {patch.x}": patch.voxels[patch.depth],
            f"ZY at x {patch.x + cut_x}": patch.voxels[:, :, cut_x],
            f"ZX at y {patch.y + cut_y}": patch.voxels[:, cut_y],
        }
        for axes, (title, plane) in zip(row, planes.items(), strict=True):
            axes.imshow(plane, cmap="gray", vmin=limits[0], vmax=limits[1])
            axes.set_title(title, fontsize="small")
            axes.locator_params(nbins=4)
            axes.tick_params(labelsize="x-small")
        row[0].axvline(cut_x, color="tab:cyan", linewidth=0.7)
        row[0].axhline(cut_y, color="tab:cyan", linewidth=0.7)
        if patch.label.any():
            row[0].contour(patch.label, levels=[0.5], colors=INK, linewidths=1.2)
        for axes, ink in zip(row[1:], (patch.label[:, cut_x], patch.label[cut_y]), strict=True):
            axes.axhline(patch.depth, color="tab:cyan", linewidth=0.7)
            axes.fill_between(np.arange(size), -0.5, 1.5, where=ink, color=INK, step="mid")
    return plot_bytes(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
