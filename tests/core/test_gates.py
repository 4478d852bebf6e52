"""What a gate's weights depend on, and that they are weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.gates import GateConfig, InputGate, TaskGate
from core.gatrep import TaskGroups
from core.mode import MoDE

X = torch.zeros(3, 2, 4, 4, 4)


def test_softmax_gates_sum_to_one_over_experts():
    gates, _ = TaskGate(num_tasks=4, num_experts=5, out_channels=6)(X, TaskGroups.of([0, 2, 3]))
    assert gates.shape == (3, 5, 6)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(3, 6))
    assert (gates > 0).all()


def test_sigmoid_gates_are_independent():
    gate = TaskGate(2, 3, 4, GateConfig(activation="sigmoid"))
    before = gate.of_task(0)
    gate.linear.bias.data[:4] += 1  # the first expert's channels
    after = gate.of_task(0)
    assert (after[0] > before[0]).all()
    assert torch.equal(after[1:], before[1:])
    assert ((after > 0) & (after < 1)).all()


def test_weights_follow_the_linear_layer_in_words():
    gate = TaskGate(3, 2, 2)
    logits = (gate.linear.weight[:, 1] + gate.linear.bias).view(2, 2)
    torch.testing.assert_close(gate.of_task(1), logits.exp() / logits.exp().sum(dim=0))


def test_tasks_differ_and_only_their_own_gate_gets_gradient():
    block = MoDE(2, 2, num_tasks=3)
    x = torch.randn(1, 2, 4, 4, 4)
    first, second = (block(x, TaskGroups.of([t])) for t in (0, 1))
    assert not torch.allclose(first, second)
    second.square().sum().backward()
    columns = block.gate.linear.weight.grad.abs().sum(dim=0)
    assert columns[1] > 0
    assert columns[0] == columns[2] == 0


def test_gaussian_codes_are_fixed_and_saved():
    gate = TaskGate(3, 2, 2, GateConfig(code="gaussian"))
    assert gate.codes.shape == (3, 3)
    assert not gate.codes.requires_grad
    other = TaskGate(3, 2, 2, GateConfig(code="gaussian"))
    assert not torch.equal(gate.of_task(1), other.of_task(1))
    other.load_state_dict(gate.state_dict())
    assert torch.equal(gate.of_task(1), other.of_task(1))


def test_one_hot_codes_are_not_saved():
    assert set(TaskGate(3, 2, 2).state_dict()) == {"linear.weight", "linear.bias"}


def test_two_layer_gate_has_the_hidden_width():
    gate = TaskGate(3, 5, 7, GateConfig(hidden=6))
    assert gate.hidden[0].weight.shape == (6, 3)
    assert gate.linear.weight.shape == (35, 6)
    hidden = torch.relu(gate.hidden[0].weight[:, 2] + gate.hidden[0].bias)
    logits = (gate.linear.weight @ hidden + gate.linear.bias).view(5, 7)
    torch.testing.assert_close(gate.of_task(2), logits.softmax(dim=0))


def test_input_gate_sees_the_pooled_features_and_not_the_task():
    gate = InputGate(2, 5, 3, GateConfig(sees="input"))
    x = torch.randn(3, 2, 4, 5, 6)
    gates, groups = gate(x, TaskGroups.of([1, 1, 0]))
    same, _ = gate(x.flip(2, 3, 4), TaskGroups.of([0, 2, 2]))
    torch.testing.assert_close(gates, same)
    assert gates.shape == (3, 5, 3)
    assert [rows.tolist() for rows in groups.samples] == [[0], [1], [2]]
    logits = (gate.linear.weight @ x[1].mean(dim=(1, 2, 3)) + gate.linear.bias).view(5, 3)
    torch.testing.assert_close(gates[1], logits.softmax(dim=0))


def test_noise_on_the_logits_reaches_the_weights_and_ends_their_being_fixed():
    gate = TaskGate(2, 3, 4)
    assert gate.is_fixed
    before = gate.of_task(0)

    class Shift(nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits + torch.tensor([1.0, 0, 0]).view(1, 3, 1)

    gate.perturb = Shift()
    assert not gate.is_fixed
    assert (gate.of_task(0)[0] > before[0]).all()


def test_negative_hidden_width_is_refused():
    with pytest.raises(ValueError, match="negative"):
        GateConfig(hidden=-1)
