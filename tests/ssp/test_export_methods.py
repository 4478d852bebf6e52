"""The network of one task of every method can be written as a file that runs alone."""

from __future__ import annotations

import pytest

from core.export import export
from core.provenance import collect
from ssp.export import signature_of
from ssp.networks.registry import METHODS, for_task
from tests.core.test_deploy import settled
from tests.ssp.networks import network, small


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("name", METHODS)
def test_the_network_of_one_task_is_exported_and_checked(name, kind, tmp_path):
    model = settled(network(small(name)), (1, 8, 8, 8))
    export(for_task(model, 1), signature_of(4), tmp_path / f"{name}.{kind}", collect(), "float32")
