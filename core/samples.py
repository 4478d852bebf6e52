"""Which predictions are averaged: samples of a network, views, further runs; as options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core.mode import has_mixtures
from core.uncertainty import View, plane_views

DEFAULT_DROPOUT = 0.05  # of a network trained without, which more harms
DEFAULT_GATE_NOISE = 0.1
_OF_SAMPLES = ("mc_dropout", "gate_noise", "seed")


@dataclass(frozen=True)
class SampleConfig:
    """Monte Carlo samples; by default there is none but the network itself.

    Args:
        mc_samples: Networks with dropout before each MoDE block and noise on its gates in
            evaluation; 1 for the network as it was trained.
        mc_dropout: Probability of dropping an input element of a block; by default that of the
            training, or 0.05 if it had none, as more harms a network that never met dropout.
        gate_noise: Standard deviation of the noise on the logits of the gates, by default 0.1.
        seed: Of dropout and noise, by default 0.

    Raises:
        ValueError: If a number is out of range, or means nothing beside the others.
    """

    mc_samples: int = 1
    mc_dropout: float | None = None
    gate_noise: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.mc_samples < 1:
            raise ValueError(f"mc_samples {self.mc_samples} is below 1; 1 is the plain prediction")
        if not 0 <= (self.mc_dropout or 0) < 1:
            raise ValueError(f"mc_dropout {self.mc_dropout} is outside 0..1; give one below 1")
        if not 0 <= (self.gate_noise or 0) < float("inf"):
            raise ValueError(
                f"gate_noise {self.gate_noise} is no standard deviation; give 0 or more"
            )
        unused = [name for name, value in self._drawn_with().items() if value is not None]
        if self.mc_samples == 1 and unused:
            raise ValueError(
                f"{', '.join(unused)} means nothing for 1 sample; set mc_samples above 1"
            )
        if self.mc_samples > 1 and self.mc_dropout == 0 and self.gate_noise == 0:
            raise ValueError(
                f"mc_dropout 0 and gate_noise 0 make {self.mc_samples} samples alike; raise one "
                "of them or leave mc_samples at 1"
            )

    def noise(self, trained_with: float) -> dict[str, float]:
        """Return what the samples are drawn with, with all defaults filled in; {} for none.

        Args:
            trained_with: Dropout of the training, 0 for none.
        """
        if self.mc_samples == 1:
            return {}
        defaults = {
            "mc_dropout": trained_with or DEFAULT_DROPOUT,
            "gate_noise": DEFAULT_GATE_NOISE,
            "seed": 0,
        }
        given = {name: value for name, value in self._drawn_with().items() if value is not None}
        return defaults | given

    def _drawn_with(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in _OF_SAMPLES}


@dataclass(frozen=True)
class MemberConfig(SampleConfig):
    """Which predictions are averaged; by default there is one.

    Args:
        tta: Average the 8 flips and quarter turns of each tile.
        ensemble: A further run or checkpoint, which sees images alike; repeat the option for each.
    """

    tta: bool = False
    ensemble: tuple[Path, ...] = ()

    @property
    def plane_views(self) -> list[View]:
        """Return how each network looks at the plane of a tile."""
        return plane_views() if self.tta else [View()]

    def check_mixtures(self, path: Path, network: nn.Module) -> None:
        """Refuse samples of a network that has nothing to be drawn.

        Raises:
            ValueError: If samples are wanted of a network without mixtures.
        """
        if self.mc_samples > 1 and not has_mixtures(network):
            raise ValueError(
                f"mc_samples {self.mc_samples} would all be alike: {path} has no mixtures of "
                "experts, before which dropout and in whose gates noise would act; leave it at 1, "
                "or use --tta or --ensemble"
            )


def check_distinct(paths: Sequence[Path], hashes: Sequence[str]) -> None:
    """Refuse checkpoints that are given twice.

    Raises:
        ValueError: If one has the hash of one before it.
    """
    for number, (path, digest) in enumerate(zip(paths, hashes, strict=True)):
        if digest in hashes[:number]:
            raise ValueError(f"{path} is part of the ensemble already; leave it out")
