"""The block: its convolution for one task, the kernel it keeps, and the paper's variants of it."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

from core.gates import GateConfig
from core.gatrep import REPMODE_EXPERTS, Expert, TaskGroups
from core.mode import Mixture, MoDE
from core.unet3d import RepModeUNet

ONE = TaskGroups.of([1, 1])


def kept(block: MoDE, x: torch.Tensor, task: int = 1) -> torch.Tensor:
    """The output with a kept kernel."""
    with torch.no_grad():
        return block.eval()(x, TaskGroups.of([task] * len(x)))


def fresh(block: MoDE, x: torch.Tensor, task: int = 1) -> torch.Tensor:
    """The output with gradients on, for which nothing is kept."""
    return block(x, TaskGroups.of([task] * len(x))).detach()


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
        assert isinstance(plain, conv_type)
        x = torch.randn(2, 3, *[6] * num_axes, dtype=torch.float64)
        torch.testing.assert_close(plain(x), fresh(block, x), rtol=1e-10, atol=1e-10)


class TestKeptKernel:
    """A kernel merged in evaluation is used again, and never when it is out of date."""

    @pytest.fixture
    def block(self) -> MoDE:
        torch.manual_seed(0)
        return MoDE(2, 2, num_tasks=3).double()

    @pytest.fixture
    def x(self) -> torch.Tensor:
        return torch.randn(2, 2, 3, 6, 2, dtype=torch.float64)

    @pytest.fixture
    def num_merges(self, monkeypatch) -> list[int]:
        counts = []
        merged = MoDE.merged_kernel
        monkeypatch.setattr(
            MoDE, "merged_kernel", lambda self, task: counts.append(task) or merged(self, task)
        )
        return counts

    def test_is_merged_once_per_task_in_a_row(self, block, x, num_merges):
        expected = {task: fresh(block, x, task) for task in (1, 2)}
        for task in (1, 1, 2, 2, 1):
            torch.testing.assert_close(kept(block, x, task), expected[task])
        assert num_merges == [1, 2, 1]

    @pytest.mark.parametrize(
        "change",
        [
            lambda block: _doubled(block.kernels[4]),
            lambda block: torch.optim.SGD([_with_grad(block.kernels[0])], lr=1.0).step(),
            lambda block: _trained(block),
            lambda block: _doubled(block.gate.linear.bias),
            lambda block: block.load_state_dict(MoDE(2, 2, 3).state_dict()),
            lambda block: block.load_state_dict(MoDE(2, 2, 3).double().state_dict(), assign=True),
            lambda block: setattr(block.kernels[1], "data", torch.randn_like(block.kernels[1])),
        ],
        ids=["in place", "optimizer", "fused optimizer", "gate", "state", "assigned state", "data"],
    )
    def test_follows_a_change_of_weights(self, block, x, change):
        before = kept(block, x)
        change(block)
        after = kept(block, x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, fresh(block, x), rtol=1e-10, atol=1e-10)

    def test_follows_a_change_of_precision(self, block, x):
        kept(block, x)
        assert kept(block.float(), x.float()).dtype == torch.float32

    def test_training_drops_it(self, block, x, num_merges):
        kept(block, x)
        block.train()
        kept(block, x)
        assert num_merges == [1, 1]

    def test_is_neither_copied_nor_saved(self, block, x, num_merges):
        kept(block, x)
        assert len(block.state_dict()) == 7
        for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(kept(other, x), kept(block, x))
        assert len(num_merges) == 3

    def test_with_gradients_nothing_is_kept(self, block, x, num_merges):
        block.eval()(x, ONE).sum().backward()
        assert num_merges == []
        assert block.kernels[0].grad is not None

    def test_only_evaluation_keeps_and_only_what_is_merged(self, block, x, num_merges):
        with torch.no_grad():
            block.train()(x, ONE)
            for computation in ("gated", "sparse"):
                block.computation = computation
                block.eval()(x, ONE)
        assert num_merges == []

    def test_of_one_thread_is_not_given_to_another(self, block, x):
        expected = {task: kept(block, x, task) for task in range(3)}
        wrong = []

        def predict(task: int) -> None:
            with torch.no_grad():
                for _ in range(150):
                    if not torch.equal(block(x, TaskGroups.of([task] * 2)), expected[task]):
                        wrong.append(task)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=predict, args=(task,)) for task in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert wrong == []

    def test_moving_the_block_lets_go_of_the_old_weights(self, block, x):
        kept(block, x)
        alias = weakref.ref(block._kept.kernel)
        block.float()
        assert alias() is None

    def test_of_inference_mode_serves_no_grad_mode(self, block, x):
        with torch.inference_mode():
            first = block.eval()(x, ONE)
        assert torch.equal(first.clone(), kept(block, x))

    def test_weights_whose_changes_cannot_be_told_are_merged_each_time(self, x):
        with torch.inference_mode():
            block = MoDE(2, 2, num_tasks=3).double().eval()
            before = block(x, ONE)
            block.kernels[0].mul_(3)
            assert not torch.equal(block(x, ONE), before)


def _doubled(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(2)


def _trained(block: MoDE) -> None:
    """One step of an optimiser that changes weights without their versions."""
    x = torch.randn(1, 2, 3, 3, 3, dtype=torch.float64)
    block(x, TaskGroups.of([1])).square().sum().backward()
    torch.optim.AdamW(block.parameters(), lr=0.1, fused=True).step()


def _with_grad(parameter: nn.Parameter) -> nn.Parameter:
    parameter.grad = torch.ones_like(parameter)
    return parameter


# Table 2 of the paper: which experts, of which average sizes, under which gate.
TABLE_2 = {
    "without 1": Mixture(tuple(e for e in REPMODE_EXPERTS if e.size != 1)),
    "without 3": Mixture(tuple(e for e in REPMODE_EXPERTS if e.size != 3)),
    "without 5": Mixture(tuple(e for e in REPMODE_EXPERTS if e.size != 5)),
    "without conv": Mixture(tuple(e for e in REPMODE_EXPERTS if e.kind == "average")),
    "without average-conv": Mixture(tuple(e for e in REPMODE_EXPERTS if e.kind == "conv")),
    "without average": Mixture((*REPMODE_EXPERTS[:3], Expert("conv", 1), Expert("conv", 1))),
    "averages of 3": Mixture((*REPMODE_EXPERTS[:3], Expert("average", 3), Expert("average", 3))),
    "averages of 5": Mixture((*REPMODE_EXPERTS[:3], Expert("average", 5), Expert("average", 5))),
    "gaussian code": Mixture(gate=GateConfig(code="gaussian")),
    "two layers": Mixture(gate=GateConfig(hidden=6)),
    "sigmoid": Mixture(gate=GateConfig(activation="sigmoid")),
    "input": Mixture(gate=GateConfig(sees="input")),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_every_variant_is_the_same_function_on_every_way(name):
    torch.manual_seed(0)
    block = MoDE(3, 2, num_tasks=4, mixture=TABLE_2[name]).double()
    x = torch.randn(3, 3, 2, 5, 4, dtype=torch.float64)
    groups = TaskGroups.of([3, 0, 3])
    outputs, gradients = [], []
    for computation in ("merged", "gated"):
        block.computation = computation
        outputs.append(block(x, groups))
        loss = outputs[-1].square().sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    for merged, gated in zip(*gradients, strict=True):
        torch.testing.assert_close(merged, gated, rtol=1e-10, atol=1e-8)
    if TABLE_2[name].gate.sees == "task":
        torch.testing.assert_close(block.plain(3)(x[2:]), outputs[0][2:], rtol=1e-10, atol=1e-10)


def test_without_the_5_pair_the_merged_kernel_is_3():
    block = MoDE(1, 1, num_tasks=1, mixture=TABLE_2["without 5"])
    assert block.plain(0).kernel_size == (3, 3, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mixture(experts=()),
        lambda: Mixture(computation="fast"),
        lambda: GateConfig(activation="sofmax"),
        lambda: GateConfig(sees="inputs"),
        lambda: GateConfig(code="gauss"),
        lambda: Expert("avg", 3),
        lambda: RepModeUNet(2, gated="encodr"),
    ],
)
def test_unknown_choices_are_refused(make):
    with pytest.raises(ValueError, match=r"allowed is|at least one"):
        make()


def test_an_input_dependent_block_cannot_be_made_plain():
    block = MoDE(1, 1, num_tasks=1, mixture=TABLE_2["input"])
    with pytest.raises(ValueError, match="cannot be specialized"):
        block.plain(0)


def test_an_input_dependent_block_keeps_no_kernel():
    block = MoDE(1, 1, num_tasks=2, mixture=TABLE_2["input"]).eval()
    with torch.no_grad():
        a, b = (
            block(x, ONE) / x for x in (torch.ones(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1) * 5)
        )
    assert not torch.allclose(a, b)
