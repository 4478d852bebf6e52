"""The specialised network equals the gated one and holds nothing of the mixture."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from core.activations import ACTIVATIONS
from core.deploy import specialize
from core.map_networks import CollapsedUNet
from core.mode import MoDE
from core.unet3d import Parts, RepModeUNet, TaskConditioned


def settled(model: TaskConditioned, shape: tuple[int, ...]) -> TaskConditioned:
    """Give the batch normalisations statistics worth folding."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            model.train()(torch.randn(3, *shape) + 0.3, torch.arange(3) % model.num_tasks)
    return model.eval()


def ink_like(activation: str, resample_activation: str) -> TaskConditioned:
    options = {"activation": activation, "resample_activation": resample_activation}
    network = CollapsedUNet(
        Parts(partial(MoDE, num_tasks=2), 3, dropout=0.2, **options),
        Parts(partial(MoDE, num_tasks=2, num_axes=2), 2, **options),
        num_layers=8,
        base_channels=2,
        num_stages=2,
    )
    return TaskConditioned(network, num_tasks=2)


MODELS = {
    "3d decoder": (lambda: RepModeUNet(3, base_channels=2), (1, 16, 16, 16)),
    **{
        f"2d decoder, {name}": (partial(ink_like, name, name), (1, 8, 16, 16))
        for name in ACTIVATIONS
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_specialised_network_equals_the_gated_one(name):
    build, shape = MODELS[name]
    model = settled(build(), shape)
    x = torch.randn(2, *shape)
    for task in range(model.num_tasks):
        plain = specialize(model, task)
        with torch.no_grad():
            expected = model(x, torch.full((2,), task))
            torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_specialised_network_holds_plain_convolutions_only(name):
    build, shape = MODELS[name]
    plain = specialize(settled(build(), shape), 0)
    kinds = {type(module) for module in plain.modules()}
    assert not kinds & {MoDE, nn.BatchNorm2d, nn.BatchNorm3d, nn.ParameterList}
    assert not plain.training


def test_specialising_leaves_the_model_as_it_was():
    model = settled(RepModeUNet(2, base_channels=2), (1, 16, 16, 16)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = specialize(model, 1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert model.training
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task 2 is out of range"):
        specialize(RepModeUNet(2, base_channels=2), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_specialised_network_equals_the_gated_one_on_a_gpu(name):
    build, shape = MODELS[name]
    model = settled(build(), shape)
    x, tasks = torch.randn(2, *shape), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = model(x, tasks)
        plain = specialize(model.cuda(), 0)
        torch.testing.assert_close(plain(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
