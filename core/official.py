"""Reads and writes checkpoints of the official RepMode code, without running what they pickle.

An official `.p` file is a PyTorch archive of a dictionary: `nn_state` (the state dict), `opts` (a
pickled ``argparse.Namespace``), optimiser state and counters. It is read by PyTorch's restricted
unpickler with the Namespace as the only class admitted beside tensors.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.files import atomic_path
from core.mode import MoDE
from core.unet3d import RepModeUNet, TaskConditioned

# What PyTorch's unpickler raises on garbage: it checks little before it uses what it reads.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_NUM_STAGES = 4
_LEARNING_RATE = 1e-4  # these two are the official defaults
_BATCH_SIZE = 8
_MIXTURE = {
    "expert_conv5x5_conv": "kernels.0",
    "expert_conv3x3_conv": "kernels.1",
    "expert_conv1x1_conv": "kernels.2",
    "expert_avg3x3_conv": "kernels.3",
    "expert_avg5x5_conv": "kernels.4",
    "gate.weight": "gate.linear.weight",
    "gate.bias": "gate.linear.bias",
}
_POOLS = {"expert_avg3x3_pool": 3, "expert_avg5x5_pool": 5}  # constants, which we do not store
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCK = {theirs: f"conv.{ours}" for theirs, ours in _MIXTURE.items()} | {
    f"subsequent_layer.0.{name}": f"norm.{name}" for name in _NORM
}
_RESAMPLING = {"0.weight": "conv.weight"} | {f"1.{name}": f"norm.{name}" for name in _NORM}


def _our_names() -> dict[str, str]:
    """Return our name of every weight of the official network, by its official name.

    Example: `decoder_block4.conv_less.conv1.expert_conv3x3_conv` becomes
    `network.decoder.stages.0.blocks.0.conv.kernels.1` (the deepest decoder block comes first).
    """
    layers = [("conv_out", "head", _MIXTURE)]
    for b in range(2):
        layers.append((f"bottle_block.conv{b + 1}", f"encoder.bottleneck.{b}", _BLOCK))
    for stage in range(_NUM_STAGES):
        down, up = f"encoder_block{stage + 1}", f"decoder_block{_NUM_STAGES - stage}"
        encoder, decoder = f"encoder.stages.{stage}", f"decoder.stages.{stage}"
        layers.append((f"{down}.conv_down", f"{encoder}.down", _RESAMPLING))
        layers.append((f"{up}.convt", f"{decoder}.up", _RESAMPLING))
        for b in range(2):
            layers.append((f"{down}.conv_more.conv{b + 1}", f"{encoder}.blocks.{b}", _BLOCK))
            layers.append((f"{up}.conv_less.conv{b + 1}", f"{decoder}.blocks.{b}", _BLOCK))
    return {
        f"{theirs}.{name}": f"network.{ours}.{our_name}"
        for theirs, ours, names in layers
        for name, our_name in names.items()
    }


_OUR_NAMES = _our_names()
_FIRST_KERNEL = "encoder_block1.conv_more.conv1.expert_conv5x5_conv"
_FIRST_GATE = "encoder_block1.conv_more.conv1.gate.weight"


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
    try:
        model = _build(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the RepMode network: {_one_line(error)}") from error
    tasks: Any = getattr(content.get("opts"), "adopted_datasets", None)
    if not _are_file_names(tasks) or len(tasks) != model.num_tasks:
        raise ValueError(
            f"{path} has weights for {model.num_tasks} tasks and as task names "
            f"{_one_line(repr(tasks))}; give under opts.adopted_datasets one name for each, no two "
            "the same, of letters, digits, '_', '-' and '.'"
        )
    return model.eval(), list(tasks)


def save_official_checkpoint(
    model: TaskConditioned, task_names: Sequence[str], path: str | Path
) -> None:
    """Write a network as an official RepMode checkpoint.

    The official code loads it as one of its own, about to begin training: its `Model` at width 32,
    its `Net` at any other. It sorts the names of the tasks, so the gates are stored in that order;
    `load_official_checkpoint` gives back the same weights, tasks in alphabetical order.

    Args:
        model: A `RepModeUNet` with no other choice than its width, its tasks and its dropout.
        task_names: A name for each task, safe as a file name, in gate order.
        path: The `.p` file; an existing one is replaced.

    Raises:
        ValueError: If the official network cannot be this one, or the names do not fit.
    """
    difference = _difference_from_official(model)
    if difference:
        raise ValueError(
            f"this network cannot be written as an official checkpoint: {difference}; only "
            "RepModeUNet(num_tasks, base_channels) with its other defaults can"
        )
    names = list(task_names)
    if not _are_file_names(names) or len(names) != model.num_tasks:
        raise ValueError(
            f"task names {_one_line(repr(names))} do not fit {model.num_tasks} tasks; give one "
            "name for each, no two the same, of letters, digits, '_', '-' and '.'"
        )
    content = {
        "nn_module": "RepMode",
        "opts": argparse.Namespace(
            adopted_datasets=sorted(names), gpu_ids=-1, nn_module="RepMode", lr=_LEARNING_RATE,
            batch_size=_BATCH_SIZE, batch_size_eval=_BATCH_SIZE,
        ),
        "nn_state": _official_state(model, sorted(range(len(names)), key=names.__getitem__)),
        "optimizer_state": torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE).state_dict(),
        "count_iter": 0,
        "count_epoch": 0,
    }  # fmt: skip
    with atomic_path(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def from_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict, or a part of it, under this project's parameter names.

    The constant pooling kernels, which official files carry as buffers, are left out.

    Raises:
        ValueError: If it holds a name that the official network does not have.
    """
    weights = {
        name: value for name, value in state.items() if not str(name).endswith(tuple(_POOLS))
    }
    unknown = [str(name) for name in weights if name not in _OUR_NAMES]
    if unknown:
        raise ValueError(f"unknown {_some(unknown)}; an official network of four stages is needed")
    return {_OUR_NAMES[name]: value for name, value in weights.items()}


def _build(state: Mapping[str, Any]) -> RepModeUNet:
    """Return the network of an official state dict.

    Raises:
        ValueError: If a weight is unknown, missing or no tensor.
        RuntimeError: If one has another shape.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is no tensor but of type {type(value).__name__}")
    weights = from_official_names(state)
    missing = [name for name in _OUR_NAMES if name not in state]
    if missing:
        raise ValueError(f"it lacks {_some(missing)}; an official network of four stages is needed")
    kernel, gate = state[_FIRST_KERNEL], state[_FIRST_GATE]
    if kernel.ndim != 5 or gate.ndim != 2 or 0 in (*kernel.shape, *gate.shape):
        raise ValueError(
            f"{_FIRST_KERNEL} is {tuple(kernel.shape)} and {_FIRST_GATE} {tuple(gate.shape)}; "
            "five axes and two are needed, none empty"
        )
    model = RepModeUNet(gate.shape[1], *kernel.shape[:2])
    model.load_state_dict(weights)
    return model


def _official_state(model: TaskConditioned, tasks: Sequence[int]) -> dict[str, Tensor]:
    """Return the state dict of a network under official names, its tasks in another order."""
    weights = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, our_name in _OUR_NAMES.items():
        weight = weights[our_name].detach().cpu()
        state[name] = weight[:, list(tasks)] if name.endswith("gate.weight") else weight
        layer, _, part = name.rpartition(".")
        pool = part.removesuffix("_conv") + "_pool"
        if pool in _POOLS:
            size = _POOLS[pool]
            state[f"{layer}.{pool}"] = torch.full((size, size, size), 1 / size**3)
    return state


def _difference_from_official(model: TaskConditioned) -> str | None:
    """Return what makes a network another one than the official of its width, None if nothing."""
    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    first = found.get(_OUR_NAMES[_FIRST_KERNEL], ())
    if len(first) != 5:
        return f"it has no {_OUR_NAMES[_FIRST_KERNEL]} for volumes"
    with torch.device("meta"):
        official = RepModeUNet(model.num_tasks, first[0])
    expected = {name: tuple(weight.shape) for name, weight in official.state_dict().items()}
    for name in [*sorted(found.keys() ^ expected.keys()), *expected]:
        if found.get(name) != expected.get(name):
            shapes = (found.get(name, "missing"), expected.get(name, "missing"))
            return f"{name} is {shapes[0]}, officially {shapes[1]}"
    for name, theirs in official.named_modules():
        ours = model.get_submodule(name)
        if name and type(ours) is not type(theirs):
            return f"{name} is a {type(ours).__name__}, officially a {type(theirs).__name__}"
        if isinstance(ours, MoDE) and isinstance(theirs, MoDE):
            if ours.experts != theirs.experts or ours.gate.config != theirs.gate.config:
                return f"{name} mixes {ours.experts} by {ours.gate.config}"
            if ours.computation == "sparse":
                return f"{name} hears its best expert alone"
    return None


def _are_file_names(names: Any) -> bool:
    """Tell whether these are different names that are safe as file names."""
    return (
        isinstance(names, (list, tuple))
        and all(isinstance(name, str) and re.fullmatch(r"(?!\.)[\w.-]+", name) for name in names)
        and len(set(names)) == len(names)
    )


def _some(names: list[str]) -> str:
    """Return a list of names, shortened."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_archive(path: Path) -> Any:
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as an official RepMode checkpoint: it is damaged, something "
            "else, or holds objects other than tensors and plain containers; give the .p file"
        ) from error


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200]
