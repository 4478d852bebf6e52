"""The plain network of several tasks is the network whose every gate is the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from core.deploy import specialize
from core.extend import extend
from core.gates import GateConfig
from core.gatrep import TaskGroups
from core.mode import Mixture, MoDE
from core.stochastic import draw_sample
from core.unet3d import RepModeUNet, TaskConditioned
from tests.core.test_specialize_everything import SIZES, build, choices, randomised

TASKS = [2, 0]


class MeanGate(nn.Module):
    """The slow twin's gate: the mean weights of some tasks, whichever is asked for."""

    is_fixed = False

    def __init__(self, gate: nn.Module, tasks: Sequence[int], num_experts: int) -> None:
        super().__init__()
        self.gate, self.tasks, self.num_experts = gate, tasks, num_experts

    def forward(self, x: Tensor, groups: TaskGroups) -> tuple[Tensor, TaskGroups]:
        mean = 0
        for task in self.tasks:
            gates_EO = self.gate.of_task(task)
            whole = gates_EO.new_zeros(self.num_experts, gates_EO.shape[1])
            whole[: len(gates_EO)] = gates_EO
            mean = mean + whole / len(self.tasks)
        return mean[None], groups


@torch.no_grad()
def slow_twin(model: TaskConditioned, tasks: Sequence[int], x: Tensor) -> Tensor:
    """Return what the experts give one by one, weighed by the mean gates of some tasks."""
    for module in list(model.modules()):
        if isinstance(module, MoDE):
            module.computation = "gated"
            module.gate = MeanGate(module.gate, tasks, len(module.experts))
    return model(x, torch.zeros(len(x), dtype=torch.int64))


def check(model: TaskConditioned, tasks: Sequence[int]) -> None:
    x = torch.randn(2, 1, 5, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        mean, alone = specialize(model, tasks)(x), specialize(model, tasks[0])(x)
    torch.testing.assert_close(mean, slow_twin(model, tasks, x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(mean, alone)


@pytest.mark.parametrize(("decoder", "collapse"), [("2d", "z-as-channels"), ("3d", "attention")])
def test_mean_of_tasks_equals_the_network_gated_by_the_mean(decoder, collapse):
    check(randomised(build(decoder, collapse, "funnel")), TASKS)


@pytest.mark.parametrize("gate", [GateConfig(code="gaussian", hidden=6, activation="sigmoid")])
def test_mean_of_tasks_holds_for_other_gates(gate):
    check(randomised(RepModeUNet(**SIZES, mixture=Mixture(gate=gate), **choices("mish"))), TASKS)


@pytest.mark.parametrize("tasks", [[3, 0], [0, 4], [1, 3, 4]])
def test_tasks_with_fewer_experts_hear_the_others_with_weight_zero(tasks):
    model = randomised(extend(extend(build("2d", "z-as-channels", "mish"))))
    check(model, tasks)


@pytest.mark.parametrize("computation", ["auto", "sparse"])
def test_merged_kernel_of_several_tasks_is_the_mean_of_theirs(computation):
    torch.manual_seed(0)
    block = MoDE(2, 3, 4, mixture=Mixture(computation=computation)).double()
    mean = sum(block.merged_kernel(task) for task in range(4)) / 4
    torch.testing.assert_close(block.merged_kernel(0, 1, 2, 3), mean, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(mean, block.merged_kernel(0))


def test_one_task_is_the_same_to_the_last_bit_however_it_is_given():
    model, x = randomised(RepModeUNet(**SIZES)), torch.randn(1, 1, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        outputs = [specialize(model, task)(x) for task in (1, [1], (1,), range(1, 2))]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_monte_carlo_samples_keep_their_noise_in_the_mean():
    model = randomised(RepModeUNet(**SIZES))
    x = torch.randn(1, 1, 4, 8, 8, dtype=torch.float64)
    sample = draw_sample(model, seed=3, index=0, dropout=0.0, gate_noise=0.5)
    plain = specialize(sample, TASKS)
    with torch.no_grad():
        found, quiet = plain(x), specialize(model, TASKS)(x)
    torch.testing.assert_close(found, slow_twin(sample, TASKS, x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, quiet)
