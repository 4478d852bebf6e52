"""The gate and the convolution it forms."""

from __future__ import annotations

import torch
from torch import nn

from core.gatrep import TaskGroups
from core.mode import MoDE, TaskGate


def test_gates_sum_to_one_over_experts():
    gate = TaskGate(num_tasks=4, num_experts=5, out_channels=6)
    gates = gate(torch.arange(4))
    assert gates.shape == (4, 5, 6)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(4, 6))
    assert (gates > 0).all()


def test_tasks_differ_and_only_their_own_gate_gets_gradient():
    block = MoDE(2, 2, num_tasks=3)
    x = torch.randn(1, 2, 4, 4, 4)
    first, second = (block(x, TaskGroups.of([t])) for t in (0, 1))
    assert not torch.allclose(first, second)
    second.square().sum().backward()
    columns = block.gate.linear.weight.grad.abs().sum(dim=0)
    assert columns[1] > 0
    assert columns[0] == columns[2] == 0


def test_sample_order_does_not_matter():
    block = MoDE(2, 2, num_tasks=3).double()
    x = torch.randn(5, 2, 8, 32, 32, dtype=torch.float64)
    tasks = [2, 0, 1, 0, 2]
    order = [3, 1, 4, 0, 2]
    whole = block(x, TaskGroups.of(tasks))
    shuffled = block(x[order], TaskGroups.of([tasks[n] for n in order]))
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-10, atol=1e-10)


def test_plain_convolution_equals_the_block():
    for num_axes, conv_type in ((3, nn.Conv3d), (2, nn.Conv2d)):
        block = MoDE(3, 2, num_tasks=2, num_axes=num_axes).double()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # must not round the kernel
            plain = block.plain(1)
        assert type(plain) is conv_type
        x = torch.randn(2, 3, *[6] * num_axes, dtype=torch.float64)
        gated = block(x, TaskGroups.of([1, 1]))
        torch.testing.assert_close(plain(x), gated, rtol=1e-10, atol=1e-10)
