"""What all nine methods have in common: sizes, tasks, gradients, plain networks, configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from core.config import from_dict, to_dict
from core.unet3d import RepModeUNet
from ssp.ablations import TABLE2
from ssp.networks.backbone import Backbone
from ssp.networks.registry import (
    METHODS,
    MODELS,
    NetworkConfig,
    build_network,
    for_task,
    model_name,
)
from tests.core.test_deploy import settled
from tests.ssp.networks import NUM_TASKS, SMALL, network, small, volumes

OTHER_TASKS = "by_task.0.", "by_task.2."


@pytest.mark.parametrize(
    ("name", "millions", "millions_5"),
    [
        ("multi-net", 279.4, 1202),
        ("multi-head-dec", 116.2, 474.6),
        ("multi-head-las", 23.29, 100.2),
        ("repmode", 123.877633, 123.877633),
    ],
)
def test_parameter_counts_are_the_known_ones(name, millions, millions_5):
    for kernel_size, known in ((3, millions), (5, millions_5)):
        with torch.device("meta"):
            model = build_network(
                replace(METHODS[name], backbone=Backbone(kernel_size=kernel_size)), 12
            )
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert float(f"{count:.{9 if name == 'repmode' else 4}g}") == known


def test_repmode_merged_for_one_task_has_the_known_parameters():
    plain = for_task(build_network(METHODS["repmode"], 12), 3)
    weights = sum(parameter.numel() for parameter in plain.parameters() if parameter.ndim > 1)
    biases = sum(parameter.numel() for parameter in plain.parameters() if parameter.ndim == 1)
    assert weights + 2 * biases == 100_152_768  # each bias holds scale and shift of a batch norm


def test_one_network_of_multi_net_has_the_parameters_of_one_unet():
    for kernel_size, millions in ((3, 23.28), (5, 100.16)):
        with torch.device("meta"):
            model = build_network(small("multi-net", backbone=Backbone(kernel_size=kernel_size)), 1)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("name", METHODS)
def test_each_sample_of_a_mixed_batch_is_predicted_as_it_is_alone(name):
    model = settled(network(small(name)), (1, 8, 8, 8))
    x, tasks = volumes(4, 1, 5, 11, 9), torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        out = model(x, tasks)
        assert out.shape == x.shape
        for n in range(4):
            alone = model(x[n : n + 1], tasks[n : n + 1])
            torch.testing.assert_close(out[n : n + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_another_task_gives_another_prediction(name):
    model = settled(network(small(name)), (1, 8, 8, 8))
    x = volumes(1, 1, 8, 8, 8).expand(3, -1, -1, -1, -1)
    with torch.no_grad():
        first, second, third = model(x, torch.arange(3))
    difference = torch.stack([first - second, second - third]).abs().amax((1, 2, 3, 4))
    assert difference.min() > 1e-4 * first.abs().max()


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_all_parameters_but_those_of_other_tasks(name):
    model = network(small(name)).train()
    model(volumes(2, 1, 8, 8, 8), torch.tensor([1, 1])).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        is_of_others = any(other in parameter_name for other in OTHER_TASKS)
        assert (parameter.grad is None) == is_of_others, parameter_name


@pytest.mark.parametrize("target", ["projection", "plane"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_predicts_maps_and_has_a_plain_network_for_them(name, target):
    num_layers = 5 if target == "projection" else 1
    config = small(name, backbone=replace(SMALL, target=target))
    model = network(config, num_layers).eval()
    x, task = volumes(1, 1, num_layers, 11, 9), torch.tensor([2])
    with torch.no_grad():
        out = model(x, task)
        assert out.shape == (1, 1, 11, 9)
        torch.testing.assert_close(for_task(model, 2)(x), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_of_one_task_equals_the_whole_one(name):
    model = settled(network(small(name)), (1, 8, 8, 8)).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = volumes(2, 1, 5, 11, 9).double()
    with torch.no_grad():
        for task in range(NUM_TASKS):
            plain = for_task(model, task)
            expected = model(x, torch.tensor([task, task]))
            torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10)
        for tensor in [*plain.parameters(), *plain.buffers()]:
            tensor.zero_()
    assert expected.std() > 1e-6
    assert not plain.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_network_gated_by_its_input_is_kept_whole_for_one_task():
    config = replace(TABLE2["Input-dep. gating"], backbone=SMALL)
    model = network(config)
    x = volumes(2, 1, 5, 6, 7)
    one = for_task(model, 1)
    with torch.no_grad():
        assert torch.equal(one(x), model.eval()(x, torch.tensor([1, 1])))
        assert torch.equal(one(x), model(x, torch.tensor([0, 2])))
    with pytest.raises(ValueError, match=r"task 3 is out of range"):
        for_task(model, 3)


@pytest.mark.parametrize("name", METHODS)
def test_kernel_size_and_dropout_do_what_they_say(name):
    sizes = {
        tuple(module.kernel_size)
        for module in network(small(name, backbone=replace(SMALL, kernel_size=5))).modules()
        if type(module).__name__ == "PlainConv" and module.kernel_size != (1, 1, 1)
    }
    assert sizes == (set() if name == "repmode" else {(5, 5, 5)})
    model = network(small(name, backbone=replace(SMALL, dropout=0.5)))
    x, tasks = volumes(2, 1, 4, 4, 4), torch.tensor([0, 0])
    with torch.no_grad():
        assert not torch.equal(model.train()(x, tasks), model(x, tasks))
        assert torch.equal(model.eval()(x, tasks), model(x, tasks))
    dropped = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    assert len(dropped) >= 2 * (2 * SMALL.num_stages + 1)  # every block's; others lie elsewhere


@dataclass(frozen=True)
class Holder:
    network: NetworkConfig


@pytest.mark.parametrize("config", [*METHODS.values(), *TABLE2.values()])
def test_configurations_come_back_from_json(config):
    stored = json.loads(json.dumps(to_dict(Holder(config))))
    assert from_dict(Holder, stored).network == config
    assert model_name(config) in MODELS


@pytest.mark.parametrize("gated", ["both", "encoder", "decoder"])
def test_repmode_is_the_repmode_of_the_core(gated):
    model = network(small("repmode", gated=gated)).eval()
    core = RepModeUNet(NUM_TASKS, SMALL.base_channels, num_stages=SMALL.num_stages, gated=gated)
    core.load_state_dict(model.state_dict())
    x, tasks = volumes(2, 1, 5, 6, 7), torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.equal(model(x, tasks), core.eval()(x, tasks))


@pytest.mark.parametrize("name", METHODS)
def test_tasks_that_the_network_does_not_know_are_refused(name):
    model = network(small(name))
    with pytest.raises(ValueError, match=r"task 3 is out of range; this network knows tasks 0..2"):
        model(volumes(1, 1, 4, 4, 4), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"task -1 is out of range"):
        for_task(model, -1)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("repmode", {"gated": "head"}, "gated is 'head'; allowed is 'both', 'encoder', 'decoder'"),
        ("multi-head-dec", {"own": "encoder"}, "own is 'encoder'; allowed is 'head', 'decoder'"),
        ("condnet", {"values": (1.0, 1.0)}, r"values \(1.0, 1.0\) give all tasks the same"),
        ("tsns", {"ones_per_task": 0}, "ones_per_task 0 must be at least 1"),
        ("dodnet", {"head_channels": 0}, "head_channels 0 must be at least 1"),
        ("tgnet-style", {"head_channels": 0}, "head_channels 0 must be at least 1"),
    ],
)
def test_choices_of_a_method_that_are_none_are_refused(name, changes, says):
    with pytest.raises(ValueError, match=says):
        small(name, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_channels": 0}, "base_channels 0 and num_stages 2 must be at least 1"),
        ({"num_stages": 0}, "base_channels 2 and num_stages 0 must be at least 1"),
        ({"kernel_size": 4}, "kernel_size is 4; allowed is 3, 5"),
        ({"dropout": 1.0}, "dropout 1.0 is outside 0..1"),
        ({"target": "map"}, "target is 'map'; allowed is 'stack', 'projection', 'plane'"),
        ({"collapse": "sum"}, "collapse is 'sum'; allowed is 'z-as-channels', 'mean'"),
    ],
)
def test_sizes_that_are_none_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **changes)


def test_volumes_that_do_not_fit_the_target_are_refused():
    with pytest.raises(ValueError, match="num_layers is None; target 'projection' needs"):
        network(small("repmode", backbone=replace(SMALL, target="projection")))
    model = network(small("repmode", backbone=replace(SMALL, target="projection")), 5)
    with pytest.raises(ValueError, match="4 layers; this network was made for 5"):
        model(volumes(1, 1, 4, 8, 8), torch.tensor([0]))
    model = network(small("repmode", backbone=replace(SMALL, target="plane")))
    with pytest.raises(ValueError, match="the volume has 2 planes; target 'plane' takes 1"):
        model(volumes(1, 1, 2, 8, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match="num_tasks is 0; give at least one"):
        build_network(small("repmode"), 0)


def test_collapse_is_how_the_projection_loses_its_z():
    out = []
    for collapse in ("mean", "max"):
        config = small("condnet", backbone=replace(SMALL, target="projection", collapse=collapse))
        with torch.no_grad():
            out.append(network(config, 4).eval()(volumes(1, 1, 4, 8, 8), torch.tensor([0])))
    assert not torch.allclose(*out)
