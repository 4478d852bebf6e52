"""One self-describing file per checkpoint: safetensors with a JSON header, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.files import atomic_path

FORMAT_VERSION = 3
WEIGHTS = "weights"  # a network for inference; tensors are its state dict
TRAINING_STATE = "training state"  # everything a run needs to go on exactly

_HEADER_KEY = "repmode"  # a single key: safetensors does not keep the order of several


def save(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: File to write; an existing one is replaced.
        kind: What the file is for, `WEIGHTS` or `TRAINING_STATE`.
        tensors: Any names, shapes and dtypes; no two may share memory.
        meta: What can be written as JSON, without NaN and infinity.

    Raises:
        OSError: If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = _digest(stored, meta)
    header = {"format_version": FORMAT_VERSION, "kind": kind, "digest": digest, "meta": meta}
    text = json.dumps(header, allow_nan=False)
    with atomic_path(path) as partial:
        try:
            save_file(stored, partial, metadata={_HEADER_KEY: text})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}; free or change the disk") from error


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: File written by `save`.
        kind: The kind it must be of.

    Returns:
        Its tensors, on the CPU, and its meta.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no checkpoint, of another kind or format version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata(), kind)
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({error}); copy it again or take another one"
        ) from error
    if _digest(tensors, header.get("meta")) != header.get("digest"):
        raise ValueError(
            f"{path} is damaged (its content does not have its digest); copy it again or take "
            "another one"
        )
    return tensors, header["meta"]


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load the weights of a checkpoint into `model`; every name and shape must fit.

    Args:
        model: The network to fill.
        tensors: Its state dict.
        path: Where they come from, for the error.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} does not fit the model: {name} is {found.get(name, 'missing')} in the "
                f"file and {expected.get(name, 'missing')} in the model; build the model as the "
                "checkpoint describes it"
            )
    model.load_state_dict(tensors)


def _header(path: str | Path, metadata: Mapping[str, str] | None, kind: str) -> dict[str, Any]:
    """Return the JSON header of an opened file.

    Raises:
        ValueError: If it has none, or another kind or format version.
    """
    try:
        header: dict[str, Any] = json.loads((metadata or {})[_HEADER_KEY])
        version, found = header["format_version"], header["kind"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no checkpoint of this project; give one it wrote") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}; "
            "use the version of the project that wrote it"
        )
    if found != kind:
        raise ValueError(f"{path} holds {found!r}, needed is {kind!r}; give the other checkpoint")
    return header


def _digest(tensors: Mapping[str, Tensor], meta: Any) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of CPU tensors and of the meta."""
    digest = hashlib.sha256(json.dumps(meta).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
