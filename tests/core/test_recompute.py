"""Blocks computed again give the same numbers and keep less."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from core.map_networks import CollapsedUNet, PlainConv2d
from core.memory import step_memory
from core.recompute import recomputing
from core.training import fit
from core.unet3d import Parts, PlainConv, RepModeUNet, TaskConditioned
from tests.core.test_training import CONFIG, make_model
from tests.core.test_training_processes import Volumes, squared_error, validate

SHAPE, TASKS = (3, 1, 4, 16, 16), torch.tensor([0, 2, 0])


def make_unet() -> TaskConditioned:
    return RepModeUNet(
        num_tasks=3,
        base_channels=2,
        num_stages=2,
        activation="mish",
        resample_activation="funnel",
        dropout=0.3,
    )


def make_collapsed() -> TaskConditioned:
    parts = Parts(PlainConv, activation="mish", dropout=0.3)
    maps = Parts(PlainConv2d, 2, dropout=0.3, upsampling="sub-pixel")
    return TaskConditioned(CollapsedUNet(parts, maps, 4, 2, 2), 3)


def step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Accumulate the gradients of two losses, the second by its own random numbers."""
    outputs = []
    for scale in (1.0, 2.0):
        torch.manual_seed(int(scale))
        outputs.append(model(scale * x, TASKS))
        outputs[-1].square().mean().backward()
    return torch.cat(outputs)


@pytest.mark.parametrize("make", [make_unet, make_collapsed])
def test_outputs_gradients_statistics_and_random_numbers_are_the_same(make) -> None:
    torch.manual_seed(0)
    kept = make().double().train()
    recomputed, x = copy.deepcopy(kept), torch.randn(SHAPE, dtype=torch.float64)
    expected = step(kept, x)
    after = torch.rand(3)
    with recomputing(recomputed):
        found = step(recomputed, x)
    assert torch.equal(torch.rand(3), after)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    parameters, buffers = dict(recomputed.named_parameters()), dict(recomputed.named_buffers())
    for name, parameter in kept.named_parameters():
        grad = parameters[name].grad
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-10, atol=1e-10)
    assert sum("num_batches_tracked" in name for name in buffers) > 5
    for name, buffer in kept.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-10, atol=1e-10)


def test_without_restored_random_numbers_or_statistics_they_would_differ() -> None:
    """The test above can fail: another mask or a second update is another number."""
    torch.manual_seed(0)
    model, x = make_unet().double().train(), torch.randn(SHAPE, dtype=torch.float64)
    torch.manual_seed(1)
    once = model(x, TASKS)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(2)
    assert not torch.allclose(model(x, TASKS), once)
    name = "network.encoder.bottleneck.0.norm.running_mean"
    assert not torch.allclose(dict(model.named_buffers())[name], statistics[name])


def test_the_network_is_as_before_afterwards() -> None:
    model = make_unet()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="3 samples"), recomputing(model):  # noqa: PT012
        assert "forward" in vars(model.network.encoder.bottleneck[0])
        model(torch.randn(SHAPE), TASKS[:2])
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_autocast_is_that_of_the_first_run() -> None:
    torch.manual_seed(0)
    kept = make_unet().train()
    recomputed, x, gradients = copy.deepcopy(kept), torch.randn(SHAPE), []
    for model, is_recomputed in ((kept, False), (recomputed, True)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            if is_recomputed:
                with recomputing(model):
                    loss = model(x, TASKS).float().square().mean()
            else:
                loss = model(x, TASKS).float().square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert torch.equal(found, expected)


def test_a_step_keeps_less_and_its_peak_is_lower() -> None:
    def build() -> TaskConditioned:
        return RepModeUNet(num_tasks=2, base_channels=4, num_stages=1, activation="mish")

    kept, recomputed = (
        step_memory(build, (2, 1, 8, 32, 32), [0, 1], torch.bfloat16, recompute)
        for recompute in (False, True)
    )
    assert recomputed.kept < 0.6 * kept.kept
    assert recomputed.peak < kept.peak
    assert recomputed.weights == kept.weights


def test_training_writes_the_same_metrics_and_weights(tmp_path) -> None:
    config = replace(CONFIG, epochs=1, warmup_epochs=0)
    ends = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, out = make_unet(), tmp_path / str(recompute)
        chosen = replace(config, recompute=recompute)
        fit(model, Volumes(5), squared_error, validate, chosen, out, {})
        row = json.loads((out / "metrics.jsonl").read_text())
        ends.append((row["train"], row["score"], model.state_dict()))
    assert ends[0][:2] == ends[1][:2]
    assert all(torch.equal(ends[1][2][name], tensor) for name, tensor in ends[0][2].items())


def test_a_network_without_blocks_is_refused_before_anything_is_written(tmp_path) -> None:
    config = replace(CONFIG, recompute=True)
    with pytest.raises(ValueError, match=r"recompute is on, but .* leave it out, or lower batch_"):
        fit(make_model(), Volumes(), squared_error, validate, config, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()
