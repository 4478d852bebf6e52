"""Fragments at the voxel size of a model, and their maps back on the grid of the fragment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from core.terminal import note
from vesuvius.fragment import Fragment, fingerprint
from vesuvius.ome_zarr import VoxelSize
from vesuvius.resample import Axis, ResampledVolume, mix_plane, resampled_map

if TYPE_CHECKING:
    from vesuvius.inkmap import InkModel
    from vesuvius.prepared import PreparedVolume

MOST = 16.0  # times finer or coarser; more is a mistyped unit
TOLERANCE = 0.02  # of the voxel size; less is not worth a word


@dataclass(frozen=True)
class Resampling:
    """What is done about voxel sizes in prediction.

    Args:
        resample: Resample the fragment to the voxel size of the model's training, whose layers
            z_start then counts; the map still has the fragment's own pixels.
        input_voxel_size: Voxel size of the fragment in um, where its files tell none or a wrong
            one.
    """

    resample: bool = False
    input_voxel_size: float | None = None

    def apply(self, fragment: Fragment, models: Sequence[InkModel]) -> tuple[Fragment, MapGrid]:
        """Return a fragment as the models are to see it, and the grid of its maps.

        Says so if they know another voxel size.

        Raises:
            ValueError: If a voxel size is needed and unknown, or is no size.
        """
        seen = with_voxel_size(fragment, self.input_voxel_size)
        if self.resample:
            seen = _as_trained(seen, models[0])
        remedy = "leave that model out" if self.resample else "--resample shows it at that size"
        for size in dict.fromkeys(model.voxel_size_um for model in models):
            if not is_alike(seen.voxel_size_um, size):
                note(
                    f"{fragment.name}: voxels of {in_um(seen.voxel_size_um)}, but the model was "
                    f"trained on {in_um(size)}; {remedy}"
                )
        return seen, MapGrid.between(fragment, seen)


@dataclass(frozen=True, eq=False)
class MapGrid:
    """The pixels in which a map is predicted and those in which it is published.

    Attributes:
        mask: Papyrus mask of the published map, bool (Y, X).
        predicted: Where the prediction is needed for it, bool (Y, X) of its own size.
        axes: Rows and columns of the one from the other, None where they are the same.
    """

    mask: np.ndarray
    predicted: np.ndarray
    axes: tuple[Axis, Axis] | None = None

    @classmethod
    def between(cls, own: Fragment, seen: Fragment) -> MapGrid:
        """Return the grid for maps of a fragment, predicted from it as a model sees it."""
        mask = own.papyrus_mask
        if own.volume is seen.volume:
            return cls(mask, mask)
        assert seen.resampled_from_um is not None
        assert seen.voxel_size_um is not None
        own_grid = seen.resampled_from_um, mask.shape
        seen_grid = seen.voxel_size_um, seen.papyrus_mask.shape
        rows, columns = _axes(own_grid, seen_grid)
        touched = resampled_map(mask, rows, columns, lambda mixed: (mixed > 0).astype(np.uint8))
        # a published pixel is mixed of predicted ones at most one beside those that it touches
        predicted = cv2.dilate(touched, np.ones((3, 3), np.uint8)).astype(bool)
        return cls(mask, predicted, _axes(seen_grid, own_grid))

    def publish(self, read: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
        """Return published rows start..stop of maps of 0..1, (C, rows, X).

        Args:
            read: Returns predicted rows of them, 0 outside `predicted`.
            start: First row.
            stop: One past the last.
        """
        if self.axes is None:
            return read(start, stop)
        rows, columns = self.axes
        values = mix_plane(read(*rows.source(start, stop)), rows, columns, start, stop)
        return np.where(self.mask[start:stop], values.clip(0, 1), 0)  # rounding exceeds 1


def with_voxel_size(fragment: Fragment, um: float | None) -> Fragment:
    """Return a fragment whose voxels are cubes of that size, whatever it says; None believes it.

    Raises:
        ValueError: If it is no size.
    """
    return fragment if um is None else replace(fragment, voxel_size_um=cubic(um))


def cubic(um: float) -> VoxelSize:
    """Return the size of voxels that are cubes.

    Raises:
        ValueError: If it is no size.
    """
    if not 0 < um < math.inf:
        raise ValueError(f"voxel size {um:g} is no size; give micrometres above 0")
    return um, um, um


def is_alike(a: VoxelSize | None, b: VoxelSize | None) -> bool:
    """Tell whether two sizes are the same as far as is known, and as far as it matters."""
    if a is None or b is None:
        return True
    return all(abs(x / y - 1) <= TOLERANCE for x, y in zip(a, b, strict=True))


def in_um(size: VoxelSize | None) -> str:
    """Return a size in words."""
    if size is None:
        return "unknown size"
    axes = " x ".join(f"{um:.4g}" for um in size)
    return f"{size[0]:.4g} um" if len(set(size)) == 1 else f"{axes} um (Z, Y, X)"


def common_size(sizes: Sequence[VoxelSize | None]) -> VoxelSize | None:
    """Return the size that all of which one is known have in common, None if there is none."""
    known = [size for size in sizes if size]
    return known[0] if known and all(is_alike(known[0], size) for size in known) else None


def note_voxel_sizes(volumes: Mapping[str, PreparedVolume]) -> None:
    """Say so if volumes that are trained on together differ in their voxel size."""
    sizes = {name: volume.info["voxel_size_um"] for name, volume in volumes.items()}
    if any(sizes.values()) and common_size(list(sizes.values())) is None:
        told = ", ".join(f"{name} {in_um(size)}" for name, size in sizes.items())
        note(f"the volumes differ in voxel size ({told}); prepare them with one --voxel-size")


def native(volumes: Mapping[str, PreparedVolume]) -> Mapping[str, PreparedVolume]:
    """Return the volumes that were not resampled, if there are any, else all of them.

    How many layers resampled ones have depends on rounding.
    """
    kept = {
        name: volume for name, volume in volumes.items() if not volume.info.get("resampled_from_um")
    }
    return kept or volumes


def input_identity(seen: Fragment, grid: MapGrid) -> dict[str, Any]:
    """Return what stands for a fragment in the settings of a prediction."""
    identity: dict[str, Any] = {"input_fingerprint": fingerprint(seen)}
    if grid.axes is not None:
        identity["resampled_to_um"] = list(seen.voxel_size_um or ())
    return identity


def resampled(fragment: Fragment, voxel_size_um: VoxelSize) -> Fragment:
    """Return a fragment at another voxel size: its voxels, read when asked for, and all its maps.

    Masks and labels are True where they cover at least half of a pixel. A fragment of that very
    size is returned as it is.

    Raises:
        ValueError: If its own voxel size is unknown, the two are too far apart, or no papyrus is
            left.
    """
    own = fragment.voxel_size_um
    if own is None:
        raise ValueError(
            f"{fragment.path} does not tell its voxel size, so it cannot be resampled; give it "
            "with --input-voxel-size"
        )
    if own == voxel_size_um:
        return fragment
    factors = tuple(a / b for a, b in zip(own, voxel_size_um, strict=True))
    if not all(1 / MOST <= factor <= MOST for factor in factors):
        raise ValueError(
            f"{fragment.path} has voxels of {in_um(own)}, which cannot be resampled to "
            f"{in_um(voxel_size_um)}: {MOST:g} times finer or coarser at most; check both sizes"
        )
    volume = ResampledVolume(fragment.volume, factors)
    axes = _axes((own, fragment.papyrus_mask.shape), (voxel_size_um, volume.shape[1:]))
    maps = _resampled_maps(fragment, *axes)
    if not maps["papyrus_mask"].any():
        raise ValueError(
            f"{fragment.path} has no papyrus left at {in_um(voxel_size_um)}; check its mask, or "
            "choose a smaller size"
        )
    return replace(
        fragment, volume=volume, voxel_size_um=voxel_size_um, resampled_from_um=own, **maps
    )


def _as_trained(fragment: Fragment, model: InkModel) -> Fragment:
    """Return a fragment at the voxel size of a model's training, and say so."""
    wanted = model.voxel_size_um
    if wanted is None:
        raise ValueError(
            "the volumes that the model was trained on told no voxel size, or several, so nothing "
            "can be resampled to it; leave out --resample, or prepare them with "
            "--input-voxel-size or --voxel-size and train again"
        )
    seen = resampled(fragment, wanted)
    if seen is not fragment:
        shape = " x ".join(map(str, seen.volume.shape))
        own = in_um(fragment.voxel_size_um)
        note(f"{fragment.name}: resampled from {own} to {in_um(wanted)}, {shape} (Z, Y, X)")
    else:
        note(f"{fragment.name}: has the model's voxel size of {in_um(wanted)} already")
    return seen


def _axes(
    source: tuple[VoxelSize, tuple[int, int]], target: tuple[VoxelSize, tuple[int, int]]
) -> tuple[Axis, Axis]:
    """Return how rows and columns of one grid follow from another; each is its size and (Y, X)."""
    (source_um, source_shape), (target_um, target_shape) = source, target
    rows, columns = (
        Axis.of(source_shape[i], source_um[i + 1] / target_um[i + 1], target_shape[i])
        for i in range(2)
    )
    return rows, columns


def _resampled_maps(fragment: Fragment, rows: Axis, columns: Axis) -> dict[str, np.ndarray]:
    """Return all maps of a fragment resampled, by the names of its fields."""
    finish: dict[np.dtype, Callable[[np.ndarray], np.ndarray]] = {
        np.dtype(bool): lambda mixed: mixed >= 0.5,
        np.dtype(np.uint8): lambda mixed: np.rint(mixed).astype(np.uint8),
    }
    maps = {field.name: getattr(fragment, field.name) for field in fields(fragment)}
    return {
        name: resampled_map(values, rows, columns, finish[values.dtype])
        for name, values in maps.items()
        if isinstance(values, np.ndarray)
    }
