"""Shares of experts are those of the gates and of what the gated kernels weigh."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from core.expert_shares import expert_shares, mean_shares
from core.extend import extend
from core.gates import GateConfig
from core.gatrep import REPMODE_EXPERTS, Expert
from core.map_networks import CollapsedUNet
from core.mode import Mixture, MoDE
from core.unet3d import Parts, RepModeUNet, TaskConditioned

CONV_3, AVERAGE_3 = Expert("conv", 3), Expert("average", 3)


@pytest.fixture
def block():
    """A mixture of two experts, one channel in and two out, whose numbers can be told by hand."""
    block = MoDE(1, 2, num_tasks=2, mixture=Mixture((CONV_3, AVERAGE_3)))
    with torch.no_grad():
        block.kernels[0].fill_(1.0)  # norm over 27 taps: sqrt(27)
        block.kernels[1].fill_(27.0)  # 1 in each of 27 taps: the same
        # logits (E, O) of task 1: channel 0 log 3 : 0, channel 1 even
        block.gate.linear.weight.zero_()
        block.gate.linear.bias.zero_()
        block.gate.linear.weight[0, 1] = torch.tensor(3.0).log()
    return block


def test_gates_are_averaged_over_channels(block):
    (even,), (found,) = expert_shares(block, 0), expert_shares(block, 1)
    assert even.gates == pytest.approx({CONV_3: 0.5, AVERAGE_3: 0.5})
    assert found.gates == pytest.approx({CONV_3: (0.75 + 0.5) / 2, AVERAGE_3: (0.25 + 0.5) / 2})


def test_contributions_are_norms_of_gated_kernels(block):
    conv, average = (0.75**2 + 0.5**2) ** 0.5, (0.25**2 + 0.5**2) ** 0.5
    (found,) = expert_shares(block, 1)
    expected = {CONV_3: conv / (conv + average), AVERAGE_3: average / (conv + average)}
    assert found.contributions == pytest.approx(expected)
    with torch.no_grad():
        block.kernels[0] *= 10
    (larger,) = expert_shares(block, 1)
    assert larger.gates == found.gates
    assert larger.contributions[CONV_3] > found.contributions[CONV_3] + 0.2


def test_blocks_are_named_by_their_place():
    parts = [Parts(partial(MoDE, num_tasks=1, num_axes=axes), axes) for axes in (3, 2)]
    model = TaskConditioned(CollapsedUNet(*parts, 4, base_channels=2, num_stages=2), 1)
    found = expert_shares(model, 0)
    assert [one.name for one in found] == [
        "encoder 1.1", "encoder 1.2", "encoder 2.1", "encoder 2.2", "bottleneck 1", "bottleneck 2",
        "decoder 1.1", "decoder 1.2", "decoder 2.1", "decoder 2.2", "head",
    ]  # fmt: skip
    for one in found:
        assert tuple(one.gates) == tuple(one.contributions) == REPMODE_EXPERTS
        assert sum(one.gates.values()) == pytest.approx(1)
        assert sum(one.contributions.values()) == pytest.approx(1)


def test_weights_of_sigmoids_become_shares():
    block = MoDE(1, 3, 1, mixture=Mixture(gate=GateConfig(activation="sigmoid")))
    (found,) = expert_shares(block, 0)
    assert sum(found.gates.values()) == pytest.approx(1)


def test_a_network_without_mixtures_has_no_shares_and_gates_of_the_input_are_refused():
    assert expert_shares(nn.Conv3d(1, 1, 3), 0) == []
    block = MoDE(1, 1, 1, mixture=Mixture(gate=GateConfig(sees="input")))
    with pytest.raises(ValueError, match="input-dependent gate"):
        expert_shares(block, 0)


def test_the_mean_counts_every_block_alike_and_absent_experts_as_none():
    first, second = {CONV_3: 0.2, AVERAGE_3: 0.8}, {CONV_3: 1.0}
    assert mean_shares([first, second]) == pytest.approx({CONV_3: 0.6, AVERAGE_3: 0.4})


def test_an_extended_network_shows_old_tasks_their_experts_only():
    model = RepModeUNet(num_tasks=1, base_channels=1, num_stages=1)
    wider = extend(model)
    old, new = expert_shares(wider, 0), expert_shares(wider, 1)
    assert [one.gates for one in old] == [one.gates for one in expert_shares(model, 0)]
    assert new[0].gates != old[0].gates
    assert sum(new[0].gates.values()) == pytest.approx(1)  # two experts are of one kind and size
