"""The named recipes differ in what their descriptions say, and in nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.config import flat, from_dict, to_dict
from vesuvius.networks.registry import build_network
from vesuvius.recipes import NO_AUGMENTATION, RECIPES, InkRecipe, nearest


def differences(first: str, second: str) -> set[str]:
    """Return the settings in which two recipes differ."""
    a, b = (flat(to_dict(RECIPES[name]())) for name in (first, second))
    return {name for name in a | b if name not in a or name not in b or a[name] != b[name]}


@pytest.mark.parametrize(
    ("first", "second", "groups"),
    [
        ("buckets", "repmode-buckets", {"network.decoder"}),
        ("repmode-buckets", "repmode-buckets-v2", {"network.dropout"}),
        ("repmode-buckets", "repmode-2", {"sampling", "augment"}),
        ("repmode-buckets", "repmode-2d-module", {"window.intensity", "sampling"}),
        ("repmode-2", "repmode-2d-decoder", {"network.decoder", "window.intensity"}),
        ("repmode-buckets", "i3d", {"network"}),
        ("repmode-segformer", "stack-2d", {"network"}),
    ],
)
def test_recipes_differ_in_what_the_experiments_did(first, second, groups):
    found = differences(first, second)
    assert all(any(name.startswith(group) for name in found) for group in groups)
    assert all(any(name.startswith(group) for group in groups) for name in found)


def test_the_experiments_are_those_of_the_slides():
    recipes = {name: RECIPES[name]() for name in RECIPES if name.startswith("repmode-2")}
    module, two, decoder = (recipes[f"repmode-2{end}"] for end in ("d-module", "", "d-decoder"))
    assert (module.network.decoder, module.network.dropout) == ("3d", 0)
    assert module.augment == NO_AUGMENTATION
    assert (two.window.intensity, two.network.decoder) == ("zscore", "3d")
    assert (two.augment.flip, two.augment.brightness_contrast) == (0.5, 0.15)
    assert (decoder.window.intensity, decoder.network.base_channels) == ("raw", 16)
    assert RECIPES["repmode-buckets-v2"]().network.dropout == 0.2
    for recipe in recipes.values():
        assert recipe.network.collapse == "z-as-channels"
        assert (recipe.loss.smoothing, recipe.training.clip_norm) == (0.25, 3.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete_and_its_network_is_built(name):
    recipe = RECIPES[name]()
    assert RECIPES[name].__doc__.startswith("Return ")
    assert from_dict(InkRecipe, to_dict(recipe)) == recipe
    with torch.device("meta"):
        network = build_network(recipe.network, recipe.window.num_layers, num_tasks=1)
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000
    assert recipe.sampling.patch_size % recipe.network.multiple == 0
    assert recipe.validation.tile_size % recipe.network.multiple == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_nearest_to_itself_and_its_changes_are_named(name):
    recipe = RECIPES[name]()
    assert nearest(recipe) == (name, {})
    training = replace(recipe.training, epochs=recipe.training.epochs + 1, seed=5)
    assert nearest(replace(recipe, training=training)) == (
        name,
        {"training.epochs": training.epochs, "training.seed": 5},
    )
