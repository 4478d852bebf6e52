"""The memory of a step found without memory equals that of a real step."""

from __future__ import annotations

import pytest
import torch

from core.gatrep import TaskGroups
from core.memory import LiveBytes, step_memory
from core.unet3d import RepModeUNet

SHAPE, TASKS = (3, 1, 4, 16, 16), [0, 2, 0]


def build() -> RepModeUNet:
    return RepModeUNet(num_tasks=3, base_channels=2, num_stages=1)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_equals_the_bytes_of_a_real_step(autocast):
    predicted = step_memory(build, SHAPE, TASKS, autocast)
    with LiveBytes() as live:
        network = build().network.train()
        weights = live.now
        x = torch.randn(SHAPE)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = network(x, TaskGroups.of(TASKS)).float().square().mean()
        kept = live.now - weights
        loss.backward()
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    assert predicted.weights == weights
    assert predicted.kept == pytest.approx(kept, rel=0.0 if autocast is None else 1e-2)
    assert predicted.optimizer == 2 * parameters
    # what a gradient needs for a moment is up to the operators, which differ without values
    assert predicted.peak == pytest.approx(live.peak + 2 * parameters, rel=0.1)


def test_counts_storages_for_as_long_as_they_live():
    with LiveBytes() as live:
        a = torch.zeros(100)
        view, b = a[10:], torch.zeros(50)
        assert live.now == 600
        del a
        assert live.now == 600
        del view
        assert live.now == 200
        del b
    assert (live.now, live.peak) == (0, 600)


def test_grows_with_the_batch_and_shrinks_with_precision():
    one, two = (step_memory(build, (n, *SHAPE[1:]), TASKS[:n]) for n in (1, 2))
    half = step_memory(build, (2, *SHAPE[1:]), TASKS[:2], torch.bfloat16)
    assert one.kept < half.kept < two.kept
    assert one.weights == two.weights == half.weights


def test_frozen_parameters_need_no_optimizer():
    def frozen() -> RepModeUNet:
        model = build()
        for parameter in model.network.encoder.parameters():
            parameter.requires_grad_(False)
        return model

    assert step_memory(frozen, SHAPE, TASKS).optimizer < step_memory(build, SHAPE, TASKS).optimizer
