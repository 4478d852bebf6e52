"""Small recipes: equal budgets, and what sets a recipe apart kept."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vesuvius.compare import COMPARED
from vesuvius.miniature import Budget, miniature
from vesuvius.networks.registry import build_network
from vesuvius.recipes import RECIPES, InkRecipe
from vesuvius.sampling import COUNTS

BUDGET = Budget(patches=320, epochs=5)


def small(name: str, seed: int = 0) -> InkRecipe:
    return miniature(RECIPES[name](), BUDGET, seed)


def num_patches(recipe: InkRecipe) -> int:
    """Patches an epoch draws from a piece where all of them are found."""
    sampling = recipe.sampling
    total = sum(getattr(sampling, name) for name in COUNTS)
    return total + (sampling.num_buckets - 1) * sampling.bucket_cap


@pytest.mark.parametrize("name", COMPARED)
def test_every_recipe_sees_the_same_pixels_in_the_same_steps(name):
    recipe = small(name)
    pixels = recipe.sampling.patch_size**2
    assert num_patches(recipe) * pixels == pytest.approx(320 * 64**2, rel=0.06)
    assert recipe.training.batch_size * pixels == 8 * 64**2
    assert recipe.training.epochs == 5
    assert recipe.window.num_layers == 16


@pytest.mark.parametrize("name", COMPARED)
def test_what_sets_a_recipe_apart_is_kept(name):
    full, recipe = RECIPES[name](), small(name)
    assert recipe.augment == full.augment
    assert recipe.loss == full.loss
    assert recipe.labels == full.labels
    assert recipe.window.intensity == full.window.intensity
    assert type(recipe.network) is type(full.network)
    narrowed = {"base_channels", "num_stages", "largest_expert", "decoder_channels"}
    for option in fields(full.network):
        if option.name not in narrowed:
            assert getattr(recipe.network, option.name) == getattr(full.network, option.name)
    kinds = [bool(getattr(full.sampling, count)) for count in COUNTS]
    assert [bool(getattr(recipe.sampling, count)) for count in COUNTS] == kinds
    assert build_network(recipe.network, recipe.window.num_layers, 1).num_tasks == 1


def test_all_but_network_data_and_loss_is_equal():
    trainings = {small(name).training for name in COMPARED}
    assert len({training.learning_rate for training in trainings}) == 1
    assert len({training.ema_decay for training in trainings}) == 1
    assert len({small(name).validation for name in COMPARED}) == 1
    assert small("i3d", seed=7).training.seed == 7


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"budget\.patches is 0; it is at least 1"):
        Budget(patches=0)
