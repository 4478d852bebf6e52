"""Every network built on the core becomes its plain network, whatever it is made of."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from core.activations import ACTIVATIONS
from core.collapse import COLLAPSES
from core.deploy import specialize
from core.extend import extend
from core.gates import GateConfig
from core.map_networks import CollapsedUNet, UNetThenCollapse
from core.mode import Mixture, MoDE
from core.unet3d import Parts, RepModeUNet, TaskConditioned

NUM_TASKS = 3
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


SIZES = {"num_tasks": NUM_TASKS, "base_channels": 4, "num_stages": 1}


def choices(activation: str) -> dict[str, Any]:
    return {"activation": activation, "resample_activation": activation, "dropout": 0.2}


def build(decoder: str, collapse: str, activation: str) -> TaskConditioned:
    """Return a small network from volumes of 5 layers to maps."""
    make_conv, options = partial(MoDE, num_tasks=NUM_TASKS), choices(activation)
    kind, num_axes = (CollapsedUNet, 2) if decoder == "2d" else (UNetThenCollapse, 3)
    network = kind(
        Parts(make_conv, 3, **options),
        Parts(partial(make_conv, num_axes=num_axes), num_axes, **options),
        num_layers=5,
        base_channels=2,
        num_stages=1,
        collapse=collapse,
    )
    return TaskConditioned(network, NUM_TASKS)


@torch.no_grad()
def randomised(model: TaskConditioned) -> TaskConditioned:
    """Give the gates, statistics and floors of a network values that matter, in float64."""
    torch.manual_seed(0)
    for name, value in model.double().state_dict().items():
        if "running_var" in name or "norm.weight" in name:
            value.uniform_(0.5, 2)
        elif any(part in name for part in ("norm.bias", "running_mean", "gate.", "floor")):
            value.normal_()
    return model.eval()


@torch.no_grad()
def slow_twin(model: TaskConditioned, x: torch.Tensor) -> torch.Tensor:
    """Return what the experts give one by one; the kernel kept for one task is the plain one."""
    for module in model.modules():
        if isinstance(module, MoDE):
            module.computation = "gated"
    return model(x, torch.arange(model.num_tasks))


def check(model: TaskConditioned) -> None:
    """Compare every task's plain network with the gated one, and what it is made of."""
    x = torch.randn(model.num_tasks, 1, 5, 7, 6, dtype=torch.float64)
    expected, outputs = slow_twin(model, x), []
    for task in range(model.num_tasks):
        plain = specialize(model, task)
        kinds = {type(module) for module in plain.modules()}
        assert not any(issubclass(kind, (MoDE, nn.ParameterList, *NORMS)) for kind in kinds)
        assert not plain.training
        with torch.no_grad():
            outputs.append(plain(x))
        torch.testing.assert_close(outputs[-1][task], expected[task], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("collapse", COLLAPSES)
@pytest.mark.parametrize("decoder", ["2d", "3d"])
def test_specialised_network_of_maps_equals_the_gated_one(decoder, collapse, activation):
    check(randomised(build(decoder, collapse, activation)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", ["both", "encoder", "decoder"])
def test_specialised_network_of_volumes_equals_the_gated_one(gated, activation):
    check(randomised(RepModeUNet(**SIZES, gated=gated, **choices(activation))))


@pytest.mark.parametrize(
    "gate",
    [
        GateConfig(code="gaussian"),
        GateConfig(hidden=6),
        GateConfig(activation="sigmoid"),
        GateConfig(code="gaussian", hidden=6, activation="sigmoid"),
    ],
)
def test_specialised_network_equals_that_of_every_gate_by_task(gate):
    check(randomised(RepModeUNet(**SIZES, mixture=Mixture(gate=gate), **choices("mish"))))


@pytest.mark.parametrize("decoder", ["2d", "3d"])
def test_specialised_network_equals_the_extended_one(decoder):
    extended = extend(build(decoder, "z-vector-bottleneck", "funnel"))
    assert extended.num_tasks == NUM_TASKS + 1
    check(randomised(extended))
