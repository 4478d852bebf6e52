"""torchvision can be imported whatever torch it was built for."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from core import torchvision_guard
from core.torchvision_guard import ensure_torchvision

REPOSITORY = Path(__file__).parents[2]

BROKEN = """
import torchvision.extension
import torch.library

assert not torchvision.extension.HAS_OPS

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty((0,))

@torch.library.register_fake("torchvision::qnms")
def meta_qnms(dets, scores, iou_threshold):
    return dets.new_empty((0,))
"""


def write_torchvision(folder: Path, source: str) -> None:
    """Write a package named torchvision into `folder`."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    (folder / "torchvision" / "extension.py").write_text("HAS_OPS = False")


def run_python(code: str, first_on_path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own in which warnings are errors."""
    prelude = f"import sys; sys.path[:0] = [{str(first_on_path)!r}, {str(REPOSITORY)!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )


def test_a_torchvision_without_its_operators_fails_as_the_guard_expects(tmp_path):
    write_torchvision(tmp_path, BROKEN)
    result = run_python("import torchvision", tmp_path)
    assert "RuntimeError: operator torchvision::nms does not exist" in result.stderr


def test_a_torchvision_without_its_operators_is_mended(tmp_path):
    write_torchvision(tmp_path, BROKEN)
    code = """
from core.torchvision_guard import ensure_torchvision
ensure_torchvision()
import gc, torch, torchvision
first = torchvision
gc.collect()
ensure_torchvision()
assert sys.modules["torchvision"] is first
dets = torch.empty(3, 4, device="meta")
print(tuple(torch.ops.torchvision.nms(dets, dets[:, 0], 0.5).shape))
"""
    result = run_python(code, tmp_path)
    assert (result.stdout, result.stderr) == ("(0,)\n", "")


def test_the_libraries_that_need_torchvision_import_and_work():
    code = """
import warnings
warnings.simplefilter("error")
from core.torchvision_guard import ensure_torchvision
ensure_torchvision()
import timm, torch
import segmentation_models_pytorch as smp
model = smp.Unet("resnet18", encoder_weights=None).eval()
print(tuple(model(torch.zeros(1, 3, 32, 32)).shape), timm.is_model("resnet18"))
"""
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("(1, 1, 32, 32) True\n", "")


def test_a_healthy_torchvision_is_left_alone(monkeypatch):
    healthy = ModuleType("torchvision")
    healthy.__spec__ = ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", healthy)
    declared = list(torchvision_guard._declared)
    ensure_torchvision()
    assert sys.modules["torchvision"] is healthy
    assert torchvision_guard._declared == declared


def test_an_absent_torchvision_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    ensure_torchvision()
    assert sys.modules["torchvision"] is None


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch, tmp_path):
    write_torchvision(tmp_path, "raise RuntimeError('another fault')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="another fault"):
        ensure_torchvision()
