"""Recipes made small: what sets them apart stays, width and length of training are equal.

Every run sees as many pixels of papyrus, in as many steps of as many pixels, at the same learning
rate and with the same averaging of weights, and validates on the same pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.registry import NetworkConfig
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig
from vesuvius.recipes import InkRecipe, ValidationConfig
from vesuvius.sampling import COUNTS, SamplingConfig

NUM_STAGES = 3
STRIDE = 128  # px between prediction tiles, which then only touch: maps cost a quarter of the usual
WARMUP = 0.1  # of the training
SMALLEST_PATCH = 64  # px; the budget is counted in patches of this size


@dataclass(frozen=True)
class Budget:
    """What every run of a comparison may spend.

    Args:
        patches: Patches of 64 x 64 px that an epoch draws from each piece to train on; a quarter
            as many of 128 x 128 px.
        epochs: Epochs, each ending with a validation.
        width: Channels of the first stage; 2D encoders keep the width of their name.
        layers: Layers of the window.
        learning_rate: At its peak.
    """

    patches: int = 576
    epochs: int = 2
    width: int = 8
    layers: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("patches", "epochs", "width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"budget.{name} is {getattr(self, name)}; it is at least 1")


def miniature(recipe: InkRecipe, budget: Budget, seed: int) -> InkRecipe:
    """Return a recipe that trains within a budget.

    Args:
        recipe: Keeps its network's shape, data, normalisation, augmentation and loss.
        budget: What it may spend.
        seed: Of the training.
    """
    patch_size = recipe.sampling.patch_size
    patches_each = patch_size**2 // SMALLEST_PATCH**2  # of the size the budget is counted in
    return replace(
        recipe,
        network=narrow(recipe.network, budget.width),
        window=replace(recipe.window, num_layers=budget.layers),
        sampling=thin(recipe.sampling, budget.patches // patches_each),
        validation=ValidationConfig(gap=256, stride=STRIDE),
        training=replace(
            recipe.training,
            seed=seed,
            epochs=budget.epochs,
            batch_size=max(1, 8 // patches_each),
            learning_rate=budget.learning_rate,
            warmup_epochs=WARMUP * budget.epochs,
            ema_decay=0.98,
            precision="no",
            num_workers=0,
            checkpoint_every_steps=0,
        ),
    )


def narrow(network: NetworkConfig, width: int) -> NetworkConfig:
    """Return a network of the same shape with few channels, and with experts of sizes 3 and 1."""
    if isinstance(network, RepModeConfig | RepModeSegformerConfig):
        return replace(network, base_channels=width, num_stages=NUM_STAGES, largest_expert=3)
    if isinstance(network, I3DConfig):
        return replace(network, base_channels=2 * width, decoder_channels=width)
    assert isinstance(network, Stack2DConfig)
    return network


def thin(sampling: SamplingConfig, patches: int) -> SamplingConfig:
    """Return a sampling of about so many patches in all, of each kind its share."""
    share = patches / sampling.most_patches
    counts = {name: round(getattr(sampling, name) * share) for name in COUNTS}
    return replace(sampling, **counts, balance="none")
