"""A clean environment has what is stated, and reaches nothing."""

from __future__ import annotations

import json
import os
import socket
from importlib.metadata import distribution
from pathlib import Path

import pytest

from vesuvius.clean_environment import can_unshare, canonical, closure, make_environment


def test_what_a_distribution_needs_comes_with_it():
    found = closure(["timm"], {"huggingface-hub"})
    assert {"timm", "torch", "safetensors", "numpy", "filelock"} <= found.keys()
    assert "huggingface-hub" not in found
    assert "pytest" not in found


def test_names_are_compared_as_pip_does():
    assert canonical("Segmentation_Models.PyTorch") == "segmentation-models-pytorch"


def test_a_distribution_that_is_not_here_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="no-such-thing is not installed here"):
        make_environment(tmp_path / "python", ["no-such-thing"])
    assert not (tmp_path / "python").exists()


PROBE = """
import importlib.util, json, os, socket, sys
try:
    socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 2).close()
    answer = "reached"
except OSError as error:
    answer = str(error)
modules = ("numpy", "tqdm", "pytest", "tyro", "vesuvius", "pip")
found = {name: importlib.util.find_spec(name) is not None for name in modules}
print(json.dumps({"answer": answer, "found": found, "home": os.environ["HOME"],
                  "variables": sorted(os.environ)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_namespace", [False, True])
def test_nothing_but_the_base_is_there_and_the_network_is_gone(
    tmp_path, monkeypatch, has_namespace
):
    if has_namespace and not can_unshare():
        pytest.skip("this user may not make namespaces (unshare --user --net)")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    environment = make_environment(
        tmp_path / "python", ["numpy", "tqdm"], has_namespace=has_namespace
    )
    script, log = tmp_path / "probe.py", tmp_path / "log.txt"
    script.write_text(PROBE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 2).close()  # it could be reached
        assert environment.run(script, tmp_path, log, {"PORT": str(port)}) == 0
    found = json.loads(log.read_text())
    assert found["answer"] != "reached"
    assert found["found"] == {
        "numpy": True, "tqdm": True, "pip": True, "pytest": False, "tyro": False,
        "vesuvius": False,
    }  # fmt: skip
    assert "KAGGLE_KEY" not in found["variables"]
    assert found["home"] != os.environ.get("HOME")
    assert environment.base["numpy"] == distribution("numpy").version
    assert Path(str(distribution("numpy").locate_file("numpy"))).exists()
