"""The recipes are the paper's protocol."""

from __future__ import annotations

import pytest

from core.config import from_dict, to_dict
from core.schedule import learning_rate_factor
from ssp.networks.registry import METHODS
from ssp.recipes import PAPER, RECIPES, CellRecipe, PatchConfig


def test_every_method_has_the_protocol_of_the_paper():
    assert set(RECIPES) == set(METHODS)
    for name, recipe in RECIPES.items():
        assert recipe == CellRecipe(METHODS[name], PatchConfig((32, 128, 128), True, 20), PAPER)


def test_the_protocol_is_adam_at_a_constant_rate_for_a_thousand_passes():
    recipe = RECIPES["repmode"]
    assert recipe.training.epochs * recipe.patches.passes_per_epoch == 1000
    assert (recipe.training.batch_size, recipe.training.learning_rate) == (8, 1e-4)
    assert (PAPER.weight_decay, PAPER.clip_norm, PAPER.accumulate, PAPER.ema_decay) == (0, 0, 1, 0)
    start, final = PAPER.warmup_start_factor, PAPER.final_lr_factor
    assert {learning_rate_factor(step, 100, 0, start, final) for step in range(100)} == {1.0}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_dictionary(name):
    assert from_dict(CellRecipe, to_dict(RECIPES[name])) == RECIPES[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 8, 8)}, r"patches\.size \(0, 8, 8\) must be at least 1"),
        ({"passes_per_epoch": 0}, r"patches\.passes_per_epoch is 0"),
    ],
)
def test_patches_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PatchConfig(**options)
