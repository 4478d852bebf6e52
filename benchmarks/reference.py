"""What the fast core is measured against: per-sample merging and a plain U-Net.

`use_per_sample_merging` makes a network compute as the official code does: for every sample of the
batch each expert is brought to the largest size by padding with zeros (an average as its weight
times a constant kernel), the padded kernels are weighed and added, and the sample is convolved
with its own kernel. Written from equations (3) to (6) of the paper; automatic differentiation
keeps what it needs.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.choice import COMPUTATIONS
from core.gatrep import Expert, TaskGroups
from core.mode import MoDE
from core.unet3d import Parts, UNet3D


def convolve_per_sample(
    x: Tensor,
    kernels: Sequence[Tensor],
    experts: Sequence[Expert],
    gates_DEO: Tensor,
    groups: TaskGroups,
) -> Tensor:
    """Convolve each sample with a kernel merged for it; arguments as `convolve_merged`.

    Without gradients, which is how a trained network is used, all samples are taken for the first
    one's task and convolved at once with its kernel, though every sample's is merged: so does the
    official code in evaluation.
    """
    size = max(expert.size for expert in experts)
    whole = [_as_convolution(*pair, size) for pair in zip(kernels, experts, strict=True)]
    merged = torch.stack(
        [
            reduce(
                operator.add,
                [
                    gate_O[:, None, None, None, None] * kernel
                    for gate_O, kernel in zip(gates_EO, whole, strict=True)
                ],
            )
            for gates_EO in gates_DEO[groups.group]
        ]
    )
    if not torch.is_grad_enabled():
        return F.conv3d(x, merged[0], padding="same")
    pairs = zip(x, merged, strict=True)
    return torch.cat([F.conv3d(sample[None], kernel, padding="same") for sample, kernel in pairs])


def _as_convolution(kernel: Tensor, expert: Expert, size: int) -> Tensor:
    """Return the convolution of full size that an expert is, (O, I, size, size, size)."""
    if expert.kind == "average":
        share = torch.full((expert.size,) * 3, 1 / expert.size**3, device=kernel.device)
        kernel = torch.einsum("oidhw,dhw->oidhw", kernel.expand(-1, -1, *share.shape), share)
    margin = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, [margin] * 6) if margin else kernel


def use_per_sample_merging(model: nn.Module) -> None:
    """Let every mixture of a network compute as the official code does."""
    COMPUTATIONS["per-sample"] = convolve_per_sample  # type: ignore[index]
    set_computation(model, "per-sample")


def set_computation(model: nn.Module, name: str) -> None:
    """Let every mixture of a network compute its sum this way."""
    for block in model.modules():
        if isinstance(block, MoDE):
            block.computation = name  # type: ignore[assignment]


def plain_unet(base_channels: int) -> UNet3D:
    """Return a U-Net of PyTorch's own 5x5x5 convolutions, with the widths of RepMode."""
    parts = Parts(partial(nn.Conv3d, kernel_size=5, padding=2, bias=False))
    return UNet3D(parts, parts, 1, 1, base_channels, num_stages=4)
