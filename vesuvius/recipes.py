"""Recipes: each a function that returns the complete configuration of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.training import TrainingConfig
from vesuvius.augment import AugmentConfig
from vesuvius.label_care import LabelConfig
from vesuvius.networks.repmode import NetworkConfig
from vesuvius.sampling import SamplingConfig
from vesuvius.statistics import Intensity


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
    """Dice + soft binary cross-entropy.

    Args:
        smoothing: Label smoothing of the cross-entropy: labels 0 and 1 become s and 1 - s.
        dice_weight: Weight of Dice; the cross-entropy has the rest.
    """

    smoothing: float = 0.25
    dice_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"loss.smoothing is {self.smoothing}; allowed is 0 up to below 0.5")
        if not 0 <= self.dice_weight <= 1:
            raise ValueError(f"loss.dice_weight is {self.dice_weight}; allowed is 0..1")


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


def buckets() -> InkRecipe:
    """Return the recipe that did best in the project this one grows from, for a 12 GB GPU.

    Patches of 64 x 64 x 64 from Canny edges, randomly translated, in 10 buckets of ink fraction,
    with void patches beside them; normalised; no augmentation; Mish, and Funnel after the strided
    and transposed convolutions.
    """
    return InkRecipe(
        network=NetworkConfig(
            base_channels=16, num_stages=4, activation="mish", resample_activation="funnel"
        ),
        window=WindowConfig(num_layers=64, intensity="zscore"),
        sampling=SamplingConfig(patch_size=64, num_buckets=10, bucket_cap=1000, num_void=5000),
        augment=NO_AUGMENTATION,
        loss=LossConfig(smoothing=0.25, dice_weight=0.5),
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
        network=NetworkConfig(
            base_channels=8,
            num_stages=3,
            activation="relu",
            resample_activation="relu",
            largest_expert=3,
        ),
        window=WindowConfig(num_layers=16, intensity="zscore"),
        sampling=SamplingConfig(patch_size=64, num_buckets=10, bucket_cap=30, num_void=150),
        augment=replace(NO_AUGMENTATION, flip=0.5, rotate90=0.5),
        loss=LossConfig(smoothing=0.05, dice_weight=0.25),
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


NO_AUGMENTATION = AugmentConfig(
    flip=0.0, rotate90=0.0, brightness_contrast=0.0, noise=0.0, layer_dropout=0
)

RECIPES: dict[str, Callable[[], InkRecipe]] = {"buckets": buckets, "small": small}
