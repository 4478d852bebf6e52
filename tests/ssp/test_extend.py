"""One structure more for a trained run; those it knows are predicted as before, bit for bit."""

from __future__ import annotations

import pytest
import torch

from core.official import save_official_checkpoint
from core.unet3d import RepModeUNet
from ssp.extend import extend, official_recipe
from ssp.model import load_model
from ssp.train import train
from tests.ssp.cells import TASKS, prepared, tiny_recipe


@pytest.fixture(scope="module")
def new_data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("new"), tasks=("zo1",))


@pytest.fixture(scope="module")
def extended(run, new_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("extended") / "run"
    extend(run, data=new_data, task="zo1", out=out, epochs=1, learning_rate=0.1)
    return out


def predicted(model, task: str) -> torch.Tensor:
    x = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.network(x, torch.full((2,), model.tasks.index(task)))


def test_the_tasks_it_knew_are_predicted_bit_for_bit_as_before(run, extended):
    before, after = load_model(run), load_model(extended)
    assert after.tasks == (*TASKS, "zo1")
    for task in TASKS:
        assert torch.equal(predicted(before, task), predicted(after, task))


def test_the_new_task_learned_and_nothing_else_did(run, extended):
    before = load_model(run).network.state_dict()
    after = load_model(extended).network.state_dict()
    kept = [name for name in after if torch.equal(after[name], before.get(name, after[name]))]
    assert set(after) - set(before)
    assert set(kept) == set(after)  # what both have is the same
    names = [name for name in after if name not in before and ".gate.new." in name]
    assert names
    assert after[names[0]].abs().max() > 0.05  # at a rate of 0.1


def test_an_extended_run_is_one_like_any_other_and_can_be_extended(extended, new_data, tmp_path):
    model = load_model(extended)
    assert set(model.facts) == {*TASKS, "zo1"}
    assert model.recipe.training.epochs == 1
    data = prepared(tmp_path / "more", tasks=("golgi",))
    extend(extended, data=data, task="golgi", out=tmp_path / "run", epochs=1)
    twice = load_model(tmp_path / "run")
    assert (twice.tasks, twice.num_extensions) == ((*TASKS, "zo1", "golgi"), 2)
    assert torch.equal(predicted(model, "zo1"), predicted(twice, "zo1"))


def test_what_cannot_be_extended_is_refused(run, data, new_data, tmp_path):
    with pytest.raises(ValueError, match=r"knows dna already \(dna, tom20\)"):
        extend(run, data=data, task="dna", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"unknown task golgi; .* has zo1"):
        extend(run, data=new_data, task="golgi", out=tmp_path / "out")
    train(data, tmp_path / "plain", tiny_recipe("condnet", epochs=1))
    with pytest.raises(ValueError, match="no mixture of experts to extend"):
        extend(tmp_path / "plain", data=new_data, task="zo1", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_multi_head_network_keeps_what_it_had_and_learns_as_a_whole(data, new_data, tmp_path):
    train(data, tmp_path / "run", tiny_recipe("multi-head-dec", epochs=1))
    extend(tmp_path / "run", data=new_data, task="zo1", out=tmp_path / "more", learning_rate=1e-9)
    before, after = load_model(tmp_path / "run"), load_model(tmp_path / "more")
    assert (after.tasks, after.num_extensions) == ((*TASKS, "zo1"), 0)
    old, new = before.network.state_dict(), after.network.state_dict()
    assert {name.split("by_task.")[1][0] for name in set(new) - set(old)} == {"2"}
    for name, tensor in old.items():  # at so small a rate it is where it began
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.allclose(new[name], tensor, atol=1e-6), name
    extend(tmp_path / "run", data=new_data, task="zo1", out=tmp_path / "fast", learning_rate=0.1)
    learned = load_model(tmp_path / "fast").network.state_dict()
    assert not torch.equal(learned["network.encoder.bottleneck.0.conv.weight"],
                           old["network.encoder.bottleneck.0.conv.weight"])  # fmt: skip


def test_an_official_checkpoint_has_the_recipe_of_the_paper(tmp_path):
    network = RepModeUNet(2, base_channels=3)
    save_official_checkpoint(network, list(TASKS), tmp_path / "repmode.p")
    model = load_model(tmp_path / "repmode.p")
    recipe = official_recipe(model.network)
    assert recipe.network.backbone.base_channels == 3
    assert recipe.training.epochs * recipe.patches.passes_per_epoch == 1000
