"""The ways to do without Z, and the networks that decode in 2D or collapse a decoded volume."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from core.collapse import (
    COLLAPSES,
    FeatureShape,
    ZAsChannels,
    encoder_shapes,
    make_collapse,
)
from core.encoder_decoder import pad_to_multiple
from core.map_networks import CollapsedUNet, UNetThenCollapse
from core.mode import MoDE
from core.unet3d import Parts, RepModeUNet, TaskConditioned

FEATURES, VOLUME, BOTTLENECK = FeatureShape(2, 3, 1), FeatureShape(1, 6, 2), FeatureShape(4, 2)


def collapsed(
    num_layers: int = 12, collapse: str = "z-as-channels", decoder: str = "2d"
) -> TaskConditioned:
    parts = Parts(partial(MoDE, num_tasks=2), 3)
    maps = Parts(partial(MoDE, num_tasks=2, num_axes=2), 2)
    sizes = {"num_layers": num_layers, "base_channels": 2, "num_stages": 2, "collapse": collapse}
    if decoder == "3d":
        return TaskConditioned(UNetThenCollapse(parts, parts, **sizes), num_tasks=2)
    return TaskConditioned(CollapsedUNet(parts, maps, **sizes), num_tasks=2)


def features_and_context(seed: int = 0) -> list[Tensor]:
    """Return features, volume and bottleneck of 2 samples, with their padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(2, 4, 5, 3), (1, 8, 10, 6), (4, 2, 3, 2)]
    return [torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in sizes]


def make(name: str) -> nn.Module:
    torch.manual_seed(1)
    return make_collapse(name, FEATURES, VOLUME, BOTTLENECK).double()


def dot(weights: list[float], values: list[Tensor]) -> Tensor:
    return sum(w * v for w, v in zip(weights, values, strict=True))


def z_vector(collapse: nn.Module, source: Tensor, num_layers: int) -> list[float]:
    """Return the vector of one sample, in loops: source (C, Z, Y, X) without its padding."""
    profile = [layer.mean() for channel in source for layer in channel[:num_layers]]
    weight, bias = collapse.vector.weight, collapse.vector.bias
    return [(1 + bias[z] + dot(profile, list(weight[z]))) / len(bias) for z in range(len(bias))]


def slow_pixel(
    name: str, collapse: nn.Module, column: Tensor, volume: Tensor, bottleneck: Tensor, c: int
) -> Tensor:
    """Return one value of the map from the column (C, 3) of layers that show the volume."""
    values = list(column[c])
    if name == "mean":
        return sum(values) / 3
    if name == "max":
        return max(values)
    if name == "attention":
        score = collapse.score.weight.flatten()
        powers = [math.exp(dot(list(score), list(column[:, z]))) for z in range(3)]
        return dot([power / sum(powers) for power in powers], values)
    if name == "z-vector-input":
        return dot(z_vector(collapse, volume, VOLUME.num_layers), values)
    return dot(z_vector(collapse, bottleneck, BOTTLENECK.num_layers), values)


@pytest.mark.parametrize("name", COLLAPSES[1:])
def test_collapse_equals_its_slow_twin(name):
    collapse, (features, volume, bottleneck) = make(name), features_and_context()
    with torch.no_grad():
        maps = collapse(features, volume, bottleneck)
        assert maps.shape == (2, 2, 5, 3)
        for n, c, y, x in product(range(2), range(2), range(5), range(3)):
            column = features[n, :, :3, y, x]
            expected = slow_pixel(name, collapse, column, volume[n], bottleneck[n], c)
            torch.testing.assert_close(maps[n, c, y, x], expected, rtol=1e-10, atol=1e-10)


def test_z_as_channels_is_a_2d_convolution_with_layers_as_channels():
    torch.manual_seed(0)
    collapse = ZAsChannels(channels=2, num_layers=3).double()
    x = torch.randn(1, 2, 3, 5, 4, dtype=torch.float64)
    maps = collapse(x)
    weight, bias = collapse.conv.weight, collapse.conv.bias
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = sum(
        weight[1, z, dy, dx] * padded[0, 1, z, 2 + dy, 3 + dx]
        for z in range(3)
        for dy in range(3)
        for dx in range(3)
    )
    torch.testing.assert_close(maps[0, 1, 2, 3], expected + bias[1])


def test_channels_do_not_mix_in_z_as_channels():
    collapse = ZAsChannels(channels=2, num_layers=3)
    x = torch.randn(1, 2, 3, 5, 4)
    before = collapse(x)
    x[:, 1] += 1
    after = collapse(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("name", COLLAPSES)
def test_gradients_reach_parameters_shown_layers_and_the_context_that_counts(name):
    collapse, inputs = make(name), [x.requires_grad_() for x in features_and_context()]
    collapse(*inputs).square().sum().backward()
    features, volume, bottleneck = inputs
    assert all(p.grad.abs().sum() > 0 for p in collapse.parameters())
    reached = (features.grad.abs().amax((0, 1, 3, 4)) > 0).tolist()
    assert reached == [True, True, True, name == "z-as-channels"]
    assert (volume.grad is not None) == (name == "z-vector-input")
    assert (bottleneck.grad is not None) == (name == "z-vector-bottleneck")
    if volume.grad is not None:
        shown = (volume.grad.abs().amax((0, 1, 3, 4)) > 0).tolist()
        assert shown == [True] * 6 + [False] * 2


@pytest.mark.parametrize("name", ["z-vector-input", "z-vector-bottleneck"])
def test_z_vector_without_weights_is_the_mean(name):
    collapse, inputs = make(name), features_and_context()
    for parameter in collapse.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(collapse(*inputs), inputs[0][:, :, :3].mean(2))


@pytest.mark.parametrize("name", COLLAPSES)
def test_collapse_can_be_exported_for_any_batch(name):
    collapse, inputs = make(name), tuple(features_and_context())
    batch = {0: torch.export.Dim.AUTO}
    program = torch.export.export(
        collapse, inputs, dynamic_shapes={"features": batch, **context_shapes(name, batch)}
    )
    more = [torch.cat([x, x + 1]) for x in inputs]
    assert torch.equal(program.module()(*more), collapse(*more))


def context_shapes(name: str, batch: dict) -> dict:
    """Return the dynamic shapes of the context as the collapse's forward names it."""
    if name.startswith("z-vector"):
        return {"volume": batch, "bottleneck": batch}
    return {"context": (batch, batch)}


@pytest.mark.parametrize("name", COLLAPSES)
def test_other_number_of_layers_is_refused(name):
    _, volume, bottleneck = features_and_context()
    with pytest.raises(ValueError, match="features have 3 layers; this collapse was made for 4"):
        make(name)(torch.zeros(2, 2, 3, 5, 3).double(), volume, bottleneck)


def test_unknown_collapse_is_refused():
    with pytest.raises(ValueError, match="unknown collapse 'median'; choose one of z-as-channels"):
        make("median")


def test_layers_that_show_padding_alone_are_counted():
    assert encoder_shapes(10, base_channels=2, num_stages=2) == [
        FeatureShape(2, 10, 2),
        FeatureShape(4, 5, 1),
        FeatureShape(8, 3, 0),
    ]
    assert [s.num_padding for s in encoder_shapes(65, 1, 4)] == [15, 7, 3, 1, 0]


@pytest.mark.parametrize("decoder", ["2d", "3d"])
@pytest.mark.parametrize("num_layers", [9, 11, 12, 13])
def test_network_refuses_other_layers_even_within_its_padding(num_layers, decoder):
    x = torch.zeros(1, 1, num_layers, 8, 8)
    with pytest.raises(ValueError, match=f"has {num_layers} layers; this network was made for 10"):
        collapsed(num_layers=10, decoder=decoder)(x, torch.tensor([0]))


@pytest.mark.parametrize("decoder", ["2d", "3d"])
@pytest.mark.parametrize("collapse", COLLAPSES)
def test_maps_have_the_size_of_the_volume(collapse, decoder):
    model = collapsed(12, collapse, decoder).eval()
    tasks = torch.tensor([0, 1])
    for size in [(8, 12), (5, 9), (1, 1)]:
        x = torch.randn(2, 1, 12, *size)
        with torch.no_grad():
            padded = model(pad_to_multiple(x, 4), tasks)
            actual = model(x, tasks)
        assert actual.shape == (2, 1, *size)
        assert torch.equal(actual, padded[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("decoder", ["2d", "3d"])
@pytest.mark.parametrize("collapse", COLLAPSES)
def test_samples_of_a_batch_do_not_hear_each_other(collapse, decoder):
    torch.manual_seed(0)
    model = collapsed(10, collapse, decoder).double().eval()
    x, tasks = torch.randn(2, 1, 10, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    with torch.no_grad():
        alone = torch.cat([model(x[n : n + 1], tasks[n : n + 1]) for n in range(2)])
        torch.testing.assert_close(model(x, tasks), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decoder", ["2d", "3d"])
@pytest.mark.parametrize("collapse", COLLAPSES)
def test_every_layer_and_parameter_matters(collapse, decoder):
    torch.manual_seed(3)
    model = collapsed(10, collapse, decoder)
    x = torch.randn(2, 1, 10, 16, 16, requires_grad=True)
    model(x, torch.tensor([0, 1])).square().sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("collapse", ["mean", "max"])
def test_3d_decoder_collapses_the_output_of_the_unet(collapse):
    model = collapsed(10, collapse, decoder="3d").double().eval()
    unet = RepModeUNet(num_tasks=2, base_channels=2, num_stages=2).double().eval()
    unet.load_state_dict(model.state_dict())
    x, tasks = torch.randn(2, 1, 10, 7, 9, dtype=torch.float64), torch.tensor([1, 0])
    with torch.no_grad():
        volume = unet(x, tasks)
        expected = volume.mean(2) if collapse == "mean" else volume.max(2).values
        torch.testing.assert_close(model(x, tasks), expected, rtol=1e-10, atol=1e-10)


def test_parameters_keep_the_names_and_shapes_of_stored_checkpoints():
    state = collapsed(10).state_dict()
    names = {name.split(".")[1] for name in state}
    assert names == {"encoder", "collapses", "decoder", "head"}
    shapes = {name: tuple(v.shape) for name, v in state.items() if "collapses" in name}
    assert shapes == {
        f"network.collapses.{stage}.conv.{kind}": shape
        for stage, (width, layers) in enumerate([(2, 12), (4, 6), (8, 3)])
        for kind, shape in [("weight", (width, layers, 3, 3)), ("bias", (width,))]
    }
