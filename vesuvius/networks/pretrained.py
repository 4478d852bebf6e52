"""Encoders that were pretrained as masked autoencoders, given to networks to be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from core.checkpoint import WEIGHTS, load, load_weights
from core.config import to_dict
from core.provenance import file_hash
from core.run_folder import RunFolder
from core.terminal import note
from core.unet3d import Encoder, TaskConditioned
from vesuvius.folds import Piece, check_disjoint

if TYPE_CHECKING:
    from vesuvius.prepared import PreparedVolume
    from vesuvius.recipes import InkRecipe

AUTOENCODER = "masked-autoencoder"
MUST_AGREE = {
    "network": (
        "base_channels", "num_stages", "activation", "resample_activation", "largest_expert",
    ),
    "window": ("num_layers", "intensity", "percentiles"),
}  # fmt: skip
_PREFIX = "network.encoder."
_GATE = "gate.linear.weight"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained autoencoder, read from its checkpoint.

    Attributes:
        path: The checkpoint.
        sha256: Hash of that file.
        tensors: Its weights.
        description: What the run says about itself.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def load_into(self, network: TaskConditioned, recipe: InkRecipe) -> None:
        """Give the encoder of a network the pretrained weights.

        Pretraining has one task, and every task of the network starts from its gates.

        Raises:
            ValueError: If the recipe's encoder or what it sees is another.
        """
        encoder = encoder_of(network)
        self._check_agrees(to_dict(recipe))
        num_tasks = network.num_tasks
        weights = {
            name.removeprefix(_PREFIX): tensor.repeat(1, num_tasks)
            if name.endswith(_GATE)
            else tensor
            for name, tensor in self.tensors.items()
            if name.startswith(_PREFIX)
        }
        load_weights(encoder, weights, self.path)

    def _check_agrees(self, recipe: Mapping[str, Any]) -> None:
        for group, names in MUST_AGREE.items():
            for name in names:
                found, wanted = self.description["recipe"][group][name], recipe[group][name]
                if found != wanted:
                    raise ValueError(
                        f"{self.path} was pretrained with {group}.{name} {found!r}, this recipe "
                        f"has {wanted!r}; choose the same or pretrain again"
                    )


def open_pretrained(run: Path) -> Pretrained:
    """Return the best autoencoder of a run folder of `vesuvius pretrain`, or of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is damaged or of another kind of run.
    """
    path = RunFolder(run).best_path if run.is_dir() else run
    tensors, meta = load(path, WEIGHTS)
    found = meta["description"].get("model")
    if found != AUTOENCODER:
        raise ValueError(
            f"{path} holds a model of {found!r}; give a run of `vesuvius pretrain` as pretrained"
        )
    return Pretrained(path, file_hash(path), tensors, meta["description"])


def origin(
    pretrained: Pretrained | None,
    volumes: Mapping[str, PreparedVolume],
    pieces: Sequence[Piece],
    gap: int,
) -> dict[str, str]:
    """Return what the description of a run says of the weights that it starts from.

    Says so if pretraining saw, without its label, what the run is going to be scored on, or may
    have, in a fragment of the same name from other files.

    Args:
        pretrained: Where the encoder comes from; None for random weights, of which nothing is said.
        volumes: Of the run, by name.
        pieces: Of the run.
        gap: Least distance in pixels between what is learned from and what is scored.
    """
    if pretrained is None:
        return {}
    description = pretrained.description
    seen = [Piece(**piece) for piece in description["pieces"] if piece["role"] == "train"]
    scored = [piece for piece in pieces if piece.role == "validation"]
    other = {
        name
        for name, fingerprint in description["data"].items()
        if name in volumes and volumes[name].info["fingerprint"] != fingerprint
    }
    if names := sorted(other & {p.fragment for p in seen} & {p.fragment for p in scored}):
        note(
            f"pretraining saw fragments of the names {', '.join(names)} prepared from other files "
            "(without labels, or at another voxel size?); if they are the same, parts of what is "
            "scored now may have been seen; prepare once for both"
        )
    try:
        check_disjoint([*(p for p in seen if p.fragment not in other), *scored], gap)
    except ValueError as error:
        note(
            f"pretraining saw, though not its label, what is scored now: {error}; pretrain with "
            "the --validation options of the training for an honest score"
        )
    return {"pretrained_sha256": pretrained.sha256}


def encoder_of(network: TaskConditioned) -> Encoder:
    """Return the encoder of a network.

    Raises:
        ValueError: If it is none that can be pretrained.
    """
    encoder = network.network.encoder
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"the network has a {type(encoder).__name__}, only encoders of RepMode are pretrained; "
            "choose a recipe with one (for stack-2d there is --network.encoder-weights)"
        )
    return encoder
