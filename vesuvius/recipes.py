"""Recipes: each a function that returns the complete configuration of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from core.config import flat, to_dict
from core.losses import LossWeights, MapLoss
from core.training import TrainingConfig
from vesuvius.augment import SEED_AUGMENTATION, AugmentConfig
from vesuvius.label_care import LabelConfig
from vesuvius.networks.i3d import I3DConfig
from vesuvius.networks.registry import NetworkConfig
from vesuvius.networks.repmode import RepModeConfig
from vesuvius.networks.repmode_segformer import RepModeSegformerConfig
from vesuvius.networks.stack_2d import Stack2DConfig
from vesuvius.sampling import SamplingConfig
from vesuvius.statistics import Intensity
from vesuvius.tasks import TaskConfig


@dataclass(frozen=True)
class WindowConfig:
    """What the network sees of a volume.

    Args:
        num_layers: Layers of the window.
        z_start: First layer of the window; None centres it on each fragment's sheet.
        intensity: "zscore": mean 0 and standard deviation 1 inside the papyrus mask of each
            fragment; "raw": value / 255, which of layers of 16 bits is value / 65535;
            "percentile": 0..1 between two percentiles inside the mask, clipped to that.
        z_shift: Most layers by which a training patch's window is moved up or down at random.
        percentiles: Lower and upper percentile for "percentile", 0..100.
        reversed: Names of training fragments whose layers are read from the last to the first.
    """

    num_layers: int = 16
    z_start: int | None = None
    intensity: Intensity = "zscore"
    z_shift: int = 0
    percentiles: tuple[float, float] = (1.0, 99.0)
    reversed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_least("window", num_layers=(self.num_layers, 1), z_shift=(self.z_shift, 0))
        check_least("window", z_start=(self.z_start or 0, 0))
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"window.percentiles {self.percentiles} are not (lower, upper) within 0..100"
            )


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum of losses; a weight of 0 leaves one out.

    Args:
        dice_weight: Weight of Dice.
        bce_weight: Weight of the binary cross-entropy.
        focal_weight: Weight of the focal loss.
        mse_weight: Weight of the squared error of the probability.
        ssim_weight: Weight of 1 - structural similarity.
        smoothing: Label smoothing of the cross-entropy: labels 0 and 1 become s and 1 - s.
        focal_alpha: Weight of ink in the focal loss, 0..1; papyrus has the rest.
        focal_gamma: How far the focal loss looks away from easy pixels; 0 not at all.
    """

    dice_weight: float = 0.5
    bce_weight: float = 0.5
    focal_weight: float = 0.0
    mse_weight: float = 0.0
    ssim_weight: float = 0.0
    smoothing: float = 0.25
    focal_alpha: float = 0.3
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        self.make()

    def make(self) -> MapLoss:
        """Return the loss.

        Raises:
            ValueError: If a setting is out of range.
        """
        weights = LossWeights(
            self.dice_weight, self.bce_weight, self.focal_weight, self.mse_weight, self.ssim_weight
        )
        return MapLoss(weights, self.smoothing, self.focal_alpha, self.focal_gamma)


@dataclass(frozen=True)
class ValidationConfig:
    """What is held out of training, and how it is looked at.

    Args:
        fragment: Name of a fragment to hold out whole; None holds out an end of every fragment.
        fraction: Part of each fragment's papyrus held out when `fragment` is None.
        num_stripes: Cut into that many stripes of equal papyrus instead, of which one is held
            out: of `fragment` alone, or of every fragment if it is None; 2 are halves.
        stripe: Which of the stripes, counted from 0.
        gap: Pixels left out between training and validation pieces: a patch and its halo, which
            for a network trained on patches reaches no farther than a patch, at least.
        tile_size: Rows and columns of a prediction tile.
        stride: Step between prediction tiles, in pixels.
    """

    fragment: str | None = None
    fraction: float = 0.25
    gap: int = 128
    tile_size: int = 128
    stride: int = 96
    num_stripes: int = 0
    stripe: int = 0

    def __post_init__(self) -> None:
        check_least("validation", gap=(self.gap, 0), stride=(self.stride, 1))
        check_least("validation", num_stripes=(self.num_stripes, 0))
        if self.num_stripes == 1 or not 0 <= self.stripe < max(self.num_stripes, 1):
            raise ValueError(
                f"validation.stripe {self.stripe} of validation.num_stripes {self.num_stripes} "
                "cannot be held out; take 2 or more stripes and count them from 0"
            )
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"validation.fraction is {self.fraction}; allowed is above 0 and below 1"
            )
        if self.stride > self.tile_size:
            raise ValueError(
                f"validation.stride {self.stride} is above validation.tile_size {self.tile_size}; "
                "tiles must touch or overlap"
            )


def check_least(group: str, **values: tuple[int, int]) -> None:
    """Refuse numbers below their least value, given as name=(value, least).

    Raises:
        ValueError: Naming the number.
    """
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{group}.{name} is {value}; it is at least {least}")


@dataclass(frozen=True)
class InkRecipe:
    """Everything that decides what a training run does, but for where its data is."""

    network: NetworkConfig
    window: WindowConfig
    sampling: SamplingConfig
    augment: AugmentConfig
    loss: LossConfig
    validation: ValidationConfig
    training: TrainingConfig
    labels: LabelConfig = field(default_factory=LabelConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)


def buckets() -> InkRecipe:
    """Return the recipe that did best in the project this one grows from, for a 12 GB GPU.

    Patches of 64 x 64 x 64 from Canny edges, randomly translated, in 10 buckets of ink fraction,
    with void patches beside them; normalised; no augmentation; Mish, and Funnel after the strided
    and transposed convolutions.
    """
    return InkRecipe(
        network=RepModeConfig(
            base_channels=16, num_stages=4, activation="mish", resample_activation="funnel"
        ),
        window=WindowConfig(num_layers=64, intensity="zscore"),
        sampling=SamplingConfig(patch_size=64, num_buckets=10, bucket_cap=1000, num_void=5000),
        augment=NO_AUGMENTATION,
        loss=LossConfig(),
        validation=ValidationConfig(),
        training=TrainingConfig(
            epochs=19,
            batch_size=8,
            learning_rate=2e-5,
            warmup_epochs=9,
            clip_norm=3.0,
            num_workers=4,
            checkpoint_every_steps=500,
        ),
    )


def small() -> InkRecipe:
    """Return a recipe that two CPU cores train in minutes.

    Width 8, 16 layers, the experts of sizes 3 and 1, flips and quarter turns. In first trials on
    few patches the experts of size 5, and a loss that is mostly Dice, learned far more slowly.
    """
    return InkRecipe(
        network=RepModeConfig(
            base_channels=8,
            num_stages=3,
            activation="relu",
            resample_activation="relu",
            largest_expert=3,
        ),
        window=WindowConfig(num_layers=16, intensity="zscore"),
        sampling=SamplingConfig(patch_size=64, num_buckets=10, bucket_cap=30, num_void=150),
        augment=replace(NO_AUGMENTATION, flip=0.5, rotate90=0.5),
        loss=LossConfig(smoothing=0.05, dice_weight=0.25, bce_weight=0.75),
        validation=ValidationConfig(),
        training=TrainingConfig(
            epochs=7,
            batch_size=8,
            learning_rate=2e-3,
            warmup_epochs=0.5,
            clip_norm=3.0,
            ema_decay=0.98,
            precision="no",
        ),
    )


def repmode_buckets() -> InkRecipe:
    """Return "RepMode Buckets": normalised, bucket patches, no augmentation.

    Decoded in 3D, the output volume turned into a map at the end.
    """
    recipe = buckets()
    return replace(recipe, network=replace(recipe.network, decoder="3d"))


def repmode_buckets_v2() -> InkRecipe:
    """Return "RepMode Buckets v2": the same with dropout."""
    recipe = repmode_buckets()
    return replace(recipe, network=replace(recipe.network, dropout=0.2))


def repmode_2() -> InkRecipe:
    """Return "RepMode 2": normalised, patches at the edges of ink and void ones, augmentations."""
    return replace(repmode_buckets(), sampling=EDGES_AND_VOID, augment=SEED_AUGMENTATION)


def repmode_2d_module() -> InkRecipe:
    """Return "RepMode with 2D module": all raw data, not normalised, no dropout or augmentation."""
    recipe = repmode_buckets()
    return replace(recipe, window=replace(recipe.window, intensity="raw"), sampling=ALL_PAPYRUS)


def repmode_2d_decoder() -> InkRecipe:
    """Return "2D decoder 16xRepMode": a 2D decoder, not normalised, otherwise as "RepMode 2"."""
    recipe = repmode_2()
    return replace(
        recipe,
        network=replace(recipe.network, decoder="2d"),
        window=replace(recipe.window, intensity="raw"),
    )


def i3d() -> InkRecipe:
    """Return the inflated Inception network, headless, with the data of `repmode-buckets`."""
    return replace(repmode_buckets(), network=I3DConfig())


def stack_2d() -> InkRecipe:
    """Return a 2.5D network: 16 layers as the channels of a timm encoder, a 2D decoder."""
    return replace(repmode_segformer(), network=Stack2DConfig())


def repmode_segformer() -> InkRecipe:
    """Return RepMode's encoder over 16 layers, each feature turned 2D, and a SegFormer decoder.

    Around it what the public winners agree on, few layers in the middle of the sheet and average
    weights, and no augmentation: in short runs every change that was tried, flips as well, shifts
    along z and dropped layers, made it learn more slowly.
    """
    recipe = buckets()
    return replace(
        recipe,
        network=RepModeSegformerConfig(),
        window=replace(recipe.window, num_layers=16),
        loss=LossConfig(smoothing=0.1),
        training=replace(recipe.training, learning_rate=3e-4, warmup_epochs=1, ema_decay=0.99),
    )


NO_AUGMENTATION = AugmentConfig(
    flip=0.0, rotate90=0.0, brightness_contrast=0.0, noise=0.0, layer_dropout=0
)

EDGES_AND_VOID = SamplingConfig(patch_size=64, bucket_cap=0, num_edges=6000, num_void=3000)
ALL_PAPYRUS = SamplingConfig(patch_size=64, bucket_cap=0, num_raw=12000, num_void=0)

RECIPES: dict[str, Callable[[], InkRecipe]] = {
    "buckets": buckets,
    "small": small,
    "repmode-2d-module": repmode_2d_module,
    "repmode-2": repmode_2,
    "repmode-buckets": repmode_buckets,
    "repmode-buckets-v2": repmode_buckets_v2,
    "repmode-2d-decoder": repmode_2d_decoder,
    "i3d": i3d,
    "stack-2d": stack_2d,
    "repmode-segformer": repmode_segformer,
}


def nearest(recipe: InkRecipe) -> tuple[str, dict[str, Any]]:
    """Return the name of the recipe that one was made of, and the options that differ from it.

    That is the one from which the fewest options differ.
    """
    found = flat(to_dict(recipe))
    changes = {}
    for name, make in RECIPES.items():
        known = flat(to_dict(make()))
        changes[name] = {
            key: found.get(key)
            for key in dict.fromkeys([*known, *found])
            if key not in found or key not in known or found[key] != known[key]
        }
    name = min(changes, key=lambda name: len(changes[name]))
    return name, changes[name]
