"""What every ink network has in common, and what its options change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.activations import FlexibleReLU
from core.collapse import COLLAPSES
from core.deploy import specialize
from core.losses import MapLoss
from core.mode import MoDE
from core.stochastic import draw_sample, place
from core.torchvision_guard import ensure_torchvision
from core.unet3d import SubPixelConv
from tests.core.test_deploy import settled
from vesuvius.networks.i3d import I3DConfig, InceptionEncoder
from vesuvius.networks.registry import build_network, load_pretrained
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig
from vesuvius.recipes import stack_2d

ensure_torchvision()
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder  # noqa: E402
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder  # noqa: E402

NUM_LAYERS = 6
REPMODE = RepModeConfig(base_channels=1, num_stages=2, largest_expert=3)
I3D = I3DConfig(base_channels=2, decoder_channels=1)
STACK = Stack2DConfig(encoder="resnet10t", decoder_channels=1)
SEGFORMER = RepModeSegformerConfig(
    base_channels=2, num_stages=3, decoder_channels=1, largest_expert=3
)
UNET = replace(SEGFORMER, decoder="unet", output_stride=2)
CONFIGS = {"repmode": REPMODE, "i3d": I3D, "stack": STACK, "segformer": SEGFORMER, "unet": UNET}


def network(config, num_layers: int = NUM_LAYERS):
    torch.manual_seed(0)
    return build_network(config, num_layers, num_tasks=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_maps_volumes_of_any_size_to_logits(name):
    model = network(CONFIGS[name]).eval()
    x = torch.randn(2, 1, NUM_LAYERS, 37, 50)
    with torch.no_grad():
        out = model(x, torch.tensor([0, 1]))
        assert out.shape == (2, 1, 37, 50)
        single = model(x[1:], torch.tensor([1]))
    torch.testing.assert_close(out[1:], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_of_other_layers_is_refused(name):
    with pytest.raises(ValueError, match=r"7 layers; this network was made for 6"):
        network(CONFIGS[name])(torch.zeros(1, 1, 7, 32, 32), torch.tensor([0]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_specialised_network_equals_the_whole_one(name):
    model = settled(network(CONFIGS[name]), (1, NUM_LAYERS, 64, 64)).double()
    plain = specialize(model, 1)
    x = torch.randn(2, 1, NUM_LAYERS, 40, 64).double()
    with torch.no_grad():
        expected = model(x, torch.tensor([1, 1]))
        torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 1e-6
    assert not any(isinstance(module, MoDE) for module in plain.modules())
    left = [
        name
        for name, m in plain.named_modules()
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) and not name.startswith("encoder.encoder")
    ]
    assert not left  # timm's, which have names of their own, stay


@pytest.mark.parametrize("name", CONFIGS)
def test_tasks_matter_to_networks_of_experts_alone(name):
    model = network(CONFIGS[name]).eval()
    x = torch.randn(1, 1, NUM_LAYERS, 32, 32)
    with torch.no_grad():
        first, second = (model(x, torch.tensor([task])) for task in (0, 1))
    assert torch.equal(first, second) == (name in ("i3d", "stack"))


@pytest.mark.parametrize("config", [I3D, SEGFORMER, REPMODE])
def test_every_collapse_makes_another_network(config):
    made = set()
    x = torch.rand(2, 1, NUM_LAYERS, 32, 32)
    for collapse in COLLAPSES:
        with torch.no_grad():
            model = network(replace(config, collapse=collapse)).train()
            made.add(tuple(model(x, torch.tensor([0, 1])).flatten().tolist()))
    assert len(made) == len(COLLAPSES)


@pytest.mark.parametrize(
    ("config", "changes", "kind"),
    [
        (REPMODE, {"upsampling": "sub-pixel"}, SubPixelConv),
        (I3D, {"upsampling": "sub-pixel"}, SubPixelConv),
        (I3D, {"activation": "mish"}, nn.Mish),
        (SEGFORMER, {"activation": "flexible"}, FlexibleReLU),
        (replace(SEGFORMER, activation="relu"), {"resample_activation": "mish"}, nn.Mish),
        (STACK, {"decoder": "segformer", "output_stride": 4}, SegformerDecoder),
        (UNET, {"decoder": "segformer", "output_stride": 4}, SegformerDecoder),
        (SEGFORMER, {"decoder": "unet"}, UnetDecoder),
    ],
)
def test_an_option_brings_its_module(config, changes, kind):
    assert kind not in map(type, network(config).modules())
    assert kind in map(type, network(replace(config, **changes)).modules())


@pytest.mark.parametrize(
    ("config", "strides"),
    [(REPMODE, (1, 2, 4)), (I3D, (1, 2, 8, 32)), (UNET, (1, 2, 4)),
     (STACK, (1, 4, 16))],
)  # fmt: skip
def test_output_stride_is_the_size_of_what_the_head_sees(config, strides):
    for stride in strides:
        model = network(replace(config, output_stride=stride)).eval()
        seen = []
        model.network.head.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        with torch.no_grad():
            out = model(torch.randn(1, 1, NUM_LAYERS, 64, 64), torch.tensor([0]))
        assert out.shape == (1, 1, 64, 64)
        assert seen[0].shape == (1, 1, 64 // stride, 64 // stride)


@pytest.mark.parametrize("config", [I3D, SEGFORMER, REPMODE])
def test_dropout_acts_in_training_alone(config):
    model = network(replace(config, dropout=0.5))
    x, task = torch.randn(2, 1, NUM_LAYERS, 32, 32), torch.tensor([0, 0])
    with torch.no_grad():
        assert not torch.equal(model.train()(x, task), model(x, task))
        assert torch.equal(model.eval()(x, task), model(x, task))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_learns_which_columns_have_ink(name):
    config = CONFIGS[name]
    wider = {"base_channels": 8, "decoder_channels": 4}
    config = replace(config, **{key: wider[key] for key in wider if hasattr(config, key)})
    model = network(config).train()
    label = torch.zeros(4, 1, 64, 64)
    for n in range(4):
        label[n, 0, 8 * n : 8 * n + 20, 10:50] = 1
    x = torch.randn(4, 1, NUM_LAYERS, 64, 64)
    x[:, :, 2:4] += 2 * label[:, :, None]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(40):
        loss, _ = MapLoss(smoothing=0.05)(model(x, torch.tensor([0, 1, 0, 1])), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_widths_are_scaled():
    sizes = []
    for config in (
        replace(I3D, base_channels=4), I3D, replace(I3D, base_channels=2, decoder_channels=2),
        replace(STACK, decoder_channels=2), STACK, replace(SEGFORMER, base_channels=4), SEGFORMER,
    ):  # fmt: skip
        sizes.append(sum(parameter.numel() for parameter in network(config).parameters()))
    assert sizes[0] > 2 * sizes[1] < 2 * sizes[2]
    assert sizes[2] > sizes[1]
    assert sizes[3] > sizes[4]
    assert sizes[5] > sizes[6]


def test_the_inception_encoder_has_the_parameters_of_the_published_one():
    # 12,697,264 of the colour network for 400 actions, less its head: 1024 x 400 + 400
    with torch.device("meta"):
        encoder = InceptionEncoder(64, "relu", 0.0, in_channels=3)
    assert sum(p.numel() for p in encoder.parameters()) == 12_697_264 - 410_000
    assert encoder.channels == (3, 64, 192, 480, 832, 1024)


def test_inception_features_have_the_strides_of_the_published_one():
    encoder = InceptionEncoder(1, "relu", 0.0).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 1, 16, 64, 96))
    assert [tuple(f.shape[2:]) for f in features] == [
        (16, 64, 96), (8, 32, 48), (8, 16, 24), (8, 8, 12), (4, 4, 6), (2, 2, 3),
    ]  # fmt: skip


def test_monte_carlo_samples_of_the_segformer_differ_and_can_be_specialised():
    model = network(SEGFORMER).eval()
    x, task = torch.randn(1, 1, NUM_LAYERS, 32, 32), torch.tensor([0])
    maps = []
    for index in (0, 0, 1):
        sample = draw_sample(model, seed=1, index=index, dropout=0.2, gate_noise=0.1)
        plain = specialize(sample, 0)
        for drawn in (sample, plain):
            place(drawn, [(0, 0)], (32, 32))
        with torch.no_grad():
            maps.append(plain(x))
            torch.testing.assert_close(sample(x, task), maps[-1], rtol=1e-4, atol=1e-5)
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    """Weights of the tiny encoder as timm publishes them, and the model they are of."""
    import timm

    torch.manual_seed(5)
    model = timm.create_model("resnet10t")
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_file(model.state_dict(), path)
    return str(path), model


def recipe_of(config):
    recipe = stack_2d()
    window = replace(recipe.window, num_layers=NUM_LAYERS)
    return replace(recipe, network=config, window=window)


def test_an_encoder_starts_from_a_file(encoder_file):
    path, source = encoder_file
    config = replace(STACK, encoder_weights=path)
    model = network(config)
    encoder = model.network.encoder.encoder.model
    before = encoder.layer4[0].conv1.weight.clone()
    load_pretrained(model, recipe_of(config))
    assert torch.equal(encoder.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    assert not torch.equal(encoder.layer4[0].conv1.weight, before)
    # grey images look to the first convolution as coloured ones do
    grey = torch.rand(1, 1, 8, 8)
    spread = encoder.conv1[0](grey.expand(-1, NUM_LAYERS, -1, -1))
    torch.testing.assert_close(spread, source.conv1[0](grey.expand(-1, 3, -1, -1)))


def test_files_that_do_not_fit_the_encoder_are_refused(encoder_file, tmp_path):
    def load(**changes):
        config = replace(STACK, **changes)
        load_pretrained(network(config), recipe_of(config))

    with pytest.raises(ValueError, match=r"are not those of resnet18 .*missing"):
        load(encoder="resnet18", encoder_weights=encoder_file[0])
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load(encoder_weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"bad\.safetensors are not those of resnet10t"):
        load(encoder_weights=str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (REPMODE, {"output_stride": 3}, "output_stride is 3; with 2 halvings it is one of 1, 2, 4"),
        (REPMODE, {"decoder": "3d", "upsampling": "sub-pixel"}, "'sub-pixel' is for maps"),
        (I3D, {"output_stride": 64}, "with 5 halvings it is one of 1, 2, 4, 8, 16, 32"),
        (I3D, {"dropout": 1.0}, "dropout 1.0 is outside 0..1"),
        (I3D, {"base_channels": 0}, "base_channels 0 and decoder_channels 1 must be at least 1"),
        (STACK, {"encoder": "resnett34"}, "'resnett34' is unknown to timm .*perhaps resnet34"),
        (STACK, {"encoder": "test_vit"}, "'test_vit' gives no features at strides"),
        (STACK, {"encoder_weights": "a.pth"}, "a.pth is no .safetensors file"),
        (STACK, {"output_stride": 32}, "with 4 halvings it is one of 1, 2, 4, 8, 16$"),
        (STACK, {"decoder_channels": 0}, "decoder_channels 0 must be at least 1"),
        (SEGFORMER, {"output_stride": 2}, "decoder 'segformer' has 4 alone"),
        (SEGFORMER, {"num_stages": 2}, "'segformer' needs 3 halvings or more, found 2"),
        (SEGFORMER, {"dropout": -0.1}, "dropout -0.1 is outside"),
        (SEGFORMER, {"decoder_channels": 0}, "decoder_channels 0 must be at least 1"),
    ],
)
def test_choices_that_do_not_fit_are_refused(config, changes, says):
    with pytest.raises(ValueError, match=says):
        network(replace(config, **changes))
