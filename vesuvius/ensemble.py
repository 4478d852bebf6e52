"""Which predictions are averaged: Monte Carlo samples, views, further runs, and all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from core.deploy import specialize
from core.samples import DEFAULT_DROPOUT, MemberConfig, check_distinct
from core.stochastic import draw_sample
from core.terminal import note
from core.uncertainty import Member, View, make_members, with_reversed, with_shifts
from vesuvius.inkmap import InkModel, InkProbability, Window, load_model

NETWORKS_PER_PASS = 8  # in the memory of the device
MEMBERS_PER_PASS = 64  # each takes a channel of the rows in memory


@dataclass(frozen=True)
class EnsembleConfig(MemberConfig):
    """Which predictions are averaged; by default there is one. More samples can be added later.

    Args:
        tta_reversed: Average each view with its layers reversed too.
        tta_z_shift: Average each view with the window moved by 1 to so many layers up and down
            too, normalised alike.
    """

    tta_reversed: bool = False
    tta_z_shift: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tta_z_shift < 0:
            raise ValueError(f"tta_z_shift {self.tta_z_shift} is below 0; 0 moves nothing")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained models and the ways they are asked.

    Its members are counted sample by sample, so that more samples are more members at the end;
    within a sample model by model, and for each model view by view.

    Attributes:
        config: The choices.
        models: The models, that of the run first.
    """

    config: EnsembleConfig
    models: tuple[InkModel, ...]

    @cached_property
    def views(self) -> list[View]:
        """How each network looks at a tile."""
        views = self.config.plane_views
        if self.config.tta_reversed:
            views = with_reversed(views)
        if self.config.tta_z_shift:
            num_layers = self.models[0].recipe.window.num_layers
            views = with_shifts(views, self.config.tta_z_shift, num_layers)
        return views

    @property
    def num_members(self) -> int:
        """How many predictions are averaged."""
        return self.config.mc_samples * len(self.models) * len(self.views)

    @property
    def members_per_pass(self) -> int:
        """How many of them one pass over the fragment predicts at most: its memory is bounded."""
        return min(NETWORKS_PER_PASS * len(self.views), MEMBERS_PER_PASS)

    @property
    def threshold(self) -> float:
        """Probability from which a pixel is ink: the mean of the models' own."""
        return sum(model.threshold for model in self.models) / len(self.models)

    def check_tile(self, tile_size: int) -> None:
        """Refuse tiles so small that samples could not place their dropout in the field.

        Raises:
            ValueError: If a tile is at most half of what a network pads it to.
        """
        padded = max(model.recipe.network.multiple for model in self.models)
        if self.noise() and 2 * tile_size <= padded:
            raise ValueError(
                f"tile_size {tile_size} is at most half of the {padded} that the network pads it "
                f"to, too small for Monte Carlo samples; give at least {padded // 2 + 1}, or a "
                f"multiple of {padded}"
            )

    def note_gentle_samples(self) -> None:
        """Say so if samples drop little, for the network was trained without dropout."""
        is_chosen = self.config.mc_samples == 1 or self.config.mc_dropout is not None
        if not is_chosen and not _dropout_of(self.models[0]):
            note(
                "the model was trained without dropout, so its samples drop only "
                f"{DEFAULT_DROPOUT:g} of the inputs of a block; --mc-dropout sets another share"
            )

    def members(self, start: int, stop: int, task: str, window: Window) -> list[Member]:
        """Return the members start..stop for a task: uint8 tiles (N, Z, Y, X) to (N, 1, Y, X).

        Args:
            start: First member.
            stop: One past the last.
            task: Name of the task.
            window: What the models see; tiles have `tta_z_shift` more layers before and after it.

        Raises:
            ValueError: If a model does not know the task.
        """
        return make_members(
            range(start, stop),
            self.views,
            lambda number: InkProbability(self._network(number, task), window),
        )

    def _network(self, number: int, task: str) -> nn.Module:
        """Return the plain network of a task: for 2 models, numbers 0 1 2 3 ask models 0 1 0 1.

        With noise each number is a sample of its own.
        """
        model = self.models[number % len(self.models)]
        network = model.network
        noise = self.noise()
        if noise:
            network = draw_sample(
                network, noise["seed"], number, noise["mc_dropout"], noise["gate_noise"]
            )
        return specialize(network, model.tasks.gates(task))

    def noise(self) -> dict[str, Any]:
        """Return what the samples are drawn with, with all defaults filled in; {} for none."""
        return self.config.noise(_dropout_of(self.models[0]))

    def describe_views(self) -> str:
        """Return the views in words."""
        config, reach = self.config, self.config.tta_z_shift
        told = [
            "flips and quarter turns of the plane" if config.tta else "",
            "layers as stored and reversed" if config.tta_reversed else "",
            f"window moved by up to {reach} {'layers' if reach > 1 else 'layer'}" if reach else "",
        ]
        return f"{len(self.views)} views: {', '.join(filter(None, told))}" if any(told) else "none"

    def settings(self) -> dict[str, Any]:
        """Return all that the predictions depend on but how many samples there are."""
        settings: dict[str, Any] = {"checkpoint_sha256": self.models[0].sha256}
        if len(self.models) > 1:
            settings["ensemble_sha256"] = [model.sha256 for model in self.models[1:]]
        if len(self.views) > 1:
            settings["tta_views"] = len(self.views)
        if self.config.tta_z_shift:
            settings["tta_z_shift"] = self.config.tta_z_shift
        return settings | self.noise()


def load_ensemble(run: Path, config: EnsembleConfig) -> Ensemble:
    """Return the model of a run together with those of `config`.

    Raises:
        FileNotFoundError: If a run does not exist or has no checkpoint yet.
        ValueError: If a checkpoint cannot be used, is given twice, sees another window or has
            no mixtures to draw Monte Carlo samples from.
    """
    paths = (run, *config.ensemble)
    models = tuple(map(load_model, paths))
    check_distinct(paths, [model.sha256 for model in models])
    first = _seen_by(models[0])
    for path, model in zip(paths, models, strict=True):
        config.check_mixtures(path, model.network)
        seen = _seen_by(model)
        differences = [f"{name} {seen[name]} and not {first[name]}" for name in seen
                       if seen[name] != first[name]]  # fmt: skip
        if differences:
            raise ValueError(
                f"{path} sees {', '.join(differences)} as {run} does; the runs of an ensemble "
                "must see the same window: leave it out or predict it on its own"
            )
    return Ensemble(config, models)


def _dropout_of(model: InkModel) -> float:
    """Return the dropout that a model was trained with; 0 for a network that has no such option."""
    return float(getattr(model.recipe.network, "dropout", 0.0))


def _seen_by(model: InkModel) -> dict[str, Any]:
    """Return what a model sees of a fragment."""
    window = model.recipe.window
    return {
        "num_layers": window.num_layers,
        "z_start": window.z_start,
        "intensity": window.intensity,
        "percentiles": window.percentiles,
        "volumes of layers": model.num_layers,
    }
