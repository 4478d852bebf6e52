"""Intensities of a volume: how bright each layer is, where the sheet lies, how to normalise.

Everything follows from one histogram per layer, counted inside the papyrus mask over rows that
depend on the mask alone. The same voxels therefore give the same numbers, to the last bit, from
TIFF layers, a prepared volume or OME-Zarr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from core.terminal import note

if TYPE_CHECKING:
    from vesuvius.fragment import VolumeReader

Intensity = Literal["raw", "zscore", "percentile"]

NUM_BINS = 256
ROWS_PER_BAND = 8
LOW_CONTRAST_STD = 4.0  # of 0..255; layers that use their range have ten times that
PROFILE_SIGMA = 2.0  # layers; evens out single bright or noisy layers before the peak is sought


class VolumeStatistics:
    """Intensity statistics of the layers inside the papyrus mask.

    Args:
        histograms: int64 (Z, 256), voxels of each uint8 value per layer, at least one each.

    Raises:
        ValueError: If the histograms have another shape or a layer has no voxel.
    """

    def __init__(self, histograms: np.ndarray) -> None:
        if histograms.ndim != 2 or histograms.shape[1] != NUM_BINS or len(histograms) == 0:
            raise ValueError(f"histograms have shape {histograms.shape}, expected (Z, {NUM_BINS})")
        if not histograms.sum(axis=1).all():
            raise ValueError("histograms have a layer without a voxel; give a papyrus mask")
        self.histograms = histograms

    @property
    def z_profile(self) -> np.ndarray:
        """Mean intensity of each layer, float64 (Z,) in 0..255."""
        return self.histograms @ np.arange(NUM_BINS) / self.histograms.sum(axis=1)

    @property
    def sheet_depth(self) -> int:
        """The layer where the smoothed z profile peaks: where most papyrus is."""
        return int(smooth_profiles(self.z_profile).argmax())

    def mean_std(self, z_start: int, z_stop: int) -> tuple[float, float]:
        """Return mean and standard deviation (0..255) of the layers z_start..z_stop."""
        counts = self.histograms[z_start:z_stop].sum(axis=0)
        values = np.arange(NUM_BINS)
        mean = counts @ values / counts.sum()
        variance = counts @ (values - mean) ** 2 / counts.sum()
        return float(mean), float(np.sqrt(variance))

    def percentile(self, percent: float, z_start: int, z_stop: int) -> int:
        """Return the least value that at least `percent` of the voxels of some layers reach.

        Args:
            percent: 0..100; 0 is the least value of all, 100 the greatest.
            z_start: First layer.
            z_stop: One past the last layer.
        """
        counts = self.histograms[z_start:z_stop].sum(axis=0).cumsum()
        return int(np.searchsorted(counts, max(percent / 100 * counts[-1], 1)))


def smooth_profiles(profiles: np.ndarray) -> np.ndarray:
    """Return z profiles (Z, ...) smoothed along Z, the first and last layer repeated beyond."""
    radius = round(3 * PROFILE_SIGMA)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / PROFILE_SIGMA) ** 2)
    padded = np.concatenate([profiles[:1]] * radius + [profiles] + [profiles[-1:]] * radius)
    num_layers = len(profiles)
    shares = weights / weights.sum()
    return sum(share * padded[i : i + num_layers] for i, share in enumerate(shares))


def layer_histograms(
    volume: VolumeReader, papyrus_mask: np.ndarray, max_rows: int = 256
) -> np.ndarray:
    """Count the intensities of each layer inside the mask.

    Args:
        volume: The voxels.
        papyrus_mask: bool (Y, X), not all False.
        max_rows: Rows to read at most, in bands spread evenly over the rows the mask reaches.

    Returns:
        int64 (Z, 256).
    """
    num_layers = volume.shape[0]
    histograms = np.zeros((num_layers, NUM_BINS), np.int64)
    for y_start, y_stop in sampled_bands(papyrus_mask, max_rows):
        mask = np.asarray(papyrus_mask[y_start:y_stop])
        for counts, layer in zip(
            histograms, volume.read(0, num_layers, y_start, y_stop), strict=True
        ):
            counts += np.bincount(layer[mask], minlength=NUM_BINS)
    return histograms


def z_window(
    statistics: VolumeStatistics, num_layers: int, z_start: int | None = None
) -> tuple[int, int]:
    """Return the layers (z_start, z_stop) that a model of `num_layers` layers sees.

    Args:
        statistics: Of the volume.
        num_layers: How many layers the model takes.
        z_start: First layer; None centres the window on the sheet, shifted to lie in the volume.

    Raises:
        ValueError: If the window does not fit into the volume.
    """
    depth = len(statistics.histograms)
    if not 1 <= num_layers <= depth:
        raise ValueError(
            f"{num_layers} layers are wanted but the volume has {depth}; "
            f"choose 1..{depth} layers or another volume"
        )
    if z_start is None:
        z_start = min(max(statistics.sheet_depth - num_layers // 2, 0), depth - num_layers)
    if not 0 <= z_start <= depth - num_layers:
        raise ValueError(
            f"z_start {z_start} with {num_layers} layers leaves the volume of {depth} layers; "
            f"choose 0..{depth - num_layers}"
        )
    return z_start, z_start + num_layers


def intensity_scale(
    kind: Intensity,
    statistics: VolumeStatistics,
    z_start: int,
    z_stop: int,
    percentiles: tuple[float, float] = (0.0, 100.0),
) -> tuple[float, float]:
    """Return (offset, scale) of the normalisation x = (value - offset) * scale.

    Args:
        kind: "raw" maps 0..255 to 0..1, which to within half a step is 0..65535 to 0..1 for layers
            of 16 bits; "zscore" gives mean 0 and standard deviation 1 over the layers
            z_start..z_stop inside the mask; "percentile" maps what lies between two percentiles
            there to 0..1, and x is to be clipped to that.
        statistics: Of the volume.
        z_start: First layer.
        z_stop: One past the last layer.
        percentiles: Lower and upper for "percentile".

    Raises:
        ValueError: If `kind` is unknown, or the layers are of one value where that is undefined.
    """
    if kind == "raw":
        return 0.0, 1 / 255
    if kind == "zscore":
        offset, width = statistics.mean_std(z_start, z_stop)
    elif kind == "percentile":
        low, high = (statistics.percentile(p, z_start, z_stop) for p in percentiles)
        offset, width = float(low), float(high - low)
    else:
        raise ValueError(
            f"normalisation {kind!r} is unknown; choose one of {', '.join(get_args(Intensity))}"
        )
    if width == 0:
        raise ValueError(
            f"layers {z_start}..{z_stop - 1} all have the value {offset:g}, so {kind} is "
            "undefined; check the input or choose raw"
        )
    return offset, 1 / width


def note_low_contrast(path: Path, std: float) -> None:
    """Say so if the intensities of a fragment hardly differ.

    Args:
        path: Of the fragment.
        std: Standard deviation of its voxels inside the mask, of 0..255.
    """
    if std < LOW_CONTRAST_STD:
        note(
            f"{path}: intensities hardly differ (standard deviation {std:.2g} of 0..255); "
            "16-bit layers are read as value >> 8, so stretch them to the full range first"
        )


def sampled_bands(papyrus_mask: np.ndarray, max_rows: int) -> list[tuple[int, int]]:
    """Return row ranges (y_start, y_stop), at most `max_rows` rows, first masked row included."""
    rows = np.flatnonzero(papyrus_mask.any(axis=1))
    first, stop = int(rows[0]), int(rows[-1]) + 1
    if stop - first <= max_rows:
        return [(first, stop)]
    num_bands = max(1, max_rows // ROWS_PER_BAND)
    starts = np.linspace(first, stop - ROWS_PER_BAND, num_bands).astype(int)
    return [(start, start + ROWS_PER_BAND) for start in starts.tolist()]
