"""Which Monte Carlo samples of a network are drawn, as options of a command."""

from __future__ import annotations

from dataclasses import dataclass

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
