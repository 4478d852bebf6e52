"""Which predictions of an image are averaged: Monte Carlo samples, views, further runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from core.samples import MemberConfig, check_distinct
from core.stochastic import draw_sample
from core.uncertainty import Member, View, make_members
from ssp.mapping import OneChannel
from ssp.model import CellModel, load_model
from ssp.networks.registry import for_task

_SAME = ("tasks", "voxel_size_um", "target", "num_layers")  # fields of a model


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained models and the ways they are asked.

    Its members are counted sample by sample; within a sample model by model, and for each model
    view by view.

    Attributes:
        config: The choices.
        models: The models, that of the run first; all see images alike.
    """

    config: MemberConfig
    models: tuple[CellModel, ...]

    @property
    def model(self) -> CellModel:
        """Return the model of the run, which says how images are seen."""
        return self.models[0]

    @cached_property
    def views(self) -> list[View]:
        """How each network looks at a tile."""
        return self.config.plane_views

    @property
    def num_members(self) -> int:
        """How many predictions are averaged."""
        return self.config.mc_samples * len(self.models) * len(self.views)

    @property
    def noise(self) -> Mapping[str, float]:
        """What samples are drawn with, by default as the first was trained; {} for no samples."""
        recipe = self.model.recipe
        return self.config.noise(recipe.network.backbone.dropout if recipe else 0.0)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that their predictions depend on."""
        settings = {
            "checkpoint_sha256": self.model.sha256,
            "mc_samples": self.config.mc_samples,
            **self.noise,
        }
        if len(self.models) > 1:
            settings["ensemble_sha256"] = [model.sha256 for model in self.models[1:]]
        if len(self.views) > 1:
            settings["tta_views"] = len(self.views)
        return settings

    def check_facts(self, tasks: Iterable[str]) -> None:
        """Refuse tasks whose intensities in training are not known, or differ between the runs.

        Raises:
            ValueError: If there is one.
        """
        for model in self.models:
            if unknown := [task for task in tasks if task not in model.facts]:
                raise ValueError(
                    f"{model.path} does not tell the intensities of {', '.join(unknown)} in "
                    "training; leave out --original-scale"
                )
            if other := [task for task in tasks if model.facts[task] != self.model.facts[task]]:
                raise ValueError(
                    f"{model.path} was trained on other intensities of {', '.join(other)} than "
                    f"{self.model.path}; leave out --original-scale"
                )

    def members(self, task: str, start: int, stop: int) -> list[Member]:
        """Return the members start..stop for a task: tiles (N, Z, Y, X) to (N, 1, *S)."""
        return make_members(
            range(start, stop), self.views, lambda number: OneChannel(self._network(number, task))
        )

    def _network(self, number: int, task: str) -> nn.Module:
        """Return the network of a task: for 2 models, numbers 0 1 2 3 ask models 0 1 0 1.

        With noise each number is a sample of its own.
        """
        model = self.models[number % len(self.models)]
        network, noise = model.network, self.noise
        if noise:
            network = draw_sample(
                network, int(noise["seed"]), number, noise["mc_dropout"], noise["gate_noise"]
            )
        return for_task(network, model.tasks.index(task))


def load_ensemble(run: Path, config: MemberConfig) -> Ensemble:
    """Return the model of a run together with those of `config`.

    Raises:
        FileNotFoundError: If a run does not exist or has no finished epoch yet.
        ValueError: If a checkpoint cannot be used, is given twice, sees images otherwise or has no
            mixtures to draw Monte Carlo samples from.
    """
    paths = (run, *config.ensemble)
    models = tuple(map(load_model, paths))
    check_distinct(paths, [model.sha256 for model in models])
    for path, model in zip(paths, models, strict=True):
        config.check_mixtures(path, model.network)
        pairs = {name: (getattr(model, name), getattr(models[0], name)) for name in _SAME}
        differences = [
            f"{name.replace('_', ' ')} {found} and not {wanted}"
            for name, (found, wanted) in pairs.items()
            if found != wanted
        ]
        if differences:
            raise ValueError(
                f"{path} has {', '.join(differences)} as {run} has; the runs of an ensemble must "
                "see images alike: leave it out or predict with it alone"
            )
    return Ensemble(config, models)
