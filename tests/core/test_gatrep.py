"""GatRep: merged kernels, gated outputs and five separate branches are one function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from core.choice import convolve
from core.convolution import convolve_same
from core.gatrep import (
    REPMODE_EXPERTS,
    Expert,
    TaskGroups,
    convolve_gated,
    convolve_merged,
    live_window,
    merge,
)
from core.mode import Mixture, MoDE

PATHS = {"merged": convolve_merged, "gated": convolve_gated, "chosen": convolve}


def branches_in_words(block: MoDE, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """The paper's block, one sample and one expert at a time, in plain operations."""
    out = []
    for sample, task in zip(x, tasks, strict=True):
        logits = block.gate.linear.weight[:, task] + block.gate.linear.bias
        gates = torch.softmax(logits.view(5, -1), dim=0)
        total = 0
        for gate, kernel, expert in zip(gates, block.kernels, block.experts, strict=True):
            features = sample[None]
            if expert.kind == "average":
                channels = features.shape[1]
                box = torch.full(
                    (channels, 1, *[expert.size] * (x.ndim - 2)),
                    1 / expert.size ** (x.ndim - 2),
                    dtype=x.dtype,
                )
                conv = F.conv3d if x.ndim == 5 else F.conv2d
                features = conv(features, box, padding=expert.size // 2, groups=channels)
            conv = F.conv3d if x.ndim == 5 else F.conv2d
            y = conv(features, kernel, padding=kernel.shape[-1] // 2)[0]
            total = total + gate.view(-1, *[1] * (y.ndim - 1)) * y
        out.append(total)
    return torch.stack(out)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(7)
    return list(torch.autograd.grad((output * torch.randn_like(output)).sum(), inputs))


def assert_equal_in_value_and_gradient(
    path: str, dtype: torch.dtype, tasks: list[int], shape: tuple[int, ...], tolerance: float
) -> None:
    torch.manual_seed(0)
    block = MoDE(3, 4, num_tasks=5, num_axes=len(shape)).to(dtype)
    x = torch.randn(len(tasks), 3, *shape, dtype=dtype, requires_grad=True)
    task_N = torch.tensor(tasks)
    groups = TaskGroups.of(tasks)
    expected = branches_in_words(block, x, task_N)
    actual = PATHS[path](x, tuple(block.kernels), block.experts, block.gate(x, groups)[0], groups)
    inputs = [x, *block.parameters()]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    for got, want in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got / scale, want / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tasks", [[2, 2, 2], [0, 1, 2], [4, 1, 4, 0]])
def test_paths_equal_the_five_branches(path, dtype, tolerance, tasks):
    assert_equal_in_value_and_gradient(path, dtype, tasks, (3, 6, 5), tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_paths_equal_the_five_branches_on_maps(path):
    assert_equal_in_value_and_gradient(path, torch.float64, [1, 0, 1], (6, 5), 1e-10)


@settings(max_examples=25)
@given(
    path=st.sampled_from(sorted(PATHS)),
    tasks=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
)
def test_paths_equal_for_any_batch_and_size_down_to_one_voxel(path, tasks, shape):
    assert_equal_in_value_and_gradient(path, torch.float64, tasks, shape, 1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_paths_equal_the_five_branches_on_a_gpu(path):
    torch.manual_seed(0)
    block = MoDE(3, 4, num_tasks=5)
    x = torch.randn(3, 3, 5, 6, 7)
    expected = branches_in_words(block, x, torch.tensor([4, 1, 4]))
    block, groups = block.cuda(), TaskGroups.of([4, 1, 4], "cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        actual = PATHS[path](
            x.cuda(), tuple(block.kernels), block.experts, block.gate(x, groups)[0], groups
        )
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_merged_kernel_follows_the_equation_element_by_element():
    torch.manual_seed(0)
    block = MoDE(2, 3, num_tasks=1).double()
    w5, w3, w1, a3, a5 = block.kernels
    gates = torch.rand(5, 3, dtype=torch.float64)
    merged = merge(tuple(block.kernels), block.experts, gates)
    for o, i in ((0, 0), (2, 1)):
        g5, g3, g1, h3, h5 = gates[:, o]
        corner = g5 * w5[o, i, 0, 4, 0] + h5 * a5[o, i, 0, 0, 0] / 125
        inner = g5 * w5[o, i, 1, 2, 3] + h5 * a5[o, i, 0, 0, 0] / 125
        inner = inner + g3 * w3[o, i, 0, 1, 2] + h3 * a3[o, i, 0, 0, 0] / 27
        centre = g5 * w5[o, i, 2, 2, 2] + h5 * a5[o, i, 0, 0, 0] / 125
        centre = centre + g3 * w3[o, i, 1, 1, 1] + h3 * a3[o, i, 0, 0, 0] / 27
        centre = centre + g1 * w1[o, i, 0, 0, 0]
        torch.testing.assert_close(merged[o, i, 0, 4, 0], corner)
        torch.testing.assert_close(merged[o, i, 1, 2, 3], inner)
        torch.testing.assert_close(merged[o, i, 2, 2, 2], centre)


def test_merging_leaves_the_experts_unchanged():
    block = MoDE(2, 2, num_tasks=2)
    before = [kernel.detach().clone() for kernel in block.kernels]
    block(torch.randn(2, 2, 8, 32, 32), TaskGroups.of([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(before, block.kernels, strict=True))


@pytest.mark.parametrize(
    "experts",
    [
        (Expert("average", 5), Expert("conv", 3)),
        (Expert("average", 3), Expert("average", 5), Expert("conv", 1)),
        (Expert("conv", 3),),
    ],
)
def test_other_sets_of_experts_merge_exactly(experts):
    torch.manual_seed(0)
    block = MoDE(2, 3, num_tasks=3, mixture=Mixture(experts)).double()
    x = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    groups = TaskGroups.of([2, 0, 2])
    arguments = (x, tuple(block.kernels), block.experts, block.gate(x, groups)[0], groups)
    torch.testing.assert_close(
        convolve_merged(*arguments), convolve_gated(*arguments), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("path", ["merged", "gated", "auto"])
def test_autocast_convolves_in_its_precision_and_merges_in_the_parameters(path, monkeypatch):
    convolved = []
    monkeypatch.setattr(
        "core.gatrep.convolve_same",
        lambda x, kernel: convolved.append(kernel) or convolve_same(x, kernel),
    )
    torch.manual_seed(0)
    block = MoDE(2, 2, num_tasks=2, mixture=Mixture(computation=path))
    x, groups = torch.randn(3, 2, 4, 8, 8, dtype=torch.bfloat16), TaskGroups.of([0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(x, groups)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in block.parameters())
    if path == "merged":
        for task, kernel in enumerate(convolved):
            exact = merge(tuple(block.kernels), block.experts, block.gate.of_task(task))
            assert torch.equal(kernel, exact.bfloat16())


@pytest.mark.parametrize("path", ["merged", "gated"])
def test_autocast_stays_near_full_precision_in_value_and_gradient(path):
    torch.manual_seed(0)
    block = MoDE(8, 8, num_tasks=3, mixture=Mixture(computation=path))
    x, groups = torch.randn(3, 8, 6, 8, 8, requires_grad=True), TaskGroups.of([0, 2, 0])
    inputs = [x, *block.parameters()]
    exact = block(x, groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = block(x, groups)
    assert rounded.dtype == torch.bfloat16
    wanted, found = (gradients(out.float(), inputs) for out in (exact, rounded))
    for a, b in zip([rounded.float(), *found], [exact, *wanted], strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()


def test_autocast_leaves_double_precision_alone():
    block = MoDE(2, 2, num_tasks=2).double()
    x, groups = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64), TaskGroups.of([0, 1])
    for path in ("merged", "gated"):
        block.computation = path
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(block(x, groups), block(x, groups).double())
            assert block(x, groups).dtype == torch.float64


def test_features_of_another_precision_are_refused_whatever_the_way():
    block, groups = MoDE(2, 2, num_tasks=1), TaskGroups.of([0])
    for path in ("merged", "gated"):
        block.computation = path
        with pytest.raises((ValueError, RuntimeError)):
            block(torch.randn(1, 2, 3, 3, 3, dtype=torch.float64), groups)


@pytest.mark.parametrize("size", [0, 2, -3])
def test_expert_of_even_or_no_size_is_refused(size):
    with pytest.raises(ValueError, match="not odd and positive"):
        Expert("conv", size)


def test_repmode_experts_are_in_gate_order():
    assert [(e.kind, e.size) for e in REPMODE_EXPERTS] == [
        ("conv", 5), ("conv", 3), ("conv", 1), ("average", 3), ("average", 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "window"),
    [((1, 1, 1), (1, 1, 1)), ((1, 2, 2), (1, 3, 3)), ((2, 3, 9), (3, 5, 5))],
)
def test_taps_that_only_meet_padding_are_left_out(lengths, window, monkeypatch):
    assert live_window(5, lengths) == window
    # One expert, so that sparse routing must run it too.
    block = MoDE(1, 1, num_tasks=1, mixture=Mixture((Expert("conv", 5),)))
    inside = torch.zeros(5, 5, 5, dtype=torch.bool)
    inside[tuple(slice((5 - size) // 2, (5 + size) // 2) for size in window)] = True
    x, groups = torch.randn(1, 1, *lengths), TaskGroups.of([0])
    windows = []
    for module in ("core.gatrep", "core.mode", "core.routing"):
        monkeypatch.setattr(
            f"{module}.convolve_same",
            lambda x, kernel: windows.append(tuple(kernel.shape[2:])) or convolve_same(x, kernel),
        )
    for computation in ("merged", "gated", "sparse"):
        block.computation = computation
        windows.clear()
        block.zero_grad()
        block(x, groups).square().sum().backward()
        assert max(windows) == window
        if computation != "sparse":
            gradient = block.kernels[0].grad[0, 0]
            assert (gradient[~inside] == 0).all()
            assert (gradient[inside] != 0).all()
    block.computation = "auto"
    windows.clear()
    with torch.no_grad():
        block.eval()(x, groups)
    assert windows == [window]


def test_merging_keeps_features_for_the_backward_pass_and_no_kernel():
    block = MoDE(4, 4, num_tasks=3)
    x, groups = torch.randn(3, 4, 8, 8, 8, requires_grad=True), TaskGroups.of([0, 1, 2])
    own = {tensor.untyped_storage().data_ptr() for tensor in [*block.parameters(), x]}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.update({tensor.untyped_storage().data_ptr(): tensor}) or tensor,
        lambda tensor: tensor,
    ):
        gates, _ = block.gate(x, groups)
        convolve_merged(x, tuple(block.kernels), block.experts, gates, groups)
    others = [tensor for pointer, tensor in kept.items() if pointer not in own]
    assert max(tensor.numel() for tensor in others) <= gates.numel()


@pytest.mark.parametrize("path", [convolve_merged, convolve_gated])
def test_frozen_parts_get_no_gradient_and_the_others_the_same(path):
    torch.manual_seed(0)
    block = MoDE(2, 2, num_tasks=2).double()
    x, groups = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64), TaskGroups.of([0, 1])

    def step() -> dict[str, torch.Tensor | None]:
        block.zero_grad()
        gates, _ = block.gate(x, groups)
        path(x, tuple(block.kernels), block.experts, gates, groups).square().sum().backward()
        return {name: parameter.grad for name, parameter in block.named_parameters()}

    whole = step()
    block.kernels[0].requires_grad_(False)
    block.kernels[3].requires_grad_(False)
    partial = step()
    for name, gradient in partial.items():
        if name in ("kernels.0", "kernels.3"):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["merged", "gated", "auto"])
def test_checkpointing_changes_nothing(path):
    block = MoDE(3, 2, num_tasks=3, mixture=Mixture(computation=path)).double()
    x = torch.randn(3, 3, 2, 6, 4, dtype=torch.float64, requires_grad=True)
    groups = TaskGroups.of([1, 2, 1])
    inputs = [x, *block.parameters()]
    plain = block(x, groups)
    again = checkpoint(block, x, groups, use_reentrant=False)
    assert torch.equal(plain, again)
    for a, b in zip(gradients(plain, inputs), gradients(again, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", ["merged", "gated", "auto"])
def test_channels_last_is_the_same_and_stays_channels_last(path):
    torch.manual_seed(0)
    block = MoDE(3, 4, num_tasks=3, mixture=Mixture(computation=path))
    x = torch.randn(3, 3, 4, 8, 6)
    last = x.to(memory_format=torch.channels_last_3d)
    groups = TaskGroups.of([1, 2, 1])
    expected, actual = block(x, groups), block(last, groups)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual.is_contiguous(memory_format=torch.channels_last_3d)
    weights = torch.randn(expected.shape)
    ours, theirs = (
        torch.autograd.grad((out * weights).sum(), list(block.parameters()))
        for out in (actual, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
