"""Exported files equal the network, run without this project, and are refused where they differ."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from torch import nn

import core.export as module
from core.collapse import COLLAPSES
from core.deploy import specialize
from core.export import check_target, export, export_onnx, export_torch
from core.extend import extend
from core.gates import GateConfig
from core.map_networks import CollapsedUNet, UNetThenCollapse
from core.mode import Mixture, MoDE
from core.signature import Input, Signature
from core.unet3d import Parts, RepModeUNet, TaskConditioned

NUM_LAYERS = 5
VOLUME = ("N", 1, "Z", "Y", "X")
WINDOW = ("N", 1, NUM_LAYERS, "Y", "X")
MULTIPLES = dict.fromkeys("ZYX", 2)
VOLUMES = Signature(
    (Input("volume", torch.float32, VOLUME, -3, 3),), "prediction", VOLUME, MULTIPLES
)
MAPS = Signature(
    (Input("window", torch.float32, WINDOW, -3, 3),), "map", ("N", 1, "Y", "X"), {"Y": 2, "X": 2}
)


def maps(kind: type = CollapsedUNet, **options) -> TaskConditioned:
    """Return a network of one stage from a window of layers to maps."""
    names = ("activation", "resample_activation")
    choices = {name: options.pop(name) for name in names if name in options}
    num_axes = 2 if kind is CollapsedUNet else 3
    network = kind(
        Parts(partial(MoDE, num_tasks=2), 3, dropout=0.2, **choices),
        Parts(partial(MoDE, num_tasks=2, num_axes=num_axes), num_axes, dropout=0.2, **choices),
        NUM_LAYERS,
        base_channels=2,
        num_stages=1,
        **options,
    )
    return TaskConditioned(network, 2)


def volumes(**options) -> TaskConditioned:
    """Return a network of one stage from volumes to volumes."""
    return RepModeUNet(2, base_channels=2, num_stages=1, **options)


# Every activation, decoder, collapse and kind of gate is met at least once.
SIGMOID = Mixture(gate=GateConfig(code="gaussian", hidden=3, activation="sigmoid"))
NETWORKS = {
    "volumes": (partial(volumes, activation="funnel", resample_activation="mish"), VOLUMES),
    "sigmoid gates": (partial(volumes, mixture=SIGMOID, gated="decoder"), VOLUMES),
    "extended": (lambda: extend(extend(volumes(activation="flexible"))), VOLUMES),
    "maps": (partial(maps, activation="mish", resample_activation="funnel"), MAPS),
    **{f"maps by {name}": (partial(maps, collapse=name), MAPS) for name in COLLAPSES},
    **{
        f"volumes to maps by {name}": (partial(maps, UNetThenCollapse, collapse=name), MAPS)
        for name in COLLAPSES
    },
}


def plain(name: str) -> tuple[nn.Module, Signature]:
    """Return a network specialised for its last task, and its signature."""
    torch.manual_seed(0)
    build, signature = NETWORKS[name]
    model = build().eval()
    with torch.no_grad():
        for part, value in model.state_dict().items():
            if "running_var" in part or "norm.weight" in part:
                value.uniform_(0.5, 1.5)
            elif "norm.bias" in part or "floor" in part:
                value.uniform_(0.1, 0.5)  # above 0, or a few channels may all be dead
    return specialize(model, model.num_tasks - 1), signature


def run_onnx(path: Path, *inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    names = (one.name for one in session.get_inputs())
    arrays = (values.numpy() for values in inputs)
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def run_torch(path: Path, *inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.export.load(path).module()(*inputs).numpy()


RUN = {".onnx": run_onnx, ".pt2": run_torch}


def check_export(name: str, path: Path) -> None:
    """Export a network and compare the file with it on a batch it was not checked with."""
    network, signature = plain(name)
    export(network, signature, path, {})
    inputs = signature.sample(5, (3, 4, 2))
    with torch.no_grad():
        expected = network(*inputs).numpy()
    found = RUN[path.suffix](path, *inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(expected) > 1e-4


# ONNX takes several times as long; below, and in tests/vesuvius, it is met in the default tests.
DEFAULT = [("maps", ".pt2"), ("extended", ".pt2")]
REST = [case for case in product(NETWORKS, RUN) if case not in DEFAULT]


@pytest.mark.parametrize(("name", "suffix"), DEFAULT)
def test_an_exported_file_equals_the_network(name, suffix, tmp_path):
    check_export(name, tmp_path / f"network{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), REST)
def test_every_exported_file_equals_its_network(name, suffix, tmp_path):
    check_export(name, tmp_path / f"network{suffix}")


class Scaled(nn.Module):
    """The least network that has a weight."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Drifting(nn.Module):
    """Gives something else each time, as a network that cannot be traced may."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 1e-3 * self.calls


class Reshaping(nn.Module):
    """Gives another shape while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone() if torch.compiler.is_exporting() else x[:, :, :1]


SUFFIXES = pytest.mark.parametrize("suffix", RUN)
BROKEN = {
    "another value": (Drifting, r"differs from the network by \d\.\de-0\d of the largest"),
    "not a number": (partial(Scaled, float("nan")), "differs from the network by nan"),
    "another shape": (Reshaping, "its output for 1 samples is"),
}


@SUFFIXES
@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_differs_is_refused_and_not_left(case, suffix, tmp_path):
    build, says = BROKEN[case]
    with pytest.raises(RuntimeError, match=rf"network\{suffix} is not written: .*{says}") as error:
        export(build(), VOLUMES, tmp_path / f"network{suffix}", {})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


ALONE = """
import json, sys
sys.path.append(sys.argv[1])
import numpy as np
path, inputs = sys.argv[2], np.load(sys.argv[3])
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    text = session.get_modelmeta().custom_metadata_map["repmode"]
    output = session.run(None, {"volume": inputs})[0]
    assert "torch" not in sys.modules
else:
    import torch
    extra_files = {"repmode.json": ""}
    module = torch.export.load(path, extra_files=extra_files).module()
    text = extra_files["repmode.json"]
    output = module(torch.from_numpy(inputs)).detach().numpy()
np.save(sys.argv[4], output)
from importlib.util import find_spec
assert find_spec("core") is None
print(text)
"""


@SUFFIXES
def test_a_file_runs_where_this_project_is_not(suffix, tmp_path):
    network, path = specialize(volumes(activation="funnel").eval(), 0), tmp_path / f"n{suffix}"
    export(network, VOLUMES, path, {"threshold": 0.25})
    (inputs,) = VOLUMES.sample(1, (2, 3, 4))
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    (tmp_path / "empty").mkdir()
    # Without site (-S) an editable install is not found either; the libraries are named instead.
    libraries = Path(np.__file__).parents[1]
    arrays = tmp_path / "inputs.npy", tmp_path / "output.npy"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, libraries, path, *arrays],
        cwd=tmp_path / "empty", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = network(inputs).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), expected, rtol=1e-5, atol=1e-8)
    assert json.loads(result.stdout) == {
        **VOLUMES.describe(), "precision": "float32", "tolerance": 1e-4, "threshold": 0.25,
    }  # fmt: skip
    content = b"".join(contents(path))
    assert not [trace for trace in (b"core.", b"core/", b".py") if trace in content]


def contents(path: Path) -> list[bytes]:
    """Return the parts of a file."""
    if path.suffix == ".onnx":
        return [path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def test_free_axes_have_their_names(tmp_path):
    export_onnx(Scaled(), VOLUMES, tmp_path / "network.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for value, name in zip(
        [*session.get_inputs(), *session.get_outputs()], ["volume", "prediction"], strict=True
    ):
        assert (value.name, value.shape) == (name, list(VOLUME))


def test_other_lengths_than_the_archive_allows_are_an_error(tmp_path):
    path = tmp_path / "network.pt2"
    export_torch(specialize(volumes().eval(), 0), VOLUMES, path, {})
    for lengths in [(4, 4, 5), (2, 4, 4)]:
        with pytest.raises(AssertionError, match="Guard failed"):
            run_torch(path, torch.zeros(1, 1, *lengths))


@pytest.mark.parametrize(
    ("suffix", "precision", "least", "most"),
    [(".onnx", "bf16", 1e-4, 5e-2), (".pt2", "fp16", 1e-5, 5e-3)],
)
def test_reduced_precision_is_measured_and_saves_space(suffix, precision, least, most, tmp_path):
    network = specialize(RepModeUNet(2, base_channels=8, num_stages=1).eval(), 0)
    path = tmp_path / f"network{suffix}"
    export(network, VOLUMES, path, {}, precision)
    num_kernel_elements = sum(p.numel() for p in network.parameters() if p.ndim == 5)
    assert 2 * num_kernel_elements < path.stat().st_size < 3.5 * num_kernel_elements
    inputs = VOLUMES.sample(4, (2, 2, 2))
    with torch.no_grad():
        expected = network(*inputs).numpy()
    error = np.abs(RUN[suffix](path, *inputs) - expected).max() / np.abs(expected).max()
    recorded = read_record(path)["rounding_error"]["relative"]
    assert least < error < most
    assert recorded / 3 < error < 3 * recorded


def read_record(path: Path) -> dict:
    if path.suffix == ".onnx":
        metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        return json.loads(metadata["repmode"])
    extra_files = {"repmode.json": ""}
    torch.export.load(path, extra_files=extra_files)
    return json.loads(extra_files["repmode.json"])


@pytest.fixture
def picky(monkeypatch):
    """An onnxruntime that runs no opset above 19."""
    session = onnxruntime.InferenceSession

    def open_session(path, **options):
        if onnx.load(path).opset_import[0].version > 19:
            raise InvalidGraph("opset is under development")
        return session(path, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)


def test_the_opset_is_the_highest_that_runs(picky, tmp_path):
    exported = export_onnx(Scaled(), VOLUMES, tmp_path / "network.onnx", {})
    assert exported.opset == 19
    assert onnx.load(tmp_path / "network.onnx").opset_import[0].version == 19
    assert "MiB, opset 19; loaded back, it differs by 0.0e+00 of" in str(exported)


def test_no_opset_that_runs_is_an_error(picky, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_OPSET", 20)
    with pytest.raises(RuntimeError, match=r"none of the opsets 20\.\.\d+ \(opset is under dev"):
        export_onnx(Scaled(), VOLUMES, tmp_path / "network.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_one_onnx_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ONNX_BYTES", 3)
    with pytest.raises(ValueError, match=r"network\.onnx would hold .* GiB .* \.pt2"):
        export_onnx(Scaled(), VOLUMES, tmp_path / "network.onnx", {})


def test_targets_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    for name in ("network", "network.pt", "network.ONNX"):
        with pytest.raises(ValueError, match=rf"{name} has the suffix .* \.onnx and \.pt2"):
            check_target(tmp_path / name)
    check_target(tmp_path / "network.onnx")
    (tmp_path / "old.pt2").write_text("text")
    with pytest.raises(ValueError, match=r"old\.pt2 exists; delete it"):
        export(Scaled(), VOLUMES, tmp_path / "old.pt2", {})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    check_target(tmp_path / "network.pt2")
    with pytest.raises(RuntimeError, match=r"without onnxscript; `pip install '.*\[export\]'`"):
        check_target(tmp_path / "network.onnx")
