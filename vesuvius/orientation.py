"""Which way the sheet lies: does its written side face the first layer or the last?

Intensities alone give two hints, and neither is proof.

- *Air*: the outside of a fragment borders on air, its inside on the next wraps. So if the first
  layers are darker than the last, the open side is first. Inside a scroll both sides border on
  wraps, and a single sheet lies in air: then this hint says nothing. Layers whose contrast was
  stretched one by one do not compare, and spoil it.
- *Fibres*: a sheet is two plies with crossed fibres, and those on the written side usually run
  along the lines of text. So if fibres run along x in the layers before the sheet's depth and
  along y after it, the written side is first, provided that lines of text run along x. On a volume
  turned by 90 degrees this hint is exactly wrong, and strokes of ink as plain as fibres spoil it,
  so alone it counts half.

Every hint is taken from several bands of rows on their own; it counts if nearly all of them agree.
Nothing here changes a volume. Axes: Z layers, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from core.terminal import note
from vesuvius.prepared import LayersInnermost, PreparedVolume
from vesuvius.statistics import ROWS_PER_BAND, sampled_bands, smooth_profiles

if TYPE_CHECKING:
    from vesuvius.fragment import VolumeReader
    from vesuvius.inkmap import Window

Order = Literal["forward", "reversed", "unknown"]

OUTER_SHARE = 8  # the first and last eighth of the layers are compared
MIN_AIR = 0.2  # of the range of the z profile; less may be beam hardening or drift of the sheet
PLY_LAYERS = 7  # layers before and after the sheet's depth in which fibres are sought
FIBRE_LAG = 4  # px between compared voxels, about the width of a fibre
MIN_BANDS = 8  # that must see something before their agreement means anything
MIN_AGREEMENT = 0.75  # by chance 8 bands agree so well in 7 of 100 volumes, 32 bands never
FIBRES_ALONE = 0.5  # weight of a hint that depends on how the volume is turned


@dataclass(frozen=True)
class Hint:
    """What one kind of evidence says.

    Attributes:
        strength: Mean over bands in -1..1; positive if the written side is first.
        agreement: Share of the bands for it minus share against it, -1..1.
        num_bands: Bands that were looked at.
    """

    strength: float
    agreement: float
    num_bands: int

    @property
    def order(self) -> Order:
        """What the hint says on its own."""
        if self.num_bands < MIN_BANDS or abs(self.agreement) < MIN_AGREEMENT:
            return "unknown"
        return "forward" if self.agreement > 0 else "reversed"


@dataclass(frozen=True)
class LayerOrder:
    """The estimated order of the layers.

    Attributes:
        order: "forward" if the written side faces the first layer, "reversed" if the last.
        confidence: 0..1; how well the bands agree, 0 if the order is unknown.
        air: The hint from air on one side.
        fibres: The hint from crossed fibres.
    """

    order: Order
    confidence: float
    air: Hint
    fibres: Hint

    def __str__(self) -> str:
        told = ", ".join(
            f"{name} {'say nothing' if hint.order == 'unknown' else 'say ' + hint.order}"
            f" ({hint.strength:+.3f}, agreement {hint.agreement:+.2f})"
            for name, hint in (("air and wraps", self.air), ("fibres", self.fibres))
        )
        return f"layer order {self.order}, confidence {self.confidence:.2f}: {told}"

    def seen(self, is_reversed: bool) -> Order:
        """Return the order for whom the last layer comes first, or for whom it does not."""
        if self.order == "unknown" or not is_reversed:
            return self.order
        return "reversed" if self.order == "forward" else "forward"


def estimate_layer_order(
    volume: VolumeReader, papyrus_mask: np.ndarray, max_rows: int = 256
) -> LayerOrder:
    """Estimate which way the sheet lies in a volume.

    Args:
        volume: The voxels.
        papyrus_mask: bool (Y, X), somewhere True.
        max_rows: Rows to read at most, in bands spread over the rows the mask reaches.

    Returns:
        The estimate; "unknown" where the hints are weak or contradict each other.
    """
    profiles, turns = [], []
    for y_start, y_stop in _bands(papyrus_mask, max_rows):
        mask = np.asarray(papyrus_mask[y_start:y_stop])
        if mask.any():
            band = volume.read(0, volume.shape[0], y_start, y_stop)
            profiles.append([layer[mask].mean() for layer in band])
            turns.append([_fibre_direction(layer, mask) for layer in band])
    smooth = smooth_profiles(np.array(profiles).T)
    depth = int(smooth.mean(axis=1).argmax())
    return combine(_air_hint(smooth), _fibre_hint(np.array(turns).T, depth))


def note_layer_order(name: str, found: LayerOrder, is_reversed: bool) -> None:
    """Say how the layers of a fragment lie, and what that means if they are read in reverse."""
    is_turned = is_reversed and found.order != "unknown"
    turned = f"; read in reverse, so {found.seen(True)} for the model" if is_turned else ""
    note(f"{name}: {found}{turned}")


def order_of(volume: PreparedVolume) -> LayerOrder:
    """Estimate which way the sheet lies in a prepared volume."""
    return estimate_layer_order(LayersInnermost(volume.volume), volume.papyrus_mask)


def note_training_orders(
    volumes: Mapping[str, PreparedVolume], windows: Mapping[str, Window]
) -> None:
    """Say how the layers of each volume lie, and if a model sees them in different orders.

    Args:
        volumes: What is trained on, by name.
        windows: What the model sees of each.
    """
    orders: dict[str, Order] = {}
    for name, volume in volumes.items():
        found = order_of(volume)
        note_layer_order(name, found, windows[name].is_reversed)
        orders[name] = found.seen(windows[name].is_reversed)
    forward, backward = (
        [name for name in orders if orders[name] == order] for order in ("forward", "reversed")
    )
    if forward and backward:
        note(
            f"the layers of the training fragments seem to reach the model in different orders: "
            f"{', '.join(forward)} forward, {', '.join(backward)} reversed; if so, turn one kind "
            "around with --window.reversed"
        )


def combine(air: Hint, fibres: Hint) -> LayerOrder:
    """Return the order that the hints agree on; "unknown" if they contradict each other."""
    told = [
        (hint.order, weight * abs(hint.agreement))
        for hint, weight in ((air, 1.0), (fibres, FIBRES_ALONE))
        if hint.order != "unknown"
    ]
    if len({order for order, _ in told}) != 1:
        return LayerOrder("unknown", 0.0, air, fibres)
    return LayerOrder(told[0][0], max(confidence for _, confidence in told), air, fibres)


def _bands(papyrus_mask: np.ndarray, max_rows: int) -> list[tuple[int, int]]:
    """Return row ranges of `ROWS_PER_BAND` rows each; the rows of small masks are cut up."""
    return [
        (start, start + ROWS_PER_BAND)
        for first, stop in sampled_bands(papyrus_mask, max_rows)
        for start in range(first, stop - ROWS_PER_BAND + 1, ROWS_PER_BAND)
    ] or sampled_bands(papyrus_mask, max_rows)


def _air_hint(profiles: np.ndarray) -> Hint:
    """Compare the first layers with the last: z profiles (Z, bands), smoothed."""
    outer = max(1, len(profiles) // OUTER_SHARE)
    difference = profiles[-outer:].mean(axis=0) - profiles[:outer].mean(axis=0)
    reach = profiles.max(axis=0) - profiles.min(axis=0)
    return _hint(difference / np.maximum(reach, 1e-9), MIN_AIR)


def _fibre_hint(directions: np.ndarray, depth: int) -> Hint:
    """Compare the fibres before and after the sheet's depth: directions (Z, bands)."""
    before = directions[max(depth - PLY_LAYERS, 0) : depth]
    after = directions[depth + 1 : depth + 1 + PLY_LAYERS]
    if min(len(before), len(after)) < PLY_LAYERS // 2:
        return Hint(0.0, 0.0, 0)
    return _hint((before.mean(axis=0) - after.mean(axis=0)) / 2, 0.0)


def _hint(values: np.ndarray, smallest: float) -> Hint:
    """Return the hint of one value per band; those below `smallest` abstain."""
    votes = np.sign(values) * (np.abs(values) >= smallest)
    return Hint(float(values.mean()), float(votes.mean()), len(values))


def _fibre_direction(layer: np.ndarray, mask: np.ndarray) -> float:
    """Return -1..1 for a layer (Y, X): positive if it varies along y, so that fibres run along x.

    Noise is alike in both directions: it weakens the value but does not turn it.
    """
    lag = FIBRE_LAG
    inside = mask[:-lag, :-lag] & mask[lag:, :-lag] & mask[:-lag, lag:]
    corner = layer[:-lag, :-lag].astype(np.float32)
    along_y = float(((layer[lag:, :-lag] - corner) ** 2)[inside].sum())
    along_x = float(((layer[:-lag, lag:] - corner) ** 2)[inside].sum())
    return (along_y - along_x) / max(along_y + along_x, 1e-9)
