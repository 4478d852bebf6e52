"""Patches of papyrus with blocks hidden, what a network is told for them, and how well it did.

No label is needed. Axes: N samples, Z layers, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from core.masked_autoencoder import MaskConfig, hidden_error, hidden_voxels, hide
from core.pictures import side_by_side, stacked
from core.training import Validation
from vesuvius.dataset import PatchSource, normalised, read_voxels

BATCH_SIZE = 8
PICTURE_SIDE = 256
PICTURE_STDS = 2.5  # standard deviations of a patch from its mean to black and to white


class MaskedPatches(Dataset[dict[str, Tensor]]):
    """Patches, flipped and turned at random, with what is hidden of each.

    `dataset[(epoch, index)]` depends on nothing but seed and key.

    Args:
        sources: Where patches come from; their windows have the same number of layers.
        patch_size: Rows and columns of a patch, in pixels.
        seed: All randomness follows from it, the epoch and the index.
        mask: What is hidden.
        z_shift: Greatest random shift of the window, in layers, up or down within the volume.

    Raises:
        ValueError: If the mask would hide nothing or all of a patch.
    """

    def __init__(
        self,
        sources: Sequence[PatchSource],
        patch_size: int,
        seed: int,
        mask: MaskConfig,
        z_shift: int = 0,
    ) -> None:
        self.sources = list(sources)
        self.patch_size = patch_size
        self.seed = seed
        self.mask = mask
        self.z_shift = z_shift
        for source in self.sources:
            shape = (source.z_stop - source.z_start, patch_size, patch_size)
            hidden_voxels(shape, mask, np.random.default_rng(seed))  # refuses what it cannot hide
        self._corners = [
            (source, corner) for source in self.sources for corner in range(len(source.points))
        ]

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Return one patch.

        Args:
            key: Epoch, and index from 0 to `len(self) - 1`.

        Returns:
            `x` float32 and `hidden` bool, both (1, Z, Y, X), and `task` int64 ().
        """
        rng = np.random.default_rng((self.seed, *key))
        source, number = self._corners[key[1]]
        corner = source.points[number]
        patch_YXZ = read_voxels(source, corner, self.patch_size, self.z_shift, rng)
        patch_YXZ = np.rot90(patch_YXZ, rng.integers(4))
        if rng.integers(2):
            patch_YXZ = patch_YXZ[::-1]
        x_ZYX = normalised(np.ascontiguousarray(patch_YXZ), source)
        hidden_ZYX = hidden_voxels(x_ZYX.shape, self.mask, rng)
        return {
            "x": torch.from_numpy(x_ZYX)[None],
            "hidden": torch.from_numpy(hidden_ZYX)[None],
            "task": torch.tensor(source.task),
        }


class HiddenLoss:
    """The error of what a network says about the hidden voxels of a batch."""

    def __init__(self, mask: MaskConfig) -> None:
        self._mask = mask

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss; it has no parts."""
        prediction = reconstruct(model, batch)
        return hidden_error(prediction, self._mask.target(batch["x"]), batch["hidden"]), {}


def reconstruct(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return what a network says about a batch of which it sees what is not hidden."""
    x = hide(batch["x"], batch["hidden"])
    if x.device.type == "cpu":  # faster there: benchmarks/memory_layout.py
        x = x.to(memory_format=torch.channels_last_3d)
    prediction: Tensor = model(x, batch["task"])
    return prediction


class HiddenValidator:
    """Tells how well hidden voxels of the held-out pieces are told: score is minus the error.

    Args:
        held_out: Patches of each fragment that has a held-out piece, by name; the same blocks are
            hidden each time.
        mask: What is hidden.

    Raises:
        ValueError: If there is no patch.
    """

    def __init__(self, held_out: Mapping[str, MaskedPatches], mask: MaskConfig) -> None:
        if not any(map(len, held_out.values())):
            raise ValueError(
                "no papyrus in the held-out pieces to validate on; hold out a larger fraction or "
                "another fragment"
            )
        self._held_out = {name: patches for name, patches in held_out.items() if len(patches)}
        self._mask = mask

    def __call__(self, model: nn.Module) -> Validation:
        """Return the score of `model`, with a picture of the middle patch of each fragment.

        The metrics are the error and the share of the target's variance that is explained: 0 for
        the best constant, 1 for the truth.
        """
        device = next(model.parameters()).device
        count, total, squares, error = 0, 0.0, 0.0, 0.0
        previews = {}
        for name, patches in self._held_out.items():
            for start in range(0, len(patches), BATCH_SIZE):
                indices = range(start, min(start + BATCH_SIZE, len(patches)))
                batch = _batch(patches, indices, device)
                hidden = batch["hidden"]
                target = self._mask.target(batch["x"])[hidden].double()
                prediction = reconstruct(model, batch)[hidden].double()
                count += len(target)
                total += target.sum().item()
                squares += target.square().sum().item()
                error += (prediction - target).square().sum().item()
            previews[name] = self._picture(model, _batch(patches, [len(patches) // 2], device))
        variance = squares / count - (total / count) ** 2
        mean_error = error / count
        metrics = {"error": mean_error, "explained": 1 - mean_error / variance}
        return Validation(score=-mean_error, metrics=metrics, previews=previews)

    def _picture(self, model: nn.Module, batch: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return truth, what was seen and what was told of a patch, from above and from the side.

        Visible voxels are shown as they are.
        """
        x, hidden = batch["x"], batch["hidden"]
        told = self._mask.values(reconstruct(model, batch), x)
        volumes = (x, hide(x, hidden), torch.where(hidden, told, x))
        views = [
            side_by_side(*(_gray(volume[0, 0][plane], x) for volume in volumes))
            for plane in (np.s_[x.shape[2] // 2], np.s_[:, x.shape[3] // 2])
        ]
        return stacked(*views)


def _batch(
    patches: MaskedPatches, indices: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    samples = default_collate([patches[0, index] for index in indices])
    return {name: tensor.to(device) for name, tensor in samples.items()}


def _gray(plane: Tensor, x: Tensor) -> NDArray[np.uint8]:
    """Return a plane as a picture, enlarged, with black and white as suits the patch `x`."""
    std, mean = torch.std_mean(x)
    gray = ((plane - mean) / (2 * PICTURE_STDS * std + 1e-6) + 0.5).clamp(0, 1) * 255
    picture = gray.round().to(torch.uint8).cpu().numpy()
    factor = max(1, PICTURE_SIDE // x.shape[-1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
