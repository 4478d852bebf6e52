"""RepMode for ink: a 3D encoder of task-gated experts, and a decoder in 2D or 3D."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from core.activations import ActivationName
from core.collapse import CollapseName
from core.gatrep import REPMODE_EXPERTS
from core.map_networks import CollapsedUNet, UNetThenCollapse, halvings
from core.mode import Mixture, MoDE
from core.unet3d import Parts, TaskConditioned, Upsampling


@dataclass(frozen=True)
class RepModeConfig:
    """Sizes and choices of the ink network.

    Args:
        base_channels: Width of the first stage; it doubles with each stage.
        num_stages: Number of halvings of the volume.
        activation: Activation of the MoDE blocks.
        resample_activation: Activation after the strided and transposed convolutions.
        largest_expert: Size of the largest experts: 5 for all five, 3 for those of 3 and 1, which
            need about a fifth of the multiplications.
        dropout: Probability of dropping an input element of a MoDE block in training, 0..1.
        decoder: "2d": every skip and the bottleneck are turned 2D and decoded in 2D; "3d": decoded
            in 3D, the output volume turned 2D at the end; about three times the multiplications.
        collapse: How what is turned 2D loses its Z.
        upsampling: How the 2D decoder doubles its maps.
        output_stride: Pixels for one value of the network: 1, or a power of 2 up to
            2**num_stages, interpolated to every pixel; finer features are left out.
    """

    base_channels: int = 16
    num_stages: int = 4
    activation: ActivationName = "mish"
    resample_activation: ActivationName = "funnel"
    largest_expert: Literal[3, 5] = 5
    dropout: float = 0.0
    decoder: Literal["2d", "3d"] = "2d"
    collapse: CollapseName = "z-as-channels"
    upsampling: Upsampling = "transposed"
    output_stride: int = 1

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.num_stages < 1:
            raise ValueError(
                f"base_channels {self.base_channels} and num_stages {self.num_stages} "
                "must be at least 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside 0..1; use 0 for none")
        halvings(self.output_stride, self.num_stages)

    @property
    def multiple(self) -> int:
        """Return the number that rows and columns are multiples of unless they are padded."""
        return 2**self.num_stages


def build(config: RepModeConfig, num_layers: int, num_tasks: int) -> TaskConditioned:
    """Return the ink network: volumes (N, 1, Z, Y, X) and tasks (N,) to logits (N, 1, Y, X).

    Args:
        config: Sizes and choices.
        num_layers: Z, the layers of the window.
        num_tasks: Number of tasks, at least 1.
    """
    make_conv = partial(MoDE, num_tasks=num_tasks, mixture=experts_up_to(config.largest_expert))
    choices = (config.activation, config.resample_activation, config.dropout)
    kind, num_axes = (CollapsedUNet, 2) if config.decoder == "2d" else (UNetThenCollapse, 3)
    network = kind(
        Parts(make_conv, 3, *choices),
        Parts(partial(make_conv, num_axes=num_axes), num_axes, *choices, config.upsampling),
        num_layers,
        config.base_channels,
        config.num_stages,
        collapse=config.collapse,
        output_stride=config.output_stride,
    )
    return TaskConditioned(network, num_tasks)


def experts_up_to(size: int) -> Mixture:
    """Return the mixture of those of RepMode's five experts that are not larger than `size`."""
    return Mixture(tuple(expert for expert in REPMODE_EXPERTS if expert.size <= size))
