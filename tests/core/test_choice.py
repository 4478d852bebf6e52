"""The choice between merging and gating, its costs, and what it tells."""

from __future__ import annotations

import logging

import pytest
import torch

from core.choice import COMPUTATIONS, cheaper, gated_cost, merged_cost
from core.gates import GateConfig
from core.gatrep import REPMODE_EXPERTS, Expert, TaskGroups
from core.mode import Mixture, MoDE
from core.plan import plan, table
from core.unet3d import PlainConv, RepModeUNet, TaskConditioned


def test_merges_where_features_are_larger_than_kernels_and_gates_where_they_are_smaller():
    assert cheaper((4, 32, 32, 64, 64), 32, REPMODE_EXPERTS, 4) == "merged"
    assert cheaper((4, 256, 2, 4, 4), 256, REPMODE_EXPERTS, 4) == "gated"


def test_more_distinct_tasks_never_turn_gating_into_merging():
    ways = [cheaper((8, 64, 4, 8, 8), 64, REPMODE_EXPERTS, distinct) for distinct in range(1, 9)]
    assert ways == sorted(ways, reverse=True)  # "merged" first, "gated" after it
    assert {"merged", "gated"} == set(ways)


def test_a_single_convolution_as_expert_is_not_merged_for_many_tasks():
    assert cheaper((8, 64, 4, 4, 4), 64, (Expert("conv", 3),), 8) == "gated"


def test_costs_of_a_layer_counted_by_hand():
    shape, experts = (2, 3, 4, 5, 6), (Expert("conv", 3), Expert("average", 5))
    merged, gated = merged_cost(shape, 7, experts, 2), gated_cost(shape, 7, experts)
    voxels, pairs, live = 2 * 4 * 5 * 6, 3 * 7, 5 * 5 * 5
    assert merged.multiply_adds == 3 * voxels * pairs * live
    assert merged.kernel_bytes == 4 * 2 * pairs * (3 * live + 2 * (27 + live))
    assert merged.kept_bytes == 0
    assert gated.multiply_adds == 3 * voxels * pairs * (27 + 1) + 2 * voxels * 3 * 125 * 50
    assert gated.kernel_bytes == 4 * pairs * 3 * (27 + 1)
    assert gated.kept_bytes == 4 * (voxels * (7 * 2 + 3) + 2 * 3 * (4 + 4) * (5 + 4) * (6 + 4))


@pytest.mark.parametrize("lengths", [(1, 2, 2), (4, 8, 8), (6, 5, 7)])
def test_what_gating_keeps_is_what_autograd_keeps(lengths):
    block = MoDE(4, 6, num_tasks=2, mixture=Mixture(computation="gated"))
    x, groups = torch.randn(3, 4, *lengths, requires_grad=True), TaskGroups.of([0, 1, 0])
    own = {t.untyped_storage().data_ptr() for t in [*block.parameters(), x]}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
        lambda t: t,
    ):
        block(x, groups)
    features = sum(size for pointer, size in kept.items() if pointer not in own)
    assert features == pytest.approx(
        gated_cost(x.shape, 6, block.experts).kept_bytes,
        abs=2000,  # gates and indices
    )


def test_device_decides_with_its_own_balance():
    shape = (8, 64, 4, 8, 8)
    ways = {
        device: [cheaper(shape, 64, REPMODE_EXPERTS, n, device) for n in range(1, 9)]
        for device in ("cpu", "cuda")
    }
    assert ways["cpu"].count("merged") < ways["cuda"].count("merged")


@pytest.mark.parametrize("computation", ["merged", "gated"])
def test_choice_is_overridden(computation, monkeypatch):
    taken = []
    function = COMPUTATIONS[computation]
    monkeypatch.setitem(
        COMPUTATIONS, computation, lambda *args: taken.append(computation) or function(*args)
    )
    for block in (
        MoDE(1, 1, num_tasks=2, mixture=Mixture(computation=computation)),
        changed := MoDE(1, 1, num_tasks=2),
    ):
        changed.computation = computation
        for size in (1, 20):
            block(torch.randn(2, 1, size, size, size), TaskGroups.of([0, 1]))
    assert taken == [computation] * 4


def test_choice_is_logged_once_per_shape(caplog, monkeypatch):
    monkeypatch.setattr("core.choice._logged", set())
    block = MoDE(1, 1, num_tasks=2)
    with caplog.at_level(logging.INFO, logger="core.choice"):
        for size in (8, 8, 1):
            block(torch.randn(2, 1, size, size, size), TaskGroups.of([0, 1]))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "(2, 1, 8, 8, 8) to 1 channels, 2 distinct tasks: merged" in messages[0]


class TestPlan:
    def test_tells_what_the_network_then_does(self, monkeypatch):
        model = RepModeUNet(num_tasks=3, base_channels=2, num_stages=3)
        shape, tasks = (3, 1, 8, 16, 16), [0, 1, 2]
        layers = plan(model, shape, tasks)
        taken = []
        for way in ("merged", "gated"):
            function = COMPUTATIONS[way]
            monkeypatch.setitem(
                COMPUTATIONS,
                way,
                lambda x, *args, way=way, function=function: (
                    taken.append((tuple(x.shape), way)) or function(x, *args)
                ),
            )
        model(torch.randn(shape), torch.tensor(tasks))
        assert [(layer.shape, layer.way) for layer in layers] == taken
        assert {layer.way for layer in layers} == {"merged", "gated"}

    def test_computes_and_changes_nothing(self):
        model = RepModeUNet(num_tasks=2, base_channels=2, num_stages=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plan(model, (64, 1, 512, 512, 512), [0] * 64)  # 32 GiB for the input alone
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_is_empty_for_a_network_without_mixtures(self):
        assert plan(TaskConditioned(PlainConv(1, 1), 1), (2, 1, 4, 8, 8), [0, 0]) == []

    def test_tells_what_was_overridden_and_what_the_input_decides(self):
        shape, tasks = (4, 1, 4, 16, 16), [0, 0, 0, 0]
        for computation in ("merged", "gated"):
            model = RepModeUNet(2, 2, num_stages=2, mixture=Mixture(computation=computation))
            assert {layer.way for layer in plan(model, shape, tasks)} == {computation}
        model = RepModeUNet(2, 2, num_stages=2, mixture=Mixture(gate=GateConfig(sees="input")))
        own = plan(RepModeUNet(2, 2, num_stages=2), shape, tasks)
        for each, shared in zip(plan(model, shape, tasks), own, strict=True):
            assert (
                each.merged.kernel_bytes == 4 * shared.merged.kernel_bytes
            )  # four kernels, not one

    @pytest.mark.parametrize("shape", [(2, 4, 4, 4), (3, 1, 4, 4, 4)])
    def test_of_what_is_no_batch_is_refused(self, shape):
        with pytest.raises(ValueError, match="N tasks"):
            plan(RepModeUNet(2, 2, num_stages=1), shape, [0, 1])

    def test_of_sparse_routing_is_refused(self):
        model = RepModeUNet(2, 2, num_stages=1, mixture=Mixture(computation="sparse"))
        with pytest.raises(ValueError, match="no plan"):
            plan(model, (1, 1, 4, 4, 4), [0])

    def test_asks_for_a_device_and_serves_a_network_without_memory(self):
        with torch.device("meta"):
            model = RepModeUNet(12)
        shape, tasks = (8, 1, 32, 128, 128), [0, 3, 5, 5, 7, 8, 10, 11]
        assert plan(model, shape, tasks, "cpu") != plan(model, shape, tasks, "cuda")

    @torch.no_grad()
    def test_neither_disturbs_nor_is_disturbed_by_a_kept_kernel(self):
        model = RepModeUNet(2, 2, num_stages=1).eval()
        x, task = torch.randn(1, 1, 4, 8, 8), torch.tensor([1])
        for _ in range(2):
            plan(model, x.shape, [1])
            assert torch.isfinite(model(x, task)).all()

    def test_names_every_mixture_in_a_table(self):
        model = RepModeUNet(num_tasks=2, base_channels=2, num_stages=1)
        text = table(plan(model, (2, 1, 4, 8, 8), [0, 1]))
        names = [n for n, m in model.network.named_modules() if isinstance(m, MoDE)]
        assert [line.split()[0] for line in text.splitlines()[1:]] == names
