"""From a task-gated network to the plain network it is for one task."""

from __future__ import annotations

import copy
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.mode import MoDE
from core.unet3d import TaskConditioned, check_tasks

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def specialize(model: TaskConditioned, task: int) -> nn.Module:
    """Return the plain network that `model` is for `task`.

    Every mixture of experts becomes one convolution and every batch normalisation is folded into
    the convolution before it. The given model is left as it is.

    Args:
        model: A task-gated network.
        task: Integer in 0..num_tasks-1.

    Returns:
        A module in evaluation mode with ``forward(x)``, on the device and in the precision of
        `model`, holding parameters of its own.

    Raises:
        ValueError: If the task is out of range.

    Reference: RepMode section 3.4; the folding is that of any convolution and its BN.
    """
    check_tasks([task], model.num_tasks)
    # The experts are not copied: at full width they are five times the plain network.
    memo = {
        id(module): module.plain(task) for module in model.modules() if isinstance(module, MoDE)
    }
    plain = copy.deepcopy(model.network, memo).eval()
    for module in plain.modules():
        norm = getattr(module, "norm", None)
        if isinstance(norm, _NORMS):
            conv = cast(nn.Conv3d, module.conv).eval()
            module.conv = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, _TRANSPOSED))
            module.norm = nn.Identity()
    return plain
