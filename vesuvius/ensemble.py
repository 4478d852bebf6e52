"""Which predictions are averaged: Monte Carlo samples, views, further runs, and all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from core.deploy import specialize
from core.mode import has_mixtures
from core.samples import DEFAULT_DROPOUT, SampleConfig
from core.stochastic import draw_sample
from core.terminal import note
from core.uncertainty import Member, View, plane_views
from vesuvius.inkmap import InkModel, InkProbability, Window, load_model


@dataclass(frozen=True)
class EnsembleConfig(SampleConfig):
    """Which predictions are averaged; by default there is one. More samples can be added later.

    Args:
        tta: Average the 8 flips and quarter turns of each tile.
        tta_reversed: Average each of them with its layers reversed too.
        ensemble: A further run or checkpoint, which sees the same window; repeat the option for
            each.
    """

    tta: bool = False
    tta_reversed: bool = False
    ensemble: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tta_reversed and not self.tta:
            raise ValueError("tta_reversed adds to the views of tta; give both")


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
        return plane_views(self.config.tta_reversed) if self.config.tta else [View()]

    @property
    def num_members(self) -> int:
        """How many predictions are averaged."""
        return self.config.mc_samples * len(self.models) * len(self.views)

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

        Raises:
            ValueError: If a model does not know the task.
        """
        networks: dict[int, nn.Module] = {}
        members = []
        for index in range(start, stop):
            number, view = divmod(index, len(self.views))
            if number not in networks:
                networks[number] = InkProbability(self._network(number, task), window)
            members.append(Member(networks[number], self.views[view]))
        return members

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
        if not self.config.tta:
            return "none"
        order = ", layers as stored and reversed" if self.config.tta_reversed else ""
        return f"{len(self.views)} views: flips and quarter turns of the plane{order}"

    def settings(self) -> dict[str, Any]:
        """Return all that the predictions depend on but how many samples there are."""
        settings: dict[str, Any] = {"checkpoint_sha256": self.models[0].sha256}
        if len(self.models) > 1:
            settings["ensemble_sha256"] = [model.sha256 for model in self.models[1:]]
        if self.config.tta:
            settings["tta_views"] = len(self.views)
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
    if config.mc_samples > 1:
        for path, model in zip(paths, models, strict=True):
            if not has_mixtures(model.network):
                raise ValueError(
                    f"mc_samples {config.mc_samples} would all be alike: {path} has no mixtures of "
                    "experts, before which dropout and in whose gates noise would act; leave it at "
                    "1, or use --tta or --ensemble"
                )
    first = _seen_by(models[0])
    for number, (path, model) in enumerate(zip(paths, models, strict=True)):
        if model.sha256 in [other.sha256 for other in models[:number]]:
            raise ValueError(f"{path} is part of the ensemble already; leave it out")
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
