"""Sparse routing: the best expert of every channel and no other."""

from __future__ import annotations

import torch

from core.gatrep import TaskGroups
from core.mode import Mixture, MoDE
from core.routing import keep_best


def test_keep_best_leaves_one_gate_per_channel():
    gates = torch.rand(2, 5, 7)
    best = keep_best(gates)
    assert ((best > 0).sum(dim=1) == 1).all()
    assert torch.equal(best.amax(dim=1), gates.amax(dim=1))


def test_equals_gating_with_all_but_the_best_at_zero():
    torch.manual_seed(0)
    block = MoDE(3, 6, num_tasks=3, mixture=Mixture(computation="sparse")).double()
    x = torch.randn(4, 3, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    groups = TaskGroups.of([2, 0, 2, 1])
    actual = block(x, groups)
    gates, _ = block.gate(x, groups)
    twin = MoDE(3, 6, num_tasks=3, mixture=Mixture(computation="gated")).double()
    twin.load_state_dict(block.state_dict())
    twin.gate.weigh = lambda codes: keep_best(gates)
    expected = twin(x, groups)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    kernels = tuple(block.kernels)
    ours = torch.autograd.grad(actual.square().sum(), [x, *kernels, block.gate.linear.weight])
    theirs = torch.autograd.grad(
        expected.square().sum(), [x, *twin.kernels, block.gate.linear.weight]
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.plain(1)(x[3:]), actual[3:], rtol=1e-10, atol=1e-10)


def test_an_expert_that_is_nobodys_best_gets_no_gradient():
    block = MoDE(2, 4, num_tasks=1, mixture=Mixture(computation="sparse"))
    with torch.no_grad():
        block.gate.linear.bias.zero_()
        block.gate.linear.weight.zero_()
        block.gate.linear.bias.view(5, 4)[1] += 1
    block(torch.randn(1, 2, 3, 3, 3), TaskGroups.of([0])).square().sum().backward()
    assert block.kernels[1].grad.abs().sum() > 0
    assert all(
        block.kernels[e].grad.abs().sum() == 0
        for e in (0, 2, 3, 4)
        if block.kernels[e].grad is not None
    )
