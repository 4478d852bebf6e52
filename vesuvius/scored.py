"""Maps of ink probability together with their truth, from prediction folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import read_json
from core.provenance import file_hash
from vesuvius.folds import Piece
from vesuvius.fragment import Fragment, open_fragment
from vesuvius.maps import MapFile
from vesuvius.tasks import check_is_ink

Advance = Callable[[int], object]

BAND_ROWS = 256
OWN_TASK = "that of the fragment"
NOT_OF_THE_MODEL = {"input_fingerprint", "resampled_to_um", "batch_size", "device"}


@dataclass(frozen=True)
class Way:
    """What made a map; thresholds and temperatures are exchanged among maps made in one way.

    Attributes:
        key: Equal for maps made alike.
        title: The same in words.
        num_predictions: How many predictions each map is the mean of.
    """

    key: str
    title: str
    num_predictions: int


@dataclass(frozen=True)
class Band:
    """Some rows of a map with their truth.

    Attributes:
        rows: Which rows of the piece.
        prob: float32 (rows, X), 0..1; anything where not valid.
        label: bool (rows, X).
        valid: Which pixels count, bool (rows, X).
        uncertainty: float32 (3, rows, X), in the order of `UNCERTAINTIES`, or None.
    """

    rows: slice
    prob: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    uncertainty: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ScoredMap:
    """A map of a fragment, or of a piece of it, that can be scored.

    Attributes:
        name: Name of the fragment.
        source: What the user named.
        way: What made it.
        threshold: The model's own.
        threshold_saw_it: Whether that threshold was chosen on this very piece.
        piece: The rectangle of the fragment that is scored; None for the whole.
        prob: The file of the map.
        uncertainty: That of its uncertainties, or None.
        origin: Row and column of the fragment at which the files begin.
        label: bool (Y, X) of what is scored.
        valid: Labelled papyrus, bool (Y, X) of what is scored.
    """

    name: str
    source: Path
    way: Way
    threshold: float
    threshold_saw_it: bool
    piece: Piece | None
    prob: MapFile
    uncertainty: MapFile | None
    origin: tuple[int, int]
    label: np.ndarray
    valid: np.ndarray

    @property
    def title(self) -> str:
        """Name of the fragment and, of a piece, its rows and columns."""
        if self.piece is None:
            return self.name
        p = self.piece
        return f"{self.name} (rows {p.y_start}:{p.y_stop}, columns {p.x_start}:{p.x_stop})"

    def bands(self, advance: Advance | None = None) -> Iterator[Band]:
        """Yield the map from the top down, and tell `advance` how many rows are done."""
        for start in range(0, len(self.label), BAND_ROWS):
            stop = min(start + BAND_ROWS, len(self.label))
            yield self.band(start, stop)
            if advance is not None:
                advance(stop - start)

    def band(self, start: int, stop: int) -> Band:
        """Return the rows start..stop of the map."""
        rows = slice(start, stop)
        return Band(
            rows=rows,
            prob=self._read(self.prob, rows)[0],
            label=np.asarray(self.label[rows]),
            valid=np.asarray(self.valid[rows]),
            uncertainty=self._read(self.uncertainty, rows) if self.uncertainty else None,
        )

    def _read(self, file: MapFile, rows: slice) -> np.ndarray:
        """Return rows of what is scored, (C, rows, X)."""
        y, x = (self.piece.y_start, self.piece.x_start) if self.piece else (0, 0)
        down, right = y - self.origin[0], x - self.origin[1]
        values = file.read(rows.start + down, rows.stop + down)
        return values[:, :, right : right + self.label.shape[1]]


class Truths:
    """Finds the labelled fragment of each prediction.

    Args:
        given: Folders of labelled fragments, to be used for the predictions of their name.
    """

    def __init__(self, given: Sequence[Path]) -> None:
        self._by_name = {fragment.name: fragment for fragment in map(open_fragment, given)}
        self._unused = set(self._by_name)
        self._by_path: dict[str, Fragment] = {}

    def of(self, name: str, path: str, prediction: Path) -> Fragment:
        """Return the labelled fragment that was predicted.

        Raises:
            FileNotFoundError: If it is not where it was and none of its name was given.
            ValueError: If it has no label.
        """
        self._unused.discard(name)
        if name in self._by_name:
            found = self._by_name[name]
        elif not Path(path).exists():
            raise FileNotFoundError(
                f"{path}, which {prediction} predicts, is gone; name the labelled fragment "
                f"{name!r} with --truth"
            )
        else:
            found = self._opened(path)
        if found.ink_label is None:
            raise ValueError(
                f"{found.path} has no ink label, so {prediction} cannot be scored; name a folder "
                f"{name!r} that has one with --truth"
            )
        return found

    def _opened(self, path: str) -> Fragment:
        """Return a fragment, which is opened once however many predictions are of it."""
        if path not in self._by_path:
            self._by_path[path] = open_fragment(path)
        return self._by_path[path]

    def check_all_used(self) -> None:
        """Raise ValueError if a fragment was given that nothing predicts."""
        if self._unused:
            raise ValueError(
                f"--truth names {', '.join(sorted(self._unused))}, which no prediction is of; "
                "fragments are matched by the name of their folder"
            )


def scored_predictions(
    folder: Path, truths: Truths, held_out: Path | None = None
) -> list[ScoredMap]:
    """Return a prediction with its truth.

    Args:
        folder: Written by `vesuvius predict`.
        truths: Where the labels are.
        held_out: The run that predicted it; of fragments it was trained on only the pieces that it
            held out are scored.

    Raises:
        FileNotFoundError: If the prediction is unfinished, or its fragment or run is gone.
        ValueError: If prediction, label and run do not fit each other.
    """
    provenance = _provenance(folder)
    name = provenance["name"]
    fragment = truths.of(name, provenance["input"], folder)
    prob = MapFile(folder / "prob.tif")
    shape = fragment.papyrus_mask.shape
    if prob.shape != shape:
        raise ValueError(
            f"{prob.path} is {prob.shape} and the label of {fragment.path} is {shape} (Y, X); "
            "give the fragment that was predicted"
        )
    spread_path = folder / "uncertainty.tif"
    valid = fragment.labelled_papyrus
    pieces = [None] if held_out is None else _pieces(folder, held_out, provenance)
    return [
        ScoredMap(
            name=name,
            source=folder,
            way=_way(provenance),
            threshold=provenance["threshold"],
            threshold_saw_it=piece is not None,
            piece=piece,
            prob=prob,
            uncertainty=MapFile(spread_path) if spread_path.exists() else None,
            origin=(0, 0),
            label=fragment.ink_label[piece.slices if piece else ...],
            valid=valid[piece.slices if piece else ...],
        )
        for piece in pieces
    ]


def run_description(run: Path) -> dict[str, Any]:
    """Return what a run folder says that it trained.

    Raises:
        FileNotFoundError: If it is no run folder.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; give a run folder of `vesuvius train`")
    return read_json(path)["description"]


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what a finished prediction says about itself."""
    for filename in ("prob.tif", "provenance.json"):
        if not (folder / filename).is_file():
            raise FileNotFoundError(
                f"{folder / filename} not found: {folder} is no finished prediction; give the "
                "--out of `vesuvius predict`, or a run with --data"
            )
    provenance = read_json(folder / "provenance.json")
    missing = {"name", "input", "threshold", "settings"} - provenance.keys()
    if missing:
        raise ValueError(
            f"{folder / 'provenance.json'} lacks {', '.join(sorted(missing))}; predict writes it, "
            "run it again"
        )
    check_is_ink(folder, provenance)
    return provenance


def _way(provenance: dict[str, Any]) -> Way:
    """Return what made a prediction."""
    settings = provenance["settings"]
    number = provenance.get("num_predictions", 1)
    of_model = {key: value for key, value in settings.items() if key not in NOT_OF_THE_MODEL}
    if provenance.get("is_own_task"):  # each fragment by its own, of one model: one way
        of_model["task"] = OWN_TASK
    mean = f"mean of {number} predictions" if number > 1 else "one prediction"
    model = settings.get("checkpoint_sha256", "unknown")[:6]
    return Way(json.dumps([number, of_model], sort_keys=True), f"model {model}, {mean}", number)


def _pieces(folder: Path, run: Path, provenance: dict[str, Any]) -> list[Piece | None]:
    """Return the pieces of a prediction that its run never trained on; [None] for all of it."""
    description = run_description(run)
    sha256 = provenance["settings"].get("checkpoint_sha256")
    checkpoints = sorted((run / "checkpoints").glob("*.safetensors"))
    if sha256 not in map(file_hash, checkpoints):
        raise ValueError(
            f"{folder} was predicted by none of the checkpoints of {run}; give the run that "
            "predicted it with --held-out"
        )
    name = provenance["name"]
    pieces = [Piece(**piece) for piece in description["pieces"] if piece["fragment"] == name]
    held_out = [piece for piece in pieces if piece.role == "validation"]
    if pieces and not held_out:
        raise ValueError(
            f"{run} trained on all of {name}, so nothing of {folder} can be scored honestly; "
            "leave it out"
        )
    return list(held_out) or [None]
