"""Compiled into one graph, every way is still the same function."""

from __future__ import annotations

import pytest
import torch

from core.gatrep import TaskGroups
from core.mode import Mixture, MoDE
from core.unet3d import RepModeUNet

# PyTorch's own tracing of an autograd function instantiates it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def assert_same_in_value_and_gradient(module, compiled, x, tolerance):
    groups = TaskGroups.of([2, 0, 2])
    parameters = [p for p in module.parameters() if p.requires_grad]
    results = []
    for each in (module, compiled):  # one after the other: a forward pass moves running means
        output = each(x, groups)
        results.append([output, *torch.autograd.grad(output.square().mean(), parameters)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def forget_graphs():
    torch.compiler.reset()


@pytest.mark.parametrize("computation", ["merged", "gated", "auto"])
def test_block_is_captured_whole_and_equal(computation):
    torch.manual_seed(0)
    block = MoDE(2, 3, num_tasks=3, mixture=Mixture(computation=computation)).double()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 2, 6, 5, dtype=torch.float64)
    assert_same_in_value_and_gradient(block, compiled, x, 1e-10)


def test_one_graph_serves_every_composition_of_a_batch_whose_samples_are_each_alone():
    torch.manual_seed(0)
    block = MoDE(1, 2, num_tasks=12).double()
    graphs = []
    compiled = torch.compile(
        block, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph
    )
    for _ in range(12):
        tasks = torch.randint(12, (4,)).tolist()
        x = torch.randn(4, 1, 3, 5, 4, dtype=torch.float64)
        expected = block(x, TaskGroups.of(tasks))
        actual = compiled(x, TaskGroups.of(tasks).each_alone())
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert len(graphs) == 1


def test_block_is_captured_whole_in_evaluation():
    block = MoDE(2, 3, num_tasks=3).double().eval()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, groups = torch.randn(2, 2, 2, 6, 5, dtype=torch.float64), TaskGroups.of([1, 1])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, groups), block(x, groups), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_network_is_compiled_whole_and_equal():
    torch.manual_seed(0)
    network = RepModeUNet(num_tasks=3, base_channels=2, num_stages=1).network
    compiled = torch.compile(network, fullgraph=True)
    assert_same_in_value_and_gradient(network, compiled, torch.randn(3, 1, 4, 8, 8), 1e-5)
