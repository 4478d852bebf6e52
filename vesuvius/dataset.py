"""Training patches out of prepared volumes.

Axes: Y rows, X columns, Z layers, C maps. Volumes are stored (Y, X, Z), tensors are NCZYX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vesuvius.augment import Augmentation, AugmentConfig
from vesuvius.label_care import LabelConfig, patch_maps
from vesuvius.mixing import cutmix, mixup
from vesuvius.prepared import PreparedVolume


@dataclass(frozen=True)
class PatchSource:
    """A prepared volume and what is taken from it.

    Args:
        volume: Mapped, and pickled as its path.
        points: Top-left corners (N, 2) of patches, in (y, x).
        z_start: First layer.
        z_stop: One past the last layer.
        offset: Intensity that becomes 0, in 0..255; blanked layers have it.
        scale: Factor on what is above `offset`: the network sees (intensity - offset) * scale.
        is_clipped: Whether what the network sees is clipped to 0..1.
        is_reversed: Whether the last layer comes first.
        task: Index of the task these patches belong to.
        levels: What each grey of the infrared photograph is as a target, uint8 (256,); None for
            patches whose target is the ink.
    """

    volume: PreparedVolume
    points: NDArray[np.int32]
    z_start: int
    z_stop: int
    offset: float
    scale: float
    is_clipped: bool = False
    is_reversed: bool = False
    task: int = 0
    levels: NDArray[np.uint8] | None = None


class InkPatches(Dataset[dict[str, Tensor]]):
    """Patches of all sources; `dataset[(epoch, index)]` depends on nothing but seed and key.

    Args:
        sources: Where patches come from; their windows have the same number of layers.
        patch_size: Rows and columns of a patch, in pixels.
        seed: All randomness follows from it, the epoch and the index.
        augment: Random changes; none by default.
        z_shift: Greatest random shift of the window, in layers, up or down within the volume.
        labels: What of the labels does not count.

    Raises:
        ValueError: A source does not fit its volume, or the sources each other.
    """

    def __init__(
        self,
        sources: Sequence[PatchSource],
        patch_size: int,
        seed: int,
        augment: AugmentConfig | None = None,
        z_shift: int = 0,
        labels: LabelConfig | None = None,
    ) -> None:
        self.sources = list(sources)
        self.patch_size = patch_size
        self.seed = seed
        self.augment = augment
        self.z_shift = z_shift
        self.labels = labels or LabelConfig()
        self._stops = np.cumsum([len(source.points) for source in self.sources])
        self._check()
        self._augmentations = [
            None
            if augment is None
            else Augmentation(augment, round(source.offset), source.levels is not None)
            for source in self.sources
        ]

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Return one patch.

        Args:
            key: Epoch, and index from 0 to `len(self) - 1`.

        Returns:
            `x` float32 (1, Z, Y, X), `task` int64 (), and float32 (1, Y, X): `label`, the ink, 0
            or 1 and after mixup anything between, or how bright the infrared photograph is, 0..1,
            and `valid`, 1 where it counts and else 0.
        """
        epoch, index = key
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        rng = np.random.default_rng((self.seed, epoch, index))
        sample = self._sample(index, rng)
        config = self.augment
        if config is None or not config.mixup + config.cutmix:
            return sample
        draw = rng.random()
        if draw >= config.mixup + config.cutmix:
            return sample
        other = self._sample(self._partner(int(sample["task"]), rng), rng)
        share = rng.beta(config.mix_alpha, config.mix_alpha)
        if draw < config.mixup:
            return mixup(sample, other, share)
        return cutmix(sample, other, share, rng)

    def _partner(self, task: int, rng: np.random.Generator) -> int:
        """Return the index of a random patch of a task."""
        of_task = [number for number, source in enumerate(self.sources) if source.task == task]
        lengths = [len(self.sources[number].points) for number in of_task]
        stops = np.cumsum(lengths)
        drawn = int(rng.integers(stops[-1]))
        place = int(np.searchsorted(stops, drawn, side="right"))
        return int(self._stops[of_task[place]] - stops[place]) + drawn

    def _sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a patch before it is mixed with another."""
        number = int(np.searchsorted(self._stops, index, side="right"))
        source = self.sources[number]
        first = int(self._stops[number]) - len(source.points)
        patch_YXZ, maps_YXC = self._read(source, index - first, rng)
        if augmentation := self._augmentations[number]:
            patch_YXZ, maps_YXC = augmentation(patch_YXZ, maps_YXC, rng)
        x_ZYX = _normalised(patch_YXZ, source)
        maps_CYX = torch.from_numpy(maps_YXC.transpose(2, 0, 1).astype(np.float32, order="C"))
        return {
            "x": torch.from_numpy(x_ZYX)[None],
            "task": torch.tensor(source.task),
            "label": maps_CYX[:1] if source.levels is None else maps_CYX[:1] / 255,
            "valid": maps_CYX[1:],
        }

    def _read(
        self, source: PatchSource, point: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the voxels (Y, X, Z) of a patch, and its label and loss mask (Y, X, C)."""
        volume = source.volume
        y, x = source.points[point].tolist()
        rows, columns = slice(y, y + self.patch_size), slice(x, x + self.patch_size)
        down = min(self.z_shift, source.z_start)
        up = min(self.z_shift, volume.volume.shape[2] - source.z_stop)
        shift = int(rng.integers(-down, up, endpoint=True))
        layers = slice(source.z_start + shift, source.z_stop + shift)
        # as plain arrays, for slicing a map as such takes as long as reading it
        patch_YXZ = np.asarray(volume.volume)[rows, columns, layers]
        if source.is_reversed:
            patch_YXZ = patch_YXZ[..., ::-1]
        return np.ascontiguousarray(patch_YXZ), self._maps(source, (y, x))

    def _maps(self, source: PatchSource, corner: tuple[int, int]) -> NDArray[np.uint8]:
        """Return target and loss mask (Y, X, C) of a patch: ink 0 or 1, infrared 0..255."""
        volume, size = source.volume, self.patch_size
        if source.levels is None:
            return patch_maps(volume.ink_label, volume.labelled_papyrus, corner, size, self.labels)
        labels = replace(self.labels, edge_band=0)  # a photograph has no edges drawn by hand
        maps_YXC = patch_maps(volume.ir_image, volume.papyrus_mask, corner, size, labels)
        maps_YXC[..., 0] = source.levels[maps_YXC[..., 0]]
        return maps_YXC

    def _check(self) -> None:
        """Refuse what would fail, or read the wrong voxels, in the middle of a run."""
        if not self.sources or not len(self):
            raise ValueError("no patches to draw from; sample more points or add a fragment")
        depths = {source.z_stop - source.z_start for source in self.sources}
        if len(depths) > 1:
            raise ValueError(f"windows of {sorted(depths)} layers; all need the same number")
        if self.augment is not None and self.augment.layer_dropout >= min(depths):
            raise ValueError(
                f"augment.layer_dropout {self.augment.layer_dropout} would blank all "
                f"{min(depths)} layers of a patch; use fewer"
            )
        for source in self.sources:
            self._check_source(source)

    def _check_source(self, source: PatchSource) -> None:
        path = source.volume.path
        height, width, num_layers = source.volume.volume.shape
        if source.levels is None and source.volume.ink_label is None:
            raise ValueError(f"{path} has no ink label; prepare it from a labelled fragment")
        if source.levels is not None and source.volume.ir_image is None:
            raise ValueError(f"{path} has no infrared photograph; add ir.png and prepare it again")
        if not 0 <= source.z_start < source.z_stop <= num_layers:
            raise ValueError(
                f"layers {source.z_start}:{source.z_stop} do not lie in {path}, "
                f"which has {num_layers}; choose a window inside 0:{num_layers}"
            )
        stops = source.points + self.patch_size
        if len(stops) and ((source.points < 0).any() or (stops > (height, width)).any()):
            raise ValueError(
                f"a patch of {self.patch_size} px lies outside {path}, which is {height} x "
                f"{width} px; sample the points from this volume with this patch_size"
            )


def _normalised(patch_YXZ: NDArray[np.uint8], source: PatchSource) -> NDArray[np.float32]:
    """Return what the network sees of a patch, (Z, Y, X)."""
    height, width, depth = patch_YXZ.shape
    layers = cv2.transpose(patch_YXZ.reshape(-1, depth))  # several times faster than NumPy's
    x_ZYX = layers.reshape(depth, height, width).astype(np.float32)
    x_ZYX -= np.float32(source.offset)
    x_ZYX *= np.float32(source.scale)
    if source.is_clipped:
        np.clip(x_ZYX, 0, 1, out=x_ZYX)
    return x_ZYX
