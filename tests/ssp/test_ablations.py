"""Each variant of RepMode trains, and differs from RepMode in what its name says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.mode import REPMODE, MoDE
from ssp.ablations import FIGURE4, ORIGINAL, TABLE2
from ssp.networks.registry import build_network, for_task
from tests.ssp.networks import SMALL, network, volumes

BACKBONE = replace(SMALL, num_stages=1)
X, TASKS = volumes(2, 1, 4, 6, 6), torch.tensor([0, 1])


def small(config):
    return network(replace(config, backbone=BACKBONE))


def blocks(model) -> dict[str, MoDE]:
    return {key: m for key, m in model.named_modules() if isinstance(m, MoDE)}


def experts(name: str) -> list[tuple[str, int]]:
    """Return kind and size of the experts of a row, the same in all blocks of its network."""
    found = {
        tuple((e.kind, e.size) for e in b.experts) for b in blocks(small(TABLE2[name])).values()
    }
    assert len(found) == 1
    return list(*found)


def merged(name: str) -> torch.Tensor:
    """Return the merged kernel of a row's first block."""
    return next(iter(blocks(small(TABLE2[name])).values())).merged_kernel(0)


def test_there_are_the_rows_of_the_paper():
    assert len(TABLE2) == 14
    assert len(FIGURE4) == 3
    configs = [ORIGINAL, *TABLE2.values(), *FIGURE4.values()]
    assert all(a != b for n, a in enumerate(configs) for b in configs[:n])
    assert ORIGINAL.mixture == REPMODE


@pytest.mark.parametrize("name", [*TABLE2, *FIGURE4])
def test_a_step_is_trained_and_changes_every_expert(name):
    model = small({**TABLE2, **FIGURE4}[name]).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = (model(X, TASKS) - X).square().mean()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert all("kernels" not in key for key in still) or name == "sparse routing"


@pytest.mark.parametrize(
    ("name", "half"), [("only in Dec.", "decoder"), ("only in Enc.", "encoder")]
)
def test_scope_is_one_half_of_the_network(name, half):
    model = small(TABLE2[name])
    in_half = {key for key in blocks(model) if key.startswith((f"network.{half}", "network.head"))}
    assert blocks(model).keys() == in_half
    assert len(in_half) == (3 if half == "decoder" else 4)  # with the head, with the bottleneck
    others = {m.kernel_size for m in model.modules() if type(m).__name__ == "PlainConv"}
    assert others == {(3, 3, 3)}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("w/o 1x1x1 expert pair", ["c5", "c3", "a3", "a5"]),
        ("w/o 3x3x3 expert pair", ["c5", "c1", "a5"]),
        ("w/o 5x5x5 expert pair", ["c3", "c1", "a3"]),
        ("w/o Conv expert", ["a3", "a5"]),
        ("w/o Avgp-Conv expert", ["c5", "c3", "c1"]),
        ("w/o Avgp", ["c5", "c3", "c1", "c1", "c1"]),
        ("all use Avgp 3x3x3", ["c5", "c3", "c1", "a3", "a3"]),
        ("all use Avgp 5x5x5", ["c5", "c3", "c1", "a5", "a5"]),
    ],
)
def test_experts_are_those_that_the_row_leaves(name, left):
    assert [f"{kind[0]}{size}" for kind, size in experts(name)] == left
    assert TABLE2[name].mixture.gate == REPMODE.gate
    assert merged(name).shape[2:] == (max(int(expert[1]) for expert in left),) * 3


def test_what_is_averaged_shows_in_the_merged_kernel():
    def is_flat(kernel, size):
        """Tell whether a shell of a kernel, 3 or 5 wide, has one weight per channel pair."""
        a, b = (5 - size) // 2, (5 + size) // 2
        shell = [kernel[..., a, a, a], kernel[..., a, 2, b - 1], kernel[..., 2, b - 1, 2]]
        return all(torch.allclose(shell[0], other, atol=1e-7) for other in shell)

    assert is_flat(merged("w/o Conv expert"), 5)
    assert is_flat(merged("w/o Conv expert"), 3)
    assert not is_flat(merged("w/o Avgp"), 5)


def test_gaussian_codes_are_fixed_and_stored():
    model = small(TABLE2["use Gauss. task embedding"])
    codes = [block.gate.codes for block in blocks(model).values()]
    assert all(code.shape == (3, 3) and not code.requires_grad for code in codes)
    assert sum(key.endswith("gate.codes") for key in model.state_dict()) == len(codes)
    assert blocks(small(ORIGINAL))["network.head"].gate.codes is None


def test_the_two_layer_gate_has_six_hidden_units():
    for block in blocks(small(TABLE2["use two-layer FCN"])).values():
        assert tuple(block.gate.hidden[0].weight.shape) == (6, 3)
        assert isinstance(block.gate.hidden[1], torch.nn.ReLU)


def test_sigmoid_gates_do_not_sum_to_one_and_softmax_gates_do():
    for config, is_one in ((TABLE2["use Sigmoid activation"], False), (ORIGINAL, True)):
        gates_EO = blocks(small(config))["network.head"].gate.of_task(0)
        assert torch.allclose(gates_EO.sum(0), torch.ones(1)) == is_one


def test_input_dependent_gating_is_blind_to_the_task():
    model = small(TABLE2["Input-dep. gating"]).eval()
    with torch.no_grad():
        assert torch.equal(model(X, TASKS), model(X, TASKS.flip(0)))
        original = small(ORIGINAL).eval()
        assert not torch.equal(original(X, TASKS), original(X, TASKS.flip(0)))


def test_complete_utilisation_is_gatrep_and_sparse_routing_is_another_function():
    torch.manual_seed(2)
    models = {name: small(config).eval() for name, config in FIGURE4.items()}
    with torch.no_grad():
        for block in blocks(models["GatRep"]).values():
            block.gate.linear.weight.normal_()
        for model in models.values():
            model.load_state_dict(models["GatRep"].state_dict())
        out = {name: model(X, TASKS) for name, model in models.items()}
        torch.testing.assert_close(out["GatRep"], out["complete utilization"], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(out["GatRep"], out["sparse routing"], rtol=1e-2)
        sparse = for_task(models["sparse routing"], 1)(X[1:])
        torch.testing.assert_close(sparse, out["sparse routing"][1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"), [("w/o 5x5x5 expert pair", 22.7e6), ("w/o Conv expert", 3.9e6)]
)
def test_without_large_experts_the_network_is_small(name, parameters):
    with torch.device("meta"):
        model = build_network(TABLE2[name], 12)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(parameters, rel=0.1)
