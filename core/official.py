"""Reads checkpoints written by the official RepMode code, without running what they pickle.

An official `.p` file is a PyTorch archive of a dictionary: `nn_state` (the state dict), `opts` (a
pickled ``argparse.Namespace``), optimiser state and counters. It is read by PyTorch's restricted
unpickler with the Namespace as the only class admitted beside tensors.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.unet3d import RepModeUNet

_OFFICIAL_EXPERTS = (
    "expert_conv5x5_conv",
    "expert_conv3x3_conv",
    "expert_conv1x1_conv",
    "expert_avg3x3_conv",
    "expert_avg5x5_conv",
)
_FIRST_KERNEL = "encoder_block1.conv_more.conv1.expert_conv5x5_conv"
_FIRST_GATE = "encoder_block1.conv_more.conv1.gate.weight"
_NUM_STAGES = 4


def load_official_checkpoint(path: str | Path) -> tuple[RepModeUNet, list[str]]:
    """Load an official RepMode checkpoint.

    Args:
        path: The `.p` file.

    Returns:
        The network on the CPU, in evaluation mode, and the names of its tasks in gate order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an official RepMode checkpoint, or holds objects other than
            tensors, plain containers and an ``argparse.Namespace``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path.absolute()}")
    content = _read_archive(path)
    state = content.get("nn_state") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not {_FIRST_KERNEL, _FIRST_GATE} <= state.keys():
        raise ValueError(
            f"{path} is not an official RepMode checkpoint: no RepMode weights under 'nn_state'"
        )
    base_channels, in_channels = state[_FIRST_KERNEL].shape[:2]
    num_tasks = state[_FIRST_GATE].shape[1]
    tasks = list(getattr(content.get("opts"), "adopted_datasets", []))
    if len(tasks) != num_tasks:
        tasks = [f"task_{task}" for task in range(num_tasks)]
    model = RepModeUNet(num_tasks, base_channels, in_channels)
    try:
        model.load_state_dict(from_official_names(state))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the RepMode network: {_one_line(error)}") from error
    return model.eval(), tasks


def from_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict under this project's parameter names.

    The constant pooling kernels, which official files carry as buffers, are left out.
    """
    return {_our_name(name): value for name, value in state.items() if not name.endswith("_pool")}


def _our_name(official: str) -> str:
    """Translate one name.

    Example: `decoder_block4.conv_less.conv1.expert_conv3x3_conv` becomes
    `network.decoder.stages.0.blocks.0.conv.kernels.1` (the deepest decoder block comes first).
    """
    block, _, rest = official.partition(".")
    number = int(block[-1]) if block[-1].isdigit() else 0
    where = {
        "encoder_block": f"encoder.stages.{number - 1}",
        "decoder_block": f"decoder.stages.{_NUM_STAGES - number}",
        "bottle_block": "encoder",
        "conv_out": "head",
    }[block.rstrip("0123456789")]
    rest = re.sub(r"^conv_(more|less)\.", "", rest)
    blocks = "bottleneck" if block == "bottle_block" else "blocks"
    rest = re.sub(r"^conv([12])\.", lambda m: f"{blocks}.{int(m[1]) - 1}.", rest)
    rest = re.sub(r"^conv_down\.", "down.", rest)
    rest = re.sub(r"^convt\.", "up.", rest)
    rest = re.sub(r"^(down|up)\.0\.", r"\1.conv.", rest)
    rest = re.sub(r"^(down|up)\.1\.", r"\1.norm.", rest)
    rest = rest.replace("subsequent_layer.0.", "norm.")
    mixture = "" if block == "conv_out" else "conv."
    rest = rest.replace("gate.", f"{mixture}gate.linear.")
    for e, expert in enumerate(_OFFICIAL_EXPERTS):
        rest = rest.replace(expert, f"{mixture}kernels.{e}")
    return f"network.{where}.{rest}"


def _read_archive(path: Path) -> Any:
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as an official RepMode checkpoint: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
