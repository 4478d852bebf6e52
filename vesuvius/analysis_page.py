"""The page and the record of an analysis."""

from __future__ import annotations

import html
from dataclasses import asdict
from typing import Any

import numpy as np

from core.page import figure, table
from vesuvius.analysis import Analysis, why_no_contrast
from vesuvius.analysis_plots import (
    coverage_picture,
    depth_plot,
    histogram_plot,
    layer_plot,
    patch_plot,
    profile_plot,
)
from vesuvius.claim import Comparison, Distances, InkContrast
from vesuvius.histogram_distance import moments

TITLE = "What the fragments hold"
VERDICTS = {
    "confirmed": "confirmed for this data",
    "nearly": "denied in the letter, confirmed to the eye",
    "denied": "denied for this data",
}
EXPLANATION = """
Voxels close to each other are alike, so any two regions of papyrus differ a little. Shifted labels
have the shape of the ink but mean nothing where they lie: what they differ by is due to place
alone. Only what stands out further than all of them, each in the layer that suits it best where a
layer was chosen, counts as a difference; the unit is the standard deviation of all labels. All of
this is about single voxels. Ink can still show in how voxels lie beside each other, which is what a
network looks at."""
PATCH_CAPTION = (
    "all in one grey scale; orange: labelled ink, in the cuts above the papyrus it lies on; "
    "blue: where the planes cut each other"
)


def record(found: Analysis) -> dict[str, Any]:
    """Return all numbers of an analysis for JSON; None stands for what is undefined."""
    fragment, contrast = found.fragment, found.contrast
    mean, std = found.mean_std
    return {
        "name": fragment.name,
        "path": str(fragment.path),
        "layout": fragment.layout,
        "shape_ZYX": list(fragment.volume.shape),
        "voxel_size_um": fragment.voxel_size_um,
        "coverage": found.coverage,
        "mean": mean,
        "std": std,
        "z_profile": numbers(found.statistics.z_profile),
        "z_std": numbers(np.sqrt(moments(found.survey.papyrus)[1])),
        "sheet_depth": found.statistics.sheet_depth,
        "depth_map": numbers(found.survey.depth_map),
        "layer_order": asdict(found.layer_order),
        "histograms": numbers(found.survey.papyrus),
        "ink": None if contrast is None else _ink_record(contrast),
        "patches": {
            kind: [{"y": patch.y, "x": patch.x, "depth": patch.depth} for patch in patches]
            for kind, patches in found.patches.items()
        },
    }


def numbers(values: Any) -> Any:
    """Return an array as nested lists of numbers, None for what is not finite."""
    values = np.asarray(values)
    if not values.ndim:
        return values.item() if np.isfinite(values) else None
    return [numbers(value) for value in values]


def overview_row(found: Analysis) -> list[str]:
    """Return what the overview says about one fragment."""
    coverage, contrast = found.coverage, found.contrast
    ink = coverage["ink_share_of_papyrus"]
    order = found.layer_order
    return [
        found.fragment.name,
        " x ".join(map(str, found.fragment.volume.shape)),
        f"{coverage['papyrus_share']:.1%}",
        "no label" if ink is None else f"{ink:.1%}",
        str(found.statistics.sheet_depth),
        f"{order.order} ({order.confidence:.2f})",
        "cannot be tried" if contrast is None else VERDICTS[contrast.together.verdict],
        "" if contrast is None else VERDICTS[contrast.best_layer.verdict],
    ]


def overview(rows: list[list[str]]) -> str:
    """Return the head of the page with one row for each fragment, as HTML."""
    head = ["fragment", "layers x height x width", "papyrus", "ink on papyrus", "sheet depth",
            "layer order (confidence)", "looks the same with and without ink, all layers",
            "in the best layer"]  # fmt: skip
    return f"<h1>{TITLE}</h1>{table(head, rows)}"


def page_section(found: Analysis) -> str:
    """Return what the page says about one fragment, as HTML."""
    fragment = found.fragment
    num_layers, height, width = fragment.volume.shape
    facts = [
        ["size (layers x height x width)", f"{num_layers} x {height} x {width}"],
        ["read from", f"{fragment.path} ({fragment.layout})"],
        *_coverage_rows(found),
        ["sheet depth (brightest layer of the smoothed z profile)",
         str(found.statistics.sheet_depth)],
    ]  # fmt: skip
    parts = [
        f"<h2>Fragment {html.escape(fragment.name)}</h2>",
        *_ink_parts(found),
        "<h3>Mask and label</h3>",
        table(["", ""], facts),
        figure(
            coverage_picture(fragment.papyrus_mask, fragment.ink_label),
            "grey: papyrus mask; white: labelled ink on papyrus; dark grey: labelled ink off it",
        ),
        "<h3>Z profile</h3>",
        figure(
            profile_plot(found.survey, found.contrast, found.statistics.sheet_depth),
            "mean intensity of each layer inside the papyrus mask",
        ),
        f"<p>{html.escape(str(found.layer_order))}.</p><p>Forward means that the written side "
        "faces layer 0. Air on one side and wraps on the other tell it; crossed fibres tell it "
        "only if lines of text run along x. It is an estimate and nothing was flipped.</p>",
        "<h3>Depth of the sheet</h3>",
        figure(depth_plot(found.survey), "brightest layer of each block of 32 x 32 px"),
        *_patch_parts(found),
    ]
    return "".join(parts)


def _coverage_rows(found: Analysis) -> list[list[str]]:
    coverage = found.coverage
    rows = [["papyrus mask", f"{coverage['papyrus_share']:.1%} of the pixels"]]
    if coverage["ink_pixels"] is None:
        return [*rows, ["ink label", "none"]]
    off = coverage["ink_pixels_off_papyrus"]
    return [
        *rows,
        ["ink label", f"{coverage['ink_share_of_papyrus']:.1%} of the papyrus"],
        ["labelled ink off the papyrus", f"{off} px, which are not counted"],
    ]


def _ink_parts(found: Analysis) -> list[str]:
    """Return the verdict with its evidence, or why there is none."""
    contrast = found.contrast
    title = "<h3>Do intensities with and without ink look the same?</h3>"
    if contrast is None:
        return [title, f"<p>{html.escape(why_no_contrast(found).capitalize())}.</p>"]
    trials = (contrast.together, contrast.best_layer)
    return [
        title,
        *[f"<p>{html.escape(str(trial))}</p>" for trial in trials],
        table(
            ["", "bits", "shifted labels", "stands out by", "shifted labels at most",
             "total variation", "Wasserstein-1", "AUC", "contrast", "the claim is"],
            [_trial_row(trial) for trial in trials],
        ),
        f"<p>{EXPLANATION}</p>",
        figure(histogram_plot(contrast), "intensity of voxels with and without ink, on papyrus"),
        figure(layer_plot(contrast), "each layer on its own; grey: range of the shifted labels"),
    ]  # fmt: skip


def _trial_row(trial: Comparison) -> list[str]:
    found = trial.distances
    return [
        "all layers" if trial.layer is None else f"layer {trial.layer}",
        f"{found.jensen_shannon:.2g}",
        f"{trial.shifted.mean():.2g} +- {trial.shifted.std(ddof=1):.2g}",
        f"{trial.excess:+.1f}",
        f"{trial.shifted_excess.max():+.1f}",
        f"{found.total_variation:.1%}",
        f"{found.wasserstein:.2f}",
        f"{found.auc:.3f}",
        f"{found.contrast:+.3f}",
        VERDICTS[trial.verdict],
    ]


def _patch_parts(found: Analysis) -> list[str]:
    """Return the sample patches, or the lack of them."""
    histogram = found.survey.papyrus.sum(axis=0)
    shares = np.cumsum(histogram) / histogram.sum()
    low, high = np.searchsorted(shares, (0.005, 0.995))
    parts = []
    for kind, patches in found.patches.items():
        parts.append(f"<h3>Patches {kind}</h3>")
        if patches:
            parts.append(figure(patch_plot(patches, (low, max(high, low + 1))), PATCH_CAPTION))
        else:
            parts.append("<p>None shown.</p>")
    return parts


def _ink_record(contrast: InkContrast) -> dict[str, Any]:
    trials = {"together": contrast.together, "best_layer": contrast.best_layer}
    return {
        **{name: _trial_record(trial) for name, trial in trials.items()},
        "layers": _distance_record(contrast.layers),
        "shifted_layers": _distance_record(contrast.shifted_layers),
        "histograms_ink": numbers(contrast.ink),
        "histograms_no_ink": numbers(contrast.no_ink),
    }


def _trial_record(trial: Comparison) -> dict[str, Any]:
    return {
        "layer": trial.layer,
        **_distance_record(trial.distances),
        "shifted_jensen_shannon": numbers(trial.shifted),
        "excess": trial.excess,
        "shifted_excess": numbers(trial.shifted_excess),
        "spreads": numbers(trial.spreads),
        "verdict": trial.verdict,
        "words": str(trial),
    }


def _distance_record(found: Distances) -> dict[str, Any]:
    return {name: numbers(values) for name, values in vars(found).items()}
