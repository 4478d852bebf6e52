"""A plain network as one file that runs without this project, by torch alone or by onnxruntime.

A file is written under a temporary name, loaded back, run on batches and sizes it was not traced
with, and compared with the network it was made of. One that differs is never kept.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from core.deploy import reduce_precision
from core.files import atomic_path
from core.signature import Signature
from core.terminal import DISTRIBUTION, note

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-4  # of the largest output; float32 summed in another order stays far below
# Samples of a batch, and lengths of the free axes in multiples.
TRACED = (2, (2, 3, 4))
CHECKED = ((1, (4, 3, 2)), (3, (2, 2, 3)))
MEASURED = (5, (4, 3, 2))  # with what the rounding of kernels is measured
RECORD = "repmode"  # key of the metadata of an ONNX file; an archive holds repmode.json
LEAST_OPSET = 18  # lower ones are not what the exporter of PyTorch was written for
MAX_ONNX_BYTES = 2**31 - 2**24  # one protobuf message ends at 2 GiB; 16 MiB are left for the graph
_ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
# What tracing notes of the source: file paths and class names, which no user of the file has.
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")

Run = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: The file.
        difference: Largest difference from the network it was made of, as part of its largest
            output.
        opset: Of an ONNX file.
    """

    path: Path
    difference: float
    opset: int | None = None

    def __str__(self) -> str:
        opset = "" if self.opset is None else f", opset {self.opset}"
        return (
            f"{self.path}: {self.path.stat().st_size / 2**20:.1f} MiB{opset}; loaded back, it "
            f"differs by {self.difference:.1e} of the largest output (allowed: {TOLERANCE:.0e})"
        )


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written as asked, before any work.

    Raises:
        ValueError: If its suffix is unknown, or it or a file in the place of its folder exists.
        RuntimeError: If the libraries that write and run ONNX are not installed.
    """
    if path.suffix not in _EXPORTERS:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; allowed are .onnx and .pt2 (torch.export)"
        )
    if path.exists():
        raise ValueError(f"{path} exists; delete it or choose another --out")
    if blocking := next((parent for parent in path.parents if parent.is_file()), None):
        raise ValueError(f"{path} cannot be made, {blocking} is a file; choose another --out")
    missing = [name for name in _ONNX_LIBRARIES if find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise RuntimeError(
            f"{path} cannot be written without {', '.join(missing)}; "
            f"`pip install '{DISTRIBUTION}[export]'`, or write a .pt2 file"
        )


def export(
    network: nn.Module,
    signature: Signature,
    path: Path,
    facts: Mapping[str, Any],
    precision: Precision = "float32",
) -> Exported:
    """Write a plain network in the format that the suffix of `path` names, and say how it went.

    Args:
        network: In evaluation mode, float32, on the CPU.
        signature: What it takes and returns.
        path: File to write, .pt2 or .onnx; it must not exist.
        facts: JSON values that the file says about itself, beside its signature, precision,
            rounding error and the tolerance it was checked to.
        precision: In which the kernels are stored; arithmetic is in float32.

    Raises:
        ValueError: If the path does not fit, the weights do not fit into an ONNX file, or a kernel
            does not fit into fp16.
        RuntimeError: If libraries are missing, or the file differs from the network.
    """
    check_target(path)
    record = {**signature.describe(), "precision": precision, "tolerance": TOLERANCE}
    if precision != "float32":
        network, error = reduce_precision(network, DTYPES[precision], *signature.sample(*MEASURED))
        record["rounding_error"] = {
            "measured_on": "noise of five scales",
            "absolute": error.absolute,
            "relative": error.relative,
        }
        note(f"kernels in {precision} change the output for noise by at most {error}")
    note(f"{path}: tracing the network, writing it, loading it back and comparing ...")
    exported = _EXPORTERS[path.suffix](network, signature, path, {**record, **facts})
    note(str(exported))
    return exported


def export_torch(
    network: nn.Module, signature: Signature, path: Path, record: Mapping[str, Any]
) -> Exported:
    """Write a torch.export archive, for ``torch.export.load(path).module()``.

    Args:
        network: In evaluation mode, on the CPU.
        signature: What it takes and returns.
        path: The .pt2 file; an existing one is replaced.
        record: What the file says about itself, as JSON in its extra file `repmode.json`.

    Raises:
        RuntimeError: If the file differs from the network.
    """
    program = _trace(network, signature)
    extra_files = {f"{RECORD}.json": json.dumps(record, allow_nan=False)}
    with atomic_path(path) as partial, _without_torch_warnings():
        with partial.open("wb") as file:
            torch.export.save(program, file, extra_files=extra_files)
        loaded = torch.export.load(partial).module()
        difference = _check(lambda inputs: loaded(*inputs), network, signature, path)
    return Exported(path, difference)


def export_onnx(
    network: nn.Module, signature: Signature, path: Path, record: Mapping[str, Any]
) -> Exported:
    """Write an ONNX file, in the opset PyTorch prefers or else the next lower one that runs.

    Args:
        network: In evaluation mode, on the CPU.
        signature: What it takes and returns.
        path: The .onnx file; an existing one is replaced.
        record: What the file says about itself, as JSON in its metadata `repmode`.

    Raises:
        ValueError: If the weights do not fit into one file.
        RuntimeError: If onnxruntime runs none of the opsets, or the file differs from the network.
    """
    program = _trace(network, signature)
    num_bytes = sum(weight.nbytes for weight in program.state_dict.values())
    if num_bytes > MAX_ONNX_BYTES:
        raise ValueError(
            f"{path} would hold {num_bytes / 2**30:.1f} GiB of weights and an ONNX file ends at "
            "2 GiB; store them in bf16 or fp16, or write a .pt2 file"
        )
    text = json.dumps(record, allow_nan=False)
    with atomic_path(path) as partial:
        opset, session = _save_what_runs(program, signature, text, partial, path)

        def run(inputs: tuple[Tensor, ...]) -> Tensor:
            arrays = (values.numpy() for values in inputs)
            names = (one.name for one in signature.inputs)
            (output,) = session.run(None, dict(zip(names, arrays, strict=True)))
            return torch.from_numpy(output)

        difference = _check(run, network, signature, path)
    return Exported(path, difference, opset)


_EXPORTERS = {".pt2": export_torch, ".onnx": export_onnx}


def _trace(network: nn.Module, signature: Signature) -> ExportedProgram:
    """Return the network as a graph with free axes, without a trace of its source."""
    from torch.export import Dim

    free = {axis: multiple * Dim(axis) for axis, multiple in signature.multiples.items()}
    free["N"] = Dim("N")
    shapes = tuple(
        {i: free[axis] for i, axis in enumerate(one.axes) if isinstance(axis, str)}
        for one in signature.inputs
    )
    with torch.no_grad(), _without_torch_warnings():
        program = torch.export.export(network, signature.sample(*TRACED), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    return program


def _save_what_runs(
    program: ExportedProgram, signature: Signature, text: str, partial: Path, path: Path
) -> tuple[int, InferenceSession]:
    """Save an ONNX file and return its opset and the session that runs it.

    Raises:
        RuntimeError: If onnxruntime runs none of the opsets.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refused = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
    model, reason = _onnx_program(program, signature), ""
    preferred = model.model.opset_imports[""]
    for opset in range(preferred, LEAST_OPSET - 1, -1):
        if opset != preferred:
            model = _onnx_program(program, signature, opset)
        model.model.metadata_props[RECORD] = text
        model.save(partial, external_data=False)
        try:
            session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
            return model.model.opset_imports[""], session
        except refused as error:
            reason = " ".join(str(error).split())[:200]
    raise RuntimeError(
        f"{path} is not written: onnxruntime {onnxruntime.__version__} runs none of the opsets "
        f"{LEAST_OPSET}..{preferred} ({reason}); use another version, or write a .pt2 file"
    )


def _onnx_program(
    program: ExportedProgram, signature: Signature, opset: int | None = None
) -> ONNXProgram:
    """Return the ONNX program in an opset, by default the one PyTorch prefers."""
    from onnx_ir import Shape

    with _without_torch_warnings():
        model = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[one.name for one in signature.inputs],
            output_names=[signature.output],
        )
    assert model is not None
    graph = model.model.graph
    axes = [*(one.axes for one in signature.inputs), signature.output_axes]
    for value, names in zip([*graph.inputs, *graph.outputs], axes, strict=True):
        value.shape = Shape(names)
    return model


def _check(run: Run, network: nn.Module, signature: Signature, path: Path) -> float:
    """Return the largest difference of a written file from the network, of its largest output.

    Raises:
        RuntimeError: If it is more than the tolerance.
    """
    largest = 0.0
    for batch, factors in CHECKED:
        inputs = signature.sample(batch, factors)
        with torch.no_grad():
            expected, found = network(*inputs), run(inputs)
        if found.shape != expected.shape:
            raise RuntimeError(
                f"{path} is not written: its output for {batch} samples is {tuple(found.shape)}, "
                f"that of the network {tuple(expected.shape)}"
            )
        scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
        difference = float((found - expected).abs().max() / scale)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"{path} is not written: for {batch} samples it differs from the network by "
                f"{difference:.1e} of the largest output, allowed is {TOLERANCE:.0e}"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _without_torch_warnings() -> Iterator[None]:
    """Silence what PyTorch's exporters warn their own authors of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield
