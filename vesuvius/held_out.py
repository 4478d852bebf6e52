"""The held-out pieces of a run, mapped so that they can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.deploy import specialize
from core.inference import Journal, choose_device, stream
from core.terminal import progress
from core.tiling import TilePlan
from vesuvius.folds import Piece
from vesuvius.inkmap import (
    InkModel,
    Window,
    ink_predictor,
    load_model,
    window_reader,
)
from vesuvius.maps import MapFile
from vesuvius.prepared import SUFFIX, LayersInnermost, PreparedVolume, open_prepared
from vesuvius.scored import ScoredMap, Way, run_description

BATCH_SIZE = 8


def scored_held_out(run: Path, data: Path, out: Path) -> list[ScoredMap]:
    """Return the best model's maps of the pieces that its run held out.

    They are predicted as validation did, with the recipe's tiles, and kept: the same command again
    continues where it was stopped.

    Args:
        run: Run folder of `vesuvius train`.
        data: Folder of the prepared volumes that it was trained on.
        out: Folder for the maps.

    Raises:
        FileNotFoundError: If the run or a volume does not exist.
        ValueError: If a volume is not the one of the training, or has no label.
    """
    description = run_description(run)
    model = load_model(run)
    pieces = [Piece(**piece) for piece in description["pieces"]]
    held_out = [piece for piece in pieces if piece.role == "validation"]
    volumes = {
        piece.fragment: _open(data, piece.fragment, description["data"][piece.fragment])
        for piece in held_out
    }
    way = Way(model.sha256, f"model {model.sha256[:6]}, held-out pieces", 1)
    maps = _map_all(model, held_out, volumes, out / way.key[:16])
    return [
        ScoredMap(
            name=piece.fragment,
            source=run,
            way=way,
            threshold=model.threshold,
            threshold_saw_it=True,
            piece=piece,
            prob=prob,
            uncertainty=None,
            origin=(piece.y_start, piece.x_start),
            label=volumes[piece.fragment].ink_label[piece.slices],
            valid=volumes[piece.fragment].labelled_papyrus[piece.slices],
        )
        for piece, prob in zip(held_out, maps, strict=True)
    ]


def _open(data: Path, name: str, fingerprint: str) -> PreparedVolume:
    """Return a prepared volume, which must be the one that was trained on."""
    path = data / f"{name}{SUFFIX}"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} not found; give the --data of the training")
    volume = open_prepared(path)
    if volume.info["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} is not the volume of the training: what it was prepared from differs; give "
            "the --data of the training"
        )
    if volume.ink_label is None:
        raise ValueError(f"{path} has no ink label and cannot be scored; prepare it with its label")
    return volume


def _map_all(
    model: InkModel, pieces: Sequence[Piece], volumes: dict[str, PreparedVolume], folder: Path
) -> list[MapFile]:
    """Return a map of each piece, predicted now or found again."""
    tile, stride = model.recipe.validation.tile_size, model.recipe.validation.stride
    device = choose_device("auto")
    maps = []
    for number, piece in enumerate(pieces):
        path = folder / f"{number}-{piece.fragment}.tif"
        if path.exists():
            maps.append(MapFile(path))
            continue
        volume = volumes[piece.fragment]
        mask = volume.labelled_papyrus[piece.slices]
        config = model.recipe.window
        window = Window.of(volume.statistics, config, piece.fragment in config.reversed)
        plan = TilePlan(mask.shape, (tile, tile), (stride, stride))
        plain = specialize(model.network, model.tasks.gates_of(piece.fragment))
        identity = f"{model.sha256} {piece} {window} {tile} {stride} {device}"
        journal = Journal(path.with_name(f".{path.name}.journal"), identity)
        partial = path.with_name(f".{path.stem}.partial.tif")
        prob = MapFile.create_or_resume(partial, journal, mask.shape)
        with progress(str(piece), int(plan.wanted(mask).sum()), "tiles") as advance:
            stream(
                plan,
                window_reader(LayersInnermost(volume.volume), window, piece),
                ink_predictor(plain, window, device),
                prob.write,
                batch_size=BATCH_SIZE,
                mask=mask,
                journal=journal,
                advance=advance,
            )
        partial.replace(path)
        journal.remove()
        maps.append(MapFile(path))
    return maps
