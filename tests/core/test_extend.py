"""An extended network learns a new task and keeps its old ones bit for bit."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.checkpoint import load_weights
from core.deploy import specialize
from core.extend import count_extensions, extend, rebuild
from core.gates import GateConfig
from core.map_networks import CollapsedUNet
from core.mode import Mixture, MoDE
from core.training import TrainingConfig, Validation, fit
from core.unet3d import Parts, RepModeUNet, TaskConditioned

SHAPE = (1, 4, 6, 6)
OTHER_GATE = Mixture(gate=GateConfig(code="gaussian", hidden=3, activation="sigmoid"))


def flat_decoder(dropout: float = 0.0) -> TaskConditioned:
    """Return a network with maps, funnels and, if wanted, dropout."""
    choices = {"activation": "mish", "resample_activation": "funnel", "dropout": dropout}
    make_conv = partial(MoDE, num_tasks=2)
    network = CollapsedUNet(
        Parts(make_conv, 3, **choices),
        Parts(partial(make_conv, num_axes=2), 2, **choices),
        num_layers=4,
        base_channels=2,
        num_stages=1,
        collapse="attention",
    )
    return TaskConditioned(network, num_tasks=2)


small = partial(RepModeUNet, 2, base_channels=2, num_stages=1)
NETWORKS = {
    "3d decoder": small,
    "2d decoder": flat_decoder,
    "other gate": partial(small, mixture=OTHER_GATE),
    "sparse": partial(small, mixture=Mixture(computation="sparse")),
    "merged": partial(small, mixture=Mixture(computation="merged")),
    "gated encoder": partial(small, gated="encoder"),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@torch.no_grad()
def settled(model: TaskConditioned) -> TaskConditioned:
    """Give the gates and the batch normalisations values that matter."""
    for key, value in model.state_dict().items():
        if "gate." in key or "norm.bias" in key or "running_mean" in key:
            value.normal_()
        elif "norm.weight" in key or "running_var" in key:
            value.uniform_(0.5, 2)
    return model.eval()


def make(name: str) -> TaskConditioned:
    torch.manual_seed(2)
    return settled(NETWORKS[name]())


def volumes(num_samples: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_samples, *SHAPE, generator=generator).to(dtype)


def trained(model: TaskConditioned, task: int, num_steps: int = 3) -> TaskConditioned:
    """Return a copy after steps on one task that would move whatever could move."""
    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (model(volumes(2), torch.full((2,), task)) - 1).square().mean().backward()
        optimizer.step()
    return model.eval()


def outputs(model: TaskConditioned, num_tasks: int, is_training: bool = False) -> list[Tensor]:
    """Return the predictions for each of the first tasks, and for a batch that mixes them."""
    model = model.train(is_training)
    results = []
    for tasks in (*torch.eye(num_tasks).nonzero()[:, 1:].expand(-1, 2), torch.arange(num_tasks)):
        torch.manual_seed(8)  # of dropout
        with torch.set_grad_enabled(is_training):
            results.append(model(volumes(len(tasks)), tasks).detach())
    return results


def assert_all_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@every_network
def test_old_tasks_are_bit_identical_before_and_after_training(name):
    model = make(name)
    extended = extend(model)
    longer = trained(extended, task=2)
    assert_all_equal(outputs(extended, 2), outputs(model, 2))
    assert_all_equal(outputs(longer, 2), outputs(model, 2))
    assert_all_equal(outputs(longer, 2, True), outputs(extended, 2, True))
    new = [network.eval()(volumes(2), torch.tensor([2, 2])) for network in (extended, longer)]
    assert (new[0] - new[1]).abs().max() > 0.01


def test_old_tasks_run_the_very_gates_they_had():
    extended = extend(extend(make("3d decoder"))).train()
    blocks = [module for module in extended.modules() if isinstance(module, MoDE)]
    calls = []
    for block in blocks:
        block.gate.old.old.register_forward_hook(lambda *_: calls.append("first"))
        block.gate.old.register_forward_hook(lambda *_: calls.append("second"))
    extended(volumes(2), torch.tensor([1, 0]))
    assert calls == ["first", "second"] * len(blocks)
    calls.clear()
    extended(volumes(2), torch.tensor([1, 3]))
    assert calls == []


def test_training_mode_predicts_as_evaluation_does_and_keeps_dropout():
    extended = extend(make("merged"))
    x, tasks = volumes(2), torch.tensor([1, 2])
    torch.testing.assert_close(extended.train()(x, tasks), extended.eval()(x, tasks))
    torch.manual_seed(2)
    extended = extend(settled(flat_decoder(dropout=0.5)))
    assert_all_equal(outputs(trained(extended, 2), 2, True), outputs(extended, 2, True))
    assert not torch.equal(outputs(extended, 2, True)[0], outputs(extended, 2)[0])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "sparse"])
def test_only_new_experts_and_gates_learn(name):
    model = make(name)
    old = {key.replace(".gate.", ".gate.old."): v for key, v in model.state_dict().items()}
    extended = extend(model)
    longer = trained(extended, task=2)
    for key, value in longer.state_dict().items():
        if key in old:
            assert torch.equal(value, old[key]), key
        elif not key.endswith(".codes"):
            assert not torch.equal(value, extended.state_dict()[key]), key
    gradients = {key for key, p in longer.named_parameters() if p.grad is not None}
    assert gradients == {key for key, _ in longer.named_parameters() if key not in old}
    assert all(".kernels.5" in key or ".gate.new." in key for key in gradients)


def test_statistics_of_funnels_stay_too():
    longer = trained(extend(make("2d decoder")), task=2)
    norms = [m for m in longer.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)]
    assert len(norms) == 10  # three pairs of blocks, down, up, and the funnels of these two
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    longer.train()
    assert not any(norm.training for norm in norms)


def test_parameters_grow_by_one_expert_and_one_gate_per_mixture():
    def size(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    model = make("3d decoder")
    blocks = [m for m in model.modules() if isinstance(m, MoDE)]
    grown = 0
    for block in blocks:
        out_channels, in_channels = block.kernels[0].shape[:2]
        grown += out_channels * in_channels * 27 + 1 * 6 * out_channels + 6 * out_channels
    assert len(blocks) == 7
    extended = extend(model)
    assert size(extended) == size(model) + grown
    assert sum(p.numel() for p in extended.parameters() if p.requires_grad) == grown


def test_new_expert_and_gate_start_as_those_of_a_fresh_mixture():
    torch.manual_seed(0)
    block = extend(make("2d decoder")).network.decoder.stages[0].blocks[0].conv
    assert block.kernels[5].shape == (2, 4, 3, 3)
    bound = 1 / math.sqrt(4 * 9)
    assert 0.5 * bound < block.kernels[5].abs().max() <= bound
    assert 0.5 < block.gate.new.linear.weight.abs().max() <= 1
    assert block.gate.new.linear.weight.shape == (6 * 2, 1)
    other = extend(make("other gate")).network.head.gate
    assert other.new.config == other.old.config == OTHER_GATE.gate


@pytest.mark.parametrize("name", ["2d decoder", "other gate", "gated encoder"])
def test_several_extensions_in_a_row(name):
    model = make(name)
    for num_extensions in range(1, 4):
        expected = outputs(model, model.num_tasks)
        model = trained(extend(model), task=model.num_tasks)
        assert model.num_tasks == 2 + num_extensions
        assert count_extensions(model) == num_extensions
        assert_all_equal(outputs(model, model.num_tasks - 1), expected)
        assert all(len(m.experts) == 5 + num_extensions for m in model.modules() if type(m) is MoDE)


@pytest.mark.parametrize("name", ["3d decoder", "2d decoder", "other gate", "gated encoder"])
def test_specialised_equals_gated_for_old_and_new_tasks(name):
    model = trained(extend(trained(extend(make(name)), 2)), 3).double()
    x = volumes(2, torch.float64)
    for task in range(4):
        plain = specialize(model, task)
        kinds = {type(m).__name__ for m in plain.modules()}
        assert not any("BatchNorm" in kind or "MoDE" in kind for kind in kinds)
        with torch.no_grad():
            expected = model(x, torch.full((2,), task))
            torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10)


def test_specialised_new_task_can_be_exported():
    plain, x = specialize(trained(extend(make("3d decoder")), 2), 2), volumes(2)
    with torch.no_grad():
        program = torch.export.export(plain, (x,))
        torch.testing.assert_close(program.module()(x), plain(x))


@every_network
def test_mixed_batches_of_old_and_new_tasks_agree_with_separate_ones(name):
    model = trained(extend(extend(make(name))), 3).double()
    x, tasks = volumes(6, torch.float64), torch.tensor([3, 0, 2, 1, 3, 2])
    alone = torch.cat([model(x[n : n + 1], tasks[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(model(x, tasks), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("others", [[], [0, 1, 2]])
def test_gradients_do_not_depend_on_who_is_beside(others):
    model = extend(extend(make("3d decoder"))).double()
    x, tasks = volumes(1 + len(others), torch.float64), torch.tensor([3, *others])
    gradients = []
    for last in (1, len(x)):
        model.zero_grad()
        model(x[:last], tasks[:last])[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@every_network
def test_state_of_an_extended_network_loads_into_a_rebuilt_one(name):
    model = trained(extend(extend(make(name))), task=3)
    copied = rebuild(NETWORKS[name](), count_extensions(model))
    load_weights(copied, model.state_dict(), "here")
    assert_all_equal(outputs(copied, 4), outputs(model, 4))
    learning = [[p.requires_grad for p in m.parameters()] for m in (copied, model)]
    assert learning[0] == learning[1]


def test_rebuilding_without_extensions_gives_the_network():
    model = make("3d decoder")
    assert rebuild(model, 0) is model
    assert count_extensions(model) == 0


def test_extending_leaves_the_model_as_it_was():
    model = make("3d decoder").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained(extend(model), task=2)
    assert model.num_tasks == 2
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_half_precision_stays():
    extended = extend(make("3d decoder").to(torch.bfloat16))
    assert {p.dtype for p in extended.parameters()} == {torch.bfloat16}


class Patches:
    """A few volumes of the new task, whose target is their square."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        x = volumes(4)[key[1]]
        return {"x": x, "y": x.square(), "task": torch.tensor(2)}


def squared_error(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return (model(batch["x"], batch["task"]) - batch["y"]).square().mean(), {}


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_training_loop_learns_the_new_task_alone(tmp_path: Path, ema_decay):
    model = make("3d decoder")
    extended = extend(model)
    config = TrainingConfig(
        epochs=2,
        batch_size=2,
        learning_rate=0.05,
        warmup_epochs=0,
        ema_decay=ema_decay,
        weight_decay=0.5,
        clip_norm=1.0,
        precision="no",
    )
    kept: list[nn.Module] = []

    def validate(network: nn.Module) -> Validation:
        kept.append(copy.deepcopy(network))
        return Validation(score=float(len(kept)), metrics={}, previews={}, meta={})

    fit(extended, Patches(), squared_error, validate, config, tmp_path / "run", {})
    for network in (extended, kept[-1]):
        assert_all_equal(outputs(network, 2), outputs(model, 2))
    start = extend(model).eval()
    assert not torch.equal(outputs(extended, 3)[2], outputs(start, 3)[2])


def test_input_dependent_gates_are_refused():
    model = small(mixture=Mixture(gate=GateConfig(sees="input")))
    with pytest.raises(ValueError, match="has input-dependent gates, which know no tasks"):
        extend(model)


def test_network_without_mixtures_is_refused():
    plain = TaskConditioned(specialize(make("3d decoder"), 0), 2)
    with pytest.raises(ValueError, match="has no mixture of experts to extend"):
        extend(plain)


def test_unknown_tasks_are_refused():
    extended = extend(make("3d decoder"))
    with pytest.raises(ValueError, match=r"task 3 is out of range; .* knows tasks 0\.\.2"):
        extended(volumes(1), torch.tensor([3]))


def test_negative_number_of_extensions_is_refused():
    with pytest.raises(ValueError, match="number of extensions is -1; it is at least 0"):
        rebuild(make("3d decoder"), -1)
