"""Our networks are written as official checkpoints, or refused where the official one differs."""

from __future__ import annotations

import argparse

import pytest
import torch

from core.gates import GateConfig
from core.gatrep import REPMODE_EXPERTS, Expert
from core.mode import Mixture
from core.official import load_official_checkpoint, save_official_checkpoint
from core.unet3d import RepModeUNet

TASKS = ["dna", "tom20"]


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@pytest.fixture
def model():
    """A network with statistics and gates that matter."""
    torch.manual_seed(0)
    model = RepModeUNet(2, base_channels=2, dropout=0.1).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "gate" in name:
                value.normal_()
            elif value.ndim == 1 and "running_mean" not in name:
                value.uniform_(0.5, 1.5)
    return model


def test_what_is_written_is_read_back_bit_for_bit(model, tmp_path):
    save_official_checkpoint(model, TASKS, tmp_path / "model.p")
    loaded, names = load_official_checkpoint(tmp_path / "model.p")
    assert names == TASKS
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in found if not torch.equal(expected[name], found[name])] == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.p"]


def test_a_reference_checkpoint_is_written_as_it_was(sample_data, tmp_path):
    source = sample_data / "repmode_reference" / "repmode_mc2_3tasks.p"
    save_official_checkpoint(*load_official_checkpoint(source), tmp_path / "model.p")
    expected, found = read(source), read(tmp_path / "model.p")
    assert expected.keys() == found.keys()
    assert found["nn_module"] == expected["nn_module"]
    assert vars(expected["opts"]).items() <= vars(found["opts"]).items()
    expected, found = expected["nn_state"], found["nn_state"]
    assert expected.keys() == found.keys()
    assert [name for name in found if not torch.equal(expected[name], found[name])] == []


def test_pooling_kernels_are_averages(model, tmp_path):
    save_official_checkpoint(model, TASKS, tmp_path / "model.p")
    state = read(tmp_path / "model.p")["nn_state"]
    pools = {name: value for name, value in state.items() if name.endswith("_pool")}
    assert len(pools) == 2 * 19
    assert {tuple(value.shape) for value in pools.values()} == {(3, 3, 3), (5, 5, 5)}
    for value in pools.values():
        assert torch.equal(value, torch.ones_like(value).mul(1 / value.numel()))


def test_the_official_code_can_set_up_its_optimiser(model, tmp_path):
    save_official_checkpoint(model, TASKS, tmp_path / "model.p")
    content = read(tmp_path / "model.p")
    buffers = ("running_mean", "running_var", "num_batches_tracked", "_pool")
    weights = [v for name, v in content["nn_state"].items() if not name.endswith(buffers)]
    torch.optim.Adam(weights).load_state_dict(content["optimizer_state"])
    assert (content["count_iter"], content["count_epoch"]) == (0, 0)


def test_tasks_are_stored_in_the_order_the_official_code_sorts_them(model, tmp_path):
    save_official_checkpoint(model, TASKS[::-1], tmp_path / "model.p")
    loaded, names = load_official_checkpoint(tmp_path / "model.p")
    assert names == TASKS
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for task, name in enumerate(TASKS[::-1]):
            expected = model(x, torch.tensor([task]))
            found = loaded(x, torch.tensor([names.index(name)]))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        other = model(x, torch.tensor([0]))
    assert not torch.allclose(found, other)


AVERAGES_OF_3 = (*REPMODE_EXPERTS[:4], Expert("average", 3))
OTHERS = {
    "fewer stages": ({"num_stages": 3}, r"stages\.3.* missing"),
    "more stages": ({"num_stages": 5}, r"stages\.4.*officially missing"),
    "more input channels": ({"in_channels": 2}, r"kernels\.0 is \(2, 2, 5, 5, 5\), officially"),
    "more output channels": ({"out_channels": 2}, r"head\.kernels\.0"),
    "other activation": ({"activation": "mish"}, "Mish, officially a ReLU"),
    "activation with weights": ({"resample_activation": "flexible"}, "floor .* missing"),
    "fewer experts": ({"mixture": Mixture(REPMODE_EXPERTS[:3])}, r"kernels\.3 is missing"),
    "other averages": ({"mixture": Mixture(AVERAGES_OF_3)}, "average"),
    "sigmoid": ({"mixture": Mixture(gate=GateConfig(activation="sigmoid"))}, "sigmoid"),
    "gaussian code": ({"mixture": Mixture(gate=GateConfig(code="gaussian"))}, "codes"),
    "hidden layer": ({"mixture": Mixture(gate=GateConfig(hidden=6))}, "hidden"),
    "input gate": ({"mixture": Mixture(gate=GateConfig(sees="input"))}, "gate"),
    "sparse": ({"mixture": Mixture(computation="sparse")}, "best expert alone"),
    "plain decoder": ({"gated": "encoder"}, "decoder"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_network_the_official_one_cannot_be_is_refused(case, tmp_path):
    options, found = OTHERS[case]
    other = RepModeUNet(2, **{"base_channels": 2, **options})
    with pytest.raises(ValueError, match=f"cannot be written .*{found}") as error:
        save_official_checkpoint(other, TASKS, tmp_path / "model.p")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_how_the_sum_is_computed_does_not_matter(tmp_path):
    for computation in ("merged", "gated"):
        model = RepModeUNet(2, base_channels=2, mixture=Mixture(computation=computation))
        save_official_checkpoint(model, TASKS, tmp_path / "model.p")


@pytest.mark.parametrize("names", [[], ["dna"], ["dna", "dna"], ["dna", "a/b"], ["a", "b", "c"]])
def test_names_that_do_not_fit_are_refused(model, tmp_path, names):
    with pytest.raises(ValueError, match="do not fit 2 tasks"):
        save_official_checkpoint(model, names, tmp_path / "model.p")
