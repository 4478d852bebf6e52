"""One patch on its way through two networks: what decoding in 3D and in 2D makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.deploy import specialize
from core.map_networks import MapNetwork, UNetThenCollapse
from vesuvius.figure import check_target, write_figure
from vesuvius.folds import Piece, gap_between
from vesuvius.inkmap import InkProbability, Window, load_model, window_reader
from vesuvius.prepared import SUFFIX, LayersInnermost, PreparedVolume, open_prepared
from vesuvius.scored import run_description

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

KIND = "network"
NUM_SLICES = 5
LEAST_SIZE = 16


@dataclass(frozen=True, eq=False)
class Look:
    """What a run makes of a patch.

    Attributes:
        run: Its folder.
        sha256: Hash of its checkpoint.
        place: What the patch was in its training, in words.
        window: The layers it sees.
        tiles: The voxels, uint8 (Z, Y, X).
        prob: float32 (Y, X), 0..1.
        volume: The 3D decoder's output, float32 (Z', Y', X') by an output stride smaller than the
            patch; None without one.
    """

    run: Path
    sha256: str
    place: str
    window: Window
    tiles: np.ndarray
    prob: np.ndarray
    volume: np.ndarray | None


def network(
    run_3d: Path,
    run_2d: Path,
    /,
    data: Path,
    fragment: str,
    at: tuple[int, int],
    out: Path,
    size: int = 128,
) -> None:
    """Draw a patch on its way: layers of the input and of the 3D decoder's output, maps, label.

    The output volume of the 3D decoder is what its network turns into a map in its last step. Both
    predictions stand beside the label. Written beside the picture, as .json: what the networks saw
    and whether they were trained on it.

    Args:
        run_3d: Run of a network that decodes in 3D (recipe repmode-buckets, or --network.decoder
            3d).
        run_2d: Run of a network that decodes in 2D (recipe repmode-2d-decoder or small).
        data: Folder of prepared volumes.
        fragment: Name of a prepared volume in it.
        at: First row and column of the patch.
        out: The .png to write.
        size: Rows and columns of the patch.

    Raises:
        FileNotFoundError: If a run or the volume does not exist.
        ValueError: If a run has another decoder, the patch leaves the fragment, or `out` is another
            file.
    """
    check_target(out, KIND)
    volume = _open(data, fragment)
    piece = _patch(volume, at, size)
    first = _look(run_3d, volume, piece, UNetThenCollapse, "3d")
    second = _look(run_2d, volume, piece, MapNetwork, "2d")
    label = None if volume.ink_label is None else volume.ink_label[piece.slices]
    layers = _shown_layers(first)
    write_figure(out, KIND, _draw(first, second, label, piece, layers), {
        "fragment": fragment,
        "rows": [piece.y_start, piece.y_stop],
        "columns": [piece.x_start, piece.x_stop],
        "layers_shown": [_layer(first, index) for index in layers],
        "ink_share": None if label is None else float(label.mean()),
        "3d": _record(first),
        "2d": _record(second),
    })  # fmt: skip


def _open(data: Path, name: str) -> PreparedVolume:
    """Return a prepared volume of a folder by its name."""
    path = data / f"{name}{SUFFIX}"
    if not path.is_dir():
        there = sorted(other.stem for other in data.glob(f"[!.]*{SUFFIX}"))
        raise FileNotFoundError(
            f"{path} not found; {data} holds {', '.join(there) or 'no prepared volume'}: name one "
            "with --fragment, or make it with `vesuvius prepare`"
        )
    return open_prepared(path)


def _patch(volume: PreparedVolume, at: tuple[int, int], size: int) -> Piece:
    """Return the patch that begins at a row and column.

    Raises:
        ValueError: If it is too small, or not inside the fragment.
    """
    height, width = volume.papyrus_mask.shape
    if size < LEAST_SIZE:
        raise ValueError(f"--size {size} is below {LEAST_SIZE}; give more pixels")
    y, x = at
    if not (0 <= y <= height - size and 0 <= x <= width - size):
        raise ValueError(
            f"--at {y} {x} with --size {size} leaves {volume.name}, which is {height} x {width}; "
            f"allowed is up to {height - size} {width - size}, or a smaller --size"
        )
    return Piece(volume.name, y, y + size, x, x + size, "validation")


def _look(run: Path, volume: PreparedVolume, piece: Piece, kind: type, decoder: str) -> Look:
    """Return what a run makes of a patch.

    Raises:
        ValueError: If its network is not of this kind.
    """
    model, description = load_model(run), run_description(run)
    plain = specialize(model.network, model.tasks.gates_of(volume.name))
    if not isinstance(plain, kind):
        found = getattr(model.recipe.network, "decoder", type(model.recipe.network).__name__)
        raise ValueError(
            f"{run} has no {decoder} decoder but {found}; give the run with the 3d decoder first "
            "(--network.decoder 3d), then the one with the 2d decoder"
        )
    config = model.recipe.window
    window = Window.of(volume.statistics, config, volume.name in config.reversed)
    height = piece.y_stop - piece.y_start
    tiles = window_reader(LayersInnermost(volume.volume), window, piece)(0, height)
    decoded: list[torch.Tensor] = []
    if isinstance(plain, UNetThenCollapse):
        plain.collapse.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    with torch.no_grad():
        prob = InkProbability(plain, window)(torch.from_numpy(tiles)[None])[0, 0].numpy()
    voxels = decoded[0][0, 0].numpy() if decoded else None
    place = _place(description, volume, piece)
    return Look(run, model.sha256, place, window, tiles, prob, voxels)


def _place(description: dict[str, Any], volume: PreparedVolume, piece: Piece) -> str:
    """Return what a patch was in a training: trained on, held out or not seen."""
    if description["data"].get(volume.name) != volume.info["fingerprint"]:
        return "never seen in training"
    pieces = [Piece(**one) for one in description["pieces"]]
    own = [one for one in pieces if one.fragment == volume.name]
    roles = {one.role for one in own if gap_between(one, piece) < 0}
    if "train" in roles:
        return "trained on"
    return "held out of training" if roles else "beside the trained pieces"


def _shown_layers(look: Look) -> list[int]:
    """Return which layers of the 3D decoder's output are drawn, evenly over its depth."""
    assert look.volume is not None
    depth = len(look.volume)
    return sorted(set(np.linspace(0, depth - 1, NUM_SLICES).round().astype(int).tolist()))


def _seen(look: Look, index: int) -> int:
    """Return which layer of what the network sees an output layer lies on."""
    assert look.volume is not None
    return min(index * round(len(look.tiles) / len(look.volume)), len(look.tiles) - 1)


def _layer(look: Look, index: int) -> int:
    """Return which layer of the fragment an output layer lies on."""
    place = _seen(look, index)
    return (
        look.window.z_stop - 1 - place if look.window.is_reversed else look.window.z_start + place
    )


def _record(look: Look) -> dict[str, Any]:
    """Return what the .json says of a run."""
    volume = look.volume
    return {
        "run": str(look.run),
        "checkpoint_sha256": look.sha256,
        "patch_was": look.place,
        "layers": [look.window.z_start, look.window.z_stop],
        "mean_probability": float(look.prob.mean()),
        "output_volume": None if volume is None else list(volume.shape),
    }


def _draw(
    first: Look, second: Look, label: np.ndarray | None, piece: Piece, layers: list[int]
) -> Figure:
    """Return three rows: layers of the input, of the output volume, and the maps."""
    from matplotlib.figure import Figure

    assert first.volume is not None
    extent = (piece.x_start, piece.x_stop, piece.y_stop, piece.y_start)
    titles = [f"layer {_layer(first, index)}" for index in layers]
    plot = Figure(figsize=(13, 9.6), layout="constrained")
    rows = plot.subfigures(3, 1, hspace=0.03)
    shown = [first.tiles[_seen(first, index)] for index in layers]
    _draw_row(rows[0], "1. Input volume: layers of the scan", dict(zip(titles, shown, strict=True)),
              extent, "intensity (0..255)", "gray", *np.percentile(shown, (1, 99)))  # fmt: skip
    shown = [first.volume[index] for index in layers]
    limit = float(np.percentile(np.abs(shown), 99)) or 1.0
    name = "2. Output volume of the 3D decoder, whose layers its last step turns into one map"
    _draw_row(rows[1], name, dict(zip(titles, shown, strict=True)), extent,
              "output (no unit)", "PuOr_r", -limit, limit)  # fmt: skip
    maps = {
        f"from the 3D decoder's volume\n({first.run.name}: a place {first.place})": first.prob,
        f"of the 2D decoder\n({second.run.name}: a place {second.place})": second.prob,
    }
    if label is not None:
        maps["label: ink white\n"] = label.astype(np.float32)
    _draw_row(rows[2], "3. Predicted ink, and the label", maps, extent,
              "probability of ink", "gray", 0, 1)  # fmt: skip
    plot.suptitle(f"Fragment {piece.fragment}, one patch through two networks", fontsize=13)
    return plot


def _draw_row(
    row: SubFigure,
    title: str,
    pictures: dict[str, np.ndarray],
    extent: tuple[int, int, int, int],
    unit: str,
    cmap: str,
    low: float,
    high: float,
) -> None:
    """Draw pictures side by side on one scale, which stands at their right."""
    row.suptitle(title, fontsize=11, x=0.01, ha="left")
    columns = row.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (name, picture) in zip(columns, pictures.items(), strict=True):
        shown = axes.imshow(picture, cmap=cmap, vmin=low, vmax=high, extent=extent)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("x (px)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
    columns[0].set_ylabel("y (px)", fontsize=8)
    row.colorbar(shown, ax=columns, label=unit, shrink=0.9, pad=0.01)
