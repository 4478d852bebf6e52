"""What each method says it does, against its formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.gatrep import TaskGroups
from ssp.networks.conditioning import PerTask, TaskLinear
from ssp.networks.condnet import ValuedConv
from ssp.networks.dodnet import DynamicHead
from ssp.networks.pipo_fan import AdaptiveFusion, PipoFanConfig, PyramidEncoder
from ssp.networks.registry import build_network, for_task
from ssp.networks.tgnet import GatedByTask, GuidedResidual
from ssp.networks.tsn import EqualizedLinear, Switch, TaskCode, instance_norm, pixel_norm
from ssp.train import cell_loss
from tests.ssp.networks import NUM_TASKS, SMALL, network, small, volumes

GROUPS = TaskGroups.of([2, 0, 2])


def gradients(name: str, task: int = 1, **changes) -> dict[str, torch.Tensor | None]:
    """Return the gradients of a batch of one task, by the names of the parameters."""
    model = network(small(name, **changes)).train()
    model(volumes(2, 1, 8, 8, 8), torch.tensor([task, task])).square().sum().backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def only_parts_of_tasks(name: str, **changes) -> set[str]:
    """Return the names of the modules that each task has of its own."""
    return {key.split(".by_task")[0] for key in gradients(name, **changes) if ".by_task" in key}


# --- one module for each task


def test_a_batch_runs_the_modules_of_its_own_tasks_on_their_samples():
    modules, seen = [nn.Conv3d(2, 1, 1) for _ in range(3)], {}
    for task, module in enumerate(modules):
        module.register_forward_pre_hook(lambda m, x, task=task: seen.update({task: x[0]}))
    x = volumes(3, 2, 2, 3, 4)
    out = PerTask(modules)(x, GROUPS)
    assert set(seen) == {0, 2}
    assert torch.equal(seen[2], x[[0, 2]])
    for n, task in enumerate(GROUPS.ids):
        torch.testing.assert_close(out[n : n + 1], modules[task](x[n : n + 1]))


def test_each_network_of_multi_net_is_trained_as_it_would_be_alone():
    def steps(model, tasks):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for seed, task in enumerate(tasks):
            x = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
            if task is not None:
                optimizer.zero_grad()
                model(x, torch.tensor([task, task])).square().mean().backward()
                optimizer.step()
        return model

    config = small("multi-net")
    together = network(config)
    alone = build_network(config, 1)
    alone.network.by_task[0].load_state_dict(together.network.by_task[2].state_dict())
    untouched = {k: v.clone() for k, v in together.network.by_task[1].state_dict().items()}
    steps(together, [2, 0, 0, 2, 0])
    steps(alone, [0, None, None, 0, None])
    trained = together.network.by_task[2].state_dict()
    expected = alone.network.by_task[0].state_dict()
    assert all(torch.equal(trained[key], value) for key, value in expected.items())
    for key, value in together.network.by_task[1].state_dict().items():
        assert torch.equal(value, untouched[key])


@pytest.mark.parametrize(
    ("name", "changes", "own"),
    [
        ("multi-net", {}, {"network"}),
        ("multi-head-dec", {}, {"network.decoder", "network.head"}),
        (
            "multi-head-dec",
            {"own": "bottleneck"},
            {"network.encoder.bottleneck", "network.decoder", "network.head"},
        ),
        ("multi-head-las", {}, {"network.head"}),
        ("condnet", {}, {"network.head"}),
        ("condnet", {"own_head": False}, set()),
        ("tsns", {}, {"network.network.head"}),
        ("tsns", {"own_head": False}, set()),
        ("pipo-fan", {}, {f"network.head.heads.{scale}" for scale in range(3)}),
        ("dodnet", {}, set()),
        ("tgnet-style", {}, set()),
        ("repmode", {}, set()),
    ],
)
def test_each_task_has_of_its_own_what_the_method_says(name, changes, own):
    assert only_parts_of_tasks(name, **changes) == own


# --- codes of the task


def test_a_task_linear_layer_sees_features_and_the_one_hot_code():
    layer, features = TaskLinear(4, 3, 5), volumes(3, 4)
    expected = torch.stack(
        [
            layer.linear(torch.cat([f, F.one_hot(torch.tensor(t), 3)]))
            for f, t in zip(features, GROUPS.ids, strict=True)
        ]
    )
    torch.testing.assert_close(layer(features, GROUPS), expected)
    torch.testing.assert_close(layer.plain(2)(features)[0], expected[0])


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [("dodnet", 1, 1), ("tgnet-style", 6, 1), ("tsns", 1, 20), ("repmode", 11, 1)],
)
def test_the_gradient_reaches_the_code_of_the_labelled_task_alone(name, layers, width):
    ends = {"tsns": "code.mapping.0.weight", "repmode": "gate.linear.weight"}
    by_linear = ("attention.linear.linear.weight", "controller.linear.weight")
    found = [
        grad for key, grad in gradients(name).items() if key.endswith(ends.get(name, by_linear))
    ]
    assert len(found) == layers
    for grad in found:
        by_task = grad[:, -3 * width :].unflatten(1, (3, width)).abs().amax((0, 2))
        assert by_task[1] > 0
        assert by_task[0] == by_task[2] == 0


# --- CondNet


def test_a_valued_convolution_sees_one_constant_channel_more():
    conv = ValuedConv(2, 4, [-1.0, 0.0, 1.0], SMALL.plain_conv(3))
    x = volumes(3, 2, 3, 4, 5)
    for n, task in enumerate(GROUPS.ids):
        constant = torch.full((1, 1, 3, 4, 5), float(task - 1))
        expected = F.conv3d(
            torch.cat([x[n : n + 1], constant], 1), conv.conv.weight, conv.conv.bias, padding=1
        )
        torch.testing.assert_close(conv(x, GROUPS)[n : n + 1], expected)
    torch.testing.assert_close(conv.plain(2)(x)[[0, 2]], conv(x, GROUPS)[[0, 2]])


def test_values_of_condnet_lie_evenly_and_reach_every_convolution_of_the_decoder():
    model = network(small("condnet", values=(0.0, 4.0), own_head=False))
    convs = {key: m for key, m in model.named_modules() if isinstance(m, ValuedConv)}
    assert all(conv.values == [0.0, 2.0, 4.0] for conv in convs.values())
    assert len(convs) == 2 * SMALL.num_stages + 1
    assert all("decoder" in key or "head" in key for key in convs)


# --- TSNs


def test_a_switch_normalises_scales_and_shifts():
    switch, x, code = (
        Switch(SMALL.plain_conv(3, size=1)(2, 4), 6, 4, dropout=0.0),
        volumes(2, 2, 3, 4, 5),
        volumes(2, 6),
    )
    weight, bias = switch.modulation.weight, switch.modulation.bias
    assert torch.equal(bias, torch.tensor([1.0] * 4 + [0.0] * 4))
    normed = nn.InstanceNorm3d(4)(switch.conv(x))
    scale, shift = (code @ weight[half].T + bias[half] for half in (slice(4), slice(4, 8)))
    expected = nn.LeakyReLU(0.01)(
        normed * scale[:, :, None, None, None] + shift[:, :, None, None, None]
    )
    torch.testing.assert_close(switch(x, None, code), expected, rtol=1e-4, atol=1e-5)


def test_the_normalisation_of_a_single_voxel_is_0():
    assert torch.equal(instance_norm(volumes(2, 3, 1, 1, 1)), torch.zeros(2, 3, 1, 1, 1))


def test_the_code_of_a_task_is_a_block_of_ones_mapped_by_eight_equalised_layers():
    code = TaskCode(3, ones_per_task=2)
    assert sum(isinstance(layer, EqualizedLinear) for layer in code.mapping) == 8
    x = torch.tensor([[0, 0, 0, 0, 1.0, 1.0]]) * 3**0.5  # with a mean square of 1
    torch.testing.assert_close(pixel_norm(x), x)
    for layer in code.mapping[::2]:
        x = F.leaky_relu(x @ layer.weight.T / 6**0.5 + layer.bias, 0.2)
    torch.testing.assert_close(code(GROUPS)[[0, 2]], x.expand(2, -1))
    torch.testing.assert_close(code.plain(2)(), x)
    assert network(small("tsns", ones_per_task=4)).network.task_code.length == 12


def test_switches_are_1_wide_on_the_encoders_features_and_3_wide_in_the_decoder():
    model = network(small("tsns"))
    sizes = {
        key: m.conv.kernel_size[0] for key, m in model.named_modules() if isinstance(m, Switch)
    }
    assert sorted(sizes.values()) == [1] * 3 + [3] * 4
    assert all((size == 1) == ("changes" in key) for key, size in sizes.items())


# --- PIPO-FAN


def test_the_pyramid_gives_every_stage_its_input_at_its_scale():
    encoder = PyramidEncoder(SMALL.parts(3), SMALL.widths).eval()
    assert [len(refine) for refine in encoder.refine] == [0, 1]
    seen = {}
    for key, module in {"stage": encoder.stages[1], "bottleneck": encoder.bottleneck}.items():
        module.register_forward_hook(lambda m, x, y, key=key: seen.update({key: x[0]}))
    x = volumes(1, 1, 8, 8, 8)
    with torch.no_grad():
        encoder(x)
        half, quarter = (encoder.stem(F.avg_pool3d(x, scale)) for scale in (2, 4))
        block = encoder.refine[1][0]
        torch.testing.assert_close(seen["stage"][:, -2:], half)
        torch.testing.assert_close(seen["bottleneck"][:, -2:], quarter + block.blocks(quarter))


def test_predictions_at_all_scales_are_weighed_to_one():
    fusion = AdaptiveFusion(SMALL.parts(3), SMALL, num_tasks=3).eval()
    assert [len(branch) - 1 for branch in fusion.branches] == [2, 1, 0]
    scales = [volumes(3, width, size, size, size) for width, size in ((8, 2), (4, 4), (2, 8))]
    with torch.no_grad():
        for heads in fusion.heads:
            for task, head in enumerate(heads.by_task):
                head.weight.zero_()
                head.bias.fill_(task)
        out = fusion(scales, GROUPS)
        torch.testing.assert_close(out.mean((1, 2, 3, 4)), torch.tensor([2.0, 0.0, 2.0]))
        for parameter in fusion.attention.parameters():
            parameter.zero_()
        for scale, heads in enumerate(fusion.heads):
            heads.by_task[2].bias.fill_(3.0 * scale)
        torch.testing.assert_close(fusion(scales, GROUPS)[0], torch.full((1, 8, 8, 8), 3.0))
        fusion.attention[0].weight.copy_(torch.eye(2))
        fusion.attention[2].weight.fill_(1e4)  # the scale of the largest mean and maximum alone
        best = [branch(f) for branch, f in zip(fusion.branches, scales, strict=True)]
        sums = torch.stack(
            [b.mean((2, 3, 4)).relu().sum(1) + b.amax((2, 3, 4)).relu().sum(1) for b in best]
        )
        torch.testing.assert_close(fusion(scales, GROUPS)[0, 0, 0, 0, 0], 3.0 * sums[:, 0].argmax())


def test_deep_supervision_compares_every_scale_with_the_target_in_training_alone():
    torch.manual_seed(0)
    model = build_network(PipoFanConfig(SMALL, deep_supervision=True), 3)
    plain = build_network(PipoFanConfig(SMALL), 3)
    plain.load_state_dict(model.state_dict())
    x, task = volumes(3, 1, 8, 8, 8), torch.tensor([2, 0, 2])
    shape = (3, 1, 8, 8, 8)
    batch = {"x": x, "task": task, "label": volumes(*shape), "valid": torch.ones(shape)}
    outputs = model(x, task)
    assert outputs.shape == (3, 1 + 3, 8, 8, 8)  # the weighed prediction, then three scales
    torch.testing.assert_close(outputs[:, :1], plain(x, task))
    losses = [(outputs[:, i : i + 1] - batch["label"]).square().mean() for i in range(4)]
    torch.testing.assert_close(cell_loss(model, batch)[0], torch.stack(losses).mean())
    torch.testing.assert_close(cell_loss(plain, batch)[0], losses[0])
    model.eval()
    assert model(x, task).shape == shape
    assert for_task(model, 1)(x).shape == shape


# --- DoDNet and TGNet-style


def test_the_dynamic_head_convolves_each_sample_with_kernels_of_its_own():
    head = DynamicHead(SMALL, num_tasks=3, channels=8)
    assert sum(head.sizes) == 153
    features, bottleneck = volumes(3, 2, 3, 4, 5), volumes(3, 8, 1, 2, 2)
    out = head((features, bottleneck), GROUPS)
    for n, task in enumerate(GROUPS.ids):
        code = F.one_hot(torch.tensor(task), 3)
        made = head.controller.linear(torch.cat([bottleneck[n].mean((1, 2, 3)), code]))
        x = F.conv3d(features[n : n + 1], head.reduce.weight, head.reduce.bias)
        x = F.relu(F.conv3d(x, made[:64].view(8, 8, 1, 1, 1), made[64:72]))
        x = F.relu(F.conv3d(x, made[72:136].view(8, 8, 1, 1, 1), made[136:144]))
        x = F.conv3d(x, made[144:152].view(1, 8, 1, 1, 1), made[152:])
        torch.testing.assert_close(out[n : n + 1], x, rtol=1e-4, atol=1e-5)


def test_the_controller_of_the_paper_maps_524_numbers_to_153():
    with torch.device("meta"):
        head = build_network(
            replace(small("dodnet"), backbone=replace(SMALL, base_channels=32, num_stages=4)), 12
        ).network.head
    assert tuple(head.controller.linear.weight.shape) == (153, 524)


@pytest.mark.parametrize("name", ["dodnet", "tgnet-style"])
def test_head_channels_are_those_of_the_dynamic_layers(name):
    head = network(small(name, head_channels=4)).network.head
    assert head.sizes == [16, 4, 16, 4, 4, 1]
    assert head.reduce.out_channels == 4


def test_tgnet_gates_the_residuals_of_all_stages_and_all_skips():
    model = network(small("tgnet-style")).eval()
    residuals = {k: m for k, m in model.named_modules() if isinstance(m, GuidedResidual)}
    gates = {k: m for k, m in model.named_modules() if isinstance(m, GatedByTask)}
    assert len(residuals) == SMALL.num_stages + 1
    assert all("encoder" in key for key in residuals)
    assert len(gates) == SMALL.num_stages
    assert all("decoder" in key for key in gates)
    x = volumes(3, 2, 3, 4, 5)
    residual, gate = (
        residuals["network.encoder.stages.0.blocks.1"],
        gates["network.decoder.decoder.changes.0"],
    )

    def weights(attention):
        code = F.one_hot(torch.tensor(GROUPS.ids), NUM_TASKS)
        logits = attention.linear.linear(torch.cat([x.mean((2, 3, 4)), code], 1))
        return torch.sigmoid(logits)[:, :, None, None, None]

    with torch.no_grad():
        expected = x + residual.residual(x) * weights(residual.attention)
        torch.testing.assert_close(residual(x, GROUPS), expected)
        torch.testing.assert_close(gate(x, GROUPS), x * weights(gate.attention))
