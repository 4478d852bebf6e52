"""The RepMode U-Net against the paper's numbers, the official network's numbers and any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from core.encoder_decoder import pad_to_multiple
from core.official import from_official_names, load_official_checkpoint
from core.unet3d import RepModeUNet


@pytest.fixture
def reference(sample_data):
    stem = sample_data / "repmode_reference" / "repmode_mc2_3tasks"
    facts = json.loads(stem.with_suffix(".json").read_text())
    return stem.with_suffix(".p"), np.load(stem.with_suffix(".npz")), facts


def test_paper_configuration_has_the_papers_parameter_count():
    with torch.device("meta"):
        model = RepModeUNet(num_tasks=12)
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_877_633


def test_evaluation_outputs_equal_the_official_network(reference):
    path, arrays, facts = reference
    model, tasks = load_official_checkpoint(path)
    assert tasks == facts["tasks"]
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["params"]
    x = torch.from_numpy(arrays["x"])
    with torch.no_grad():
        for task, expected in enumerate(arrays["eval_out"]):
            actual = model(x, torch.full((len(x),), task))
            np.testing.assert_allclose(actual, expected, atol=1e-6)
        mixed = model(x, torch.tensor([2, 0, 1]))
    by_sample = np.stack([arrays["eval_out"][task, n] for n, task in enumerate((2, 0, 1))])
    np.testing.assert_allclose(mixed, by_sample, atol=1e-6)


# Training is compared in double precision: in single, a ReLU whose input is 5e-6 from zero flips
# between two equally exact ways to compute this small network, and moves gradients by 1 %.
def test_training_loss_and_gradient_norms_equal_the_official_network(reference):
    path, arrays, _ = reference
    model = load_official_checkpoint(path)[0].train().double()
    x, y = (torch.from_numpy(arrays[name]).double() for name in "xy")
    loss = (model(x, torch.from_numpy(arrays["train_task"])) - y).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["train_loss"]), rel=1e-6)
    ours = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    pairs = zip(arrays["grad_names"], arrays["grad_norms"], strict=True)
    norms = {str(name): torch.tensor(norm) for name, norm in pairs}
    expected = from_official_names(norms)
    assert ours.keys() == expected.keys()
    for name, norm in expected.items():
        assert ours[name] == pytest.approx(float(norm), rel=1e-4, abs=1e-7), name


def test_adam_trace_equals_the_official_network(reference):
    path, arrays, facts = reference
    model = load_official_checkpoint(path)[0].train().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=facts["adam_lr"])
    x, y = (torch.from_numpy(arrays[name]).double() for name in "xy")
    losses = []
    for _ in facts["adam_losses"]:
        loss = (model(x, torch.from_numpy(arrays["train_task"])) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses, facts["adam_losses"], rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 32, 32), (5, 17, 33), (1, 1, 1), (40, 20, 9)])
def test_any_size_comes_back_in_its_own_size(shape):
    model = RepModeUNet(num_tasks=2, base_channels=2, out_channels=3).eval()
    x, tasks = torch.randn(2, 1, *shape), torch.tensor([0, 1])
    depth, height, width = shape
    with torch.no_grad():
        padded = model(pad_to_multiple(x, 16), tasks)
        actual = model(x, tasks)
    assert actual.shape == (2, 3, *shape)
    assert torch.equal(actual, padded[:, :, :depth, :height, :width])


def test_padding_repeats_the_far_edge_and_leaves_the_volume():
    x = torch.randn(1, 1, 4, 5, 8)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 8, 8)
    assert torch.equal(padded[..., :5, :], x)
    assert torch.equal(padded[..., 7, :], x[..., 4, :])
    assert pad_to_multiple(x[..., :4, :], 4).shape == (1, 1, 4, 4, 8)


def test_mixed_batch_equals_one_sample_at_a_time_in_evaluation():
    model = RepModeUNet(num_tasks=4, base_channels=2).double().eval()
    x, tasks = torch.randn(3, 1, 16, 16, 16).double(), torch.tensor([3, 0, 3])
    with torch.no_grad():
        whole = model(x, tasks)
        single = torch.cat([model(x[n : n + 1], tasks[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(whole, single, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tasks", [[0, 3], [-1, 0]])
def test_task_out_of_range_is_named(tasks):
    model = RepModeUNet(num_tasks=3, base_channels=2)
    bad = next(task for task in tasks if not 0 <= task < 3)
    with pytest.raises(ValueError, match=rf"task {bad} is out of range.*0\.\.2"):
        model(torch.zeros(2, 1, 16, 16, 16), torch.tensor(tasks))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_any_integer_type_names_a_task(dtype):
    model = RepModeUNet(num_tasks=3, base_channels=2).eval()
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        expected = model(x, torch.tensor([2, 0]))
        assert torch.equal(model(x, torch.tensor([2, 0], dtype=dtype)), expected)


@pytest.mark.parametrize("number", ["num_tasks", "base_channels", "num_stages"])
def test_network_without_tasks_width_or_stages_is_refused(number):
    with pytest.raises(ValueError, match=f"{number} 0.* must all be at least 1"):
        RepModeUNet(**{"num_tasks": 2, number: 0})


def test_shapes_that_do_not_fit_are_refused():
    model = RepModeUNet(num_tasks=3, base_channels=2)
    with pytest.raises(ValueError, match=r"expected \(N, C, Z, Y, X\)"):
        model(torch.zeros(1, 16, 16, 16), torch.tensor([0]))
    with pytest.raises(ValueError, match="one integer per sample"):
        model(torch.zeros(2, 1, 16, 16, 16), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"tasks are torch\.float32"):
        model(torch.zeros(1, 1, 16, 16, 16), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="at least one sample"):
        model(torch.zeros(0, 1, 16, 16, 16), torch.zeros(0, dtype=torch.int64))
