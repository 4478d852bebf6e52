"""From probability maps to the file Kaggle scores.

A submission is a CSV with the header `Id,Predicted` and one row per fragment: its name and the
run-length encoding of its ink mask.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from core.config import from_dict
from core.files import atomic_path, read_json
from core.metrics import NUM_BINS
from core.provenance import collect
from core.terminal import note
from vesuvius import ledger, rle
from vesuvius.ledger import Model, Row
from vesuvius.tasks import check_is_ink
from vesuvius.threshold import FLAT

HEADER = ["Id", "Predicted"]
EMPTY_ROW = "1 1"  # an empty cell reads back as NaN, which some graders reject
LONGEST_FIELD = 2**31 - 1  # characters; the csv module stops at 131,072, a real row has over 10^6
BAND_ROWS = 256
PARTS = {"prob.tif", "provenance.json", "moments.tif", ".journal"}  # of a prediction


@dataclass(frozen=True, eq=False)
class _Prediction:
    """A finished prediction.

    Attributes:
        folder: Where it is.
        provenance: What it says about itself.
        threshold: Probability from which a pixel is ink, above 0 and below 1.
    """

    folder: Path
    provenance: dict[str, Any]
    threshold: float

    @property
    def name(self) -> str:
        """Id of the fragment."""
        return self.provenance["name"]

    @property
    def num_averaged(self) -> int:
        """How many predictions it is the mean of."""
        return self.provenance.get("num_predictions", 1)


def submit(
    predictions: tuple[Path, ...],
    /,
    out: Path | None = None,
    name: str | None = None,
    threshold: float | None = None,
    sample: Path | None = None,
) -> None:
    """Write a Kaggle submission from prediction folders.

    It is kept as submissions/<date>_<name>/submission.csv, with a manifest that says what it was
    made of, and gets a row of submissions/LEDGER.md. With --out it is that CSV file and no more.

    Args:
        predictions: Folders written by `vesuvius predict`, one per fragment.
        out: The CSV file to write, beside the ledger.
        name: What the ledger calls it; by default as its recipe.
        threshold: Probability, between 0 and 1, from which a pixel counts as ink. By default each
            prediction uses its model's own, fitted on single predictions of the validation pieces.
        sample: The competition's sample_submission.csv; the ids must be the same.

    Raises:
        FileNotFoundError: A prediction folder is missing or unfinished.
        ValueError: `out` is a file other than a submission, or given together with `name`, which
            is taken by another submission; two predictions share a name, a threshold is not
            between 0 and 1, a probability is NaN, or the ids are not those of the sample.
    """
    found = _open_all(predictions, threshold)
    if out is None:
        models = _models(found)  # refuses before the work
    elif name is not None:
        raise ValueError(
            f"out {out} is a CSV alone and name {name!r} is for the ledger; give one of them"
        )
    else:
        _check_replaceable(out)
    if sample is not None:
        _check_ids({prediction.name for prediction in found}, sample)
    _note_means(found, threshold)
    masks = {prediction.name: _mask(prediction) for prediction in found}
    if out is None:
        folder = ledger.record(
            name or models[0].recipe,
            lambda path: write_submission(masks, path),
            collect()["git_commit"],
            models,
            tuple(_row(prediction, masks[prediction.name]) for prediction in found),
        )
        out = folder / ledger.CSV
    else:
        write_submission(masks, out)
    note(f"{out}: {len(masks)} rows, read back and found equal")


def _mask(prediction: _Prediction) -> NDArray[np.bool_]:
    """Return the ink mask of a prediction, and say what it is like."""
    path = prediction.folder / "prob.tif"
    mask_YX = ink_mask(path, prediction.threshold)
    if is_flat(path):
        note(f"{prediction.name}: {FLAT}")
    note(
        f"{prediction.name}: threshold {prediction.threshold:.3g}, ink on {mask_YX.mean():.2%} of "
        "the pixels"
    )
    return mask_YX


def ink_mask(prob_path: Path, threshold: float) -> NDArray[np.bool_]:
    """Return where a probability map reaches `threshold`, reading a band of rows at a time.

    Args:
        prob_path: Uncompressed TIFF, (Y, X) float32, 0 outside the papyrus.
        threshold: Above 0, so that what lies outside the papyrus stays without ink.

    Returns:
        (Y, X) bool.

    Raises:
        ValueError: The file is damaged or of another kind, or a probability is not finite.
    """
    try:
        prob_YX = tifffile.memmap(prob_path, mode="r")
    except ValueError as error:
        raise ValueError(f"{prob_path} cannot be read ({error}); run predict again") from error
    if prob_YX.ndim != 2 or prob_YX.dtype != np.float32:
        raise ValueError(
            f"{prob_path} has shape {prob_YX.shape} and type {prob_YX.dtype}; "
            "a probability map is 2D (Y, X) float32, as predict writes it"
        )
    mask_YX = np.empty(prob_YX.shape, dtype=bool)
    for y in range(0, len(mask_YX), BAND_ROWS):
        band_YX = np.asarray(prob_YX[y : y + BAND_ROWS])
        is_bad = ~np.isfinite(band_YX)
        if is_bad.any():
            row, x = np.unravel_index(is_bad.argmax(), is_bad.shape)
            raise ValueError(
                f"{prob_path} holds {band_YX[row, x]} at row {y + row}, column {x}, which is no "
                "probability; predict again, and if it stays, the checkpoint is broken"
            )
        np.greater_equal(band_YX, threshold, out=mask_YX[y : y + BAND_ROWS])
    return mask_YX


def is_flat(prob_path: Path) -> bool:
    """Tell whether a probability map has about one value wherever it is above 0.

    Args:
        prob_path: As in `ink_mask`.
    """
    prob_YX = tifffile.memmap(prob_path, mode="r")
    low, high = 1.0, 0.0
    for y in range(0, len(prob_YX), BAND_ROWS):
        above = prob_YX[y : y + BAND_ROWS]
        above = above[above > 0]
        if above.size:
            low, high = min(low, float(above.min())), max(high, float(above.max()))
    return high - low <= 1 / NUM_BINS


def write_submission(rows: Mapping[str, NDArray[np.bool_]], path: Path) -> None:
    """Write ink masks as a submission that has been read back and compared.

    Args:
        rows: Ink mask (Y, X) bool of each fragment; rows are sorted by name.
        path: The CSV file, written under a temporary name and renamed once it is right.

    Raises:
        RuntimeError: What was read back is not what was written (a failing disk).
    """
    with atomic_path(path) as partial:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for name in sorted(rows):
                writer.writerow([name, rle.encode(rows[name]) or _stand_in(name)])
        written = read_submission(partial)
        for name, mask_YX in rows.items():
            _compare(name, written.get(name, ""), mask_YX)


def read_submission(path: Path) -> dict[str, str]:
    """Return the run-length text of each row of a submission.

    Raises:
        ValueError: The file is no submission, or names a fragment twice.
    """
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV text ({error}); write it with submit") from error
    finally:
        csv.field_size_limit(limit)
    if header != HEADER:
        raise ValueError(
            f"{path} begins with {','.join(header)[:60]!r}; the first line of a submission is "
            f"{','.join(HEADER)!r}"
        )
    texts: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        if len(row) != 2 or not row[0]:
            raise ValueError(
                f"{path} line {line} has {len(row)} fields; a row is an id and its RLE"
            )
        if row[0] in texts:
            raise ValueError(f"{path} line {line} repeats the id {row[0]!r}; ids appear once")
        texts[row[0]] = row[1]
    return texts


def check_submission(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise ValueError unless Kaggle would take a submission.

    Args:
        path: The CSV file.
        shapes: Height and width of each fragment by id.
    """
    texts = read_submission(path)
    _refuse_other_ids(set(texts), set(shapes), f"{path} lacks")
    if list(texts) != sorted(texts):
        raise ValueError(f"{path} has its rows in another order than that of the ids; sort them")
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(
                f"{path}: the row of {name!r} is empty, which graders reject; one without ink is "
                f"{EMPTY_ROW!r}"
            )
        try:
            rle.decode(text, shapes[name])
        except ValueError as error:
            raise ValueError(f"{path}: the row of {name!r} is no mask: {error}") from error


def _open_all(predictions: tuple[Path, ...], threshold: float | None) -> list[_Prediction]:
    """Return the predictions, each of another fragment."""
    if not predictions:
        raise ValueError("no prediction folder given; pass what `vesuvius predict --out` wrote")
    found: dict[str, _Prediction] = {}
    for folder in predictions:
        provenance = _read_provenance(folder)
        own = provenance["threshold"] if threshold is None else threshold
        prediction = _Prediction(folder, provenance, _checked_threshold(own, folder))
        if other := found.get(prediction.name):
            raise ValueError(
                f"{other.folder} and {folder} both predict {prediction.name!r}; a submission has "
                "one row for each name, so leave one out"
            )
        found[prediction.name] = prediction
    return list(found.values())


def _models(predictions: list[_Prediction]) -> tuple[Model, ...]:
    """Return the models of predictions, each once."""
    models: dict[str, Model] = {}
    for prediction in predictions:
        path = prediction.folder / "provenance.json"
        if "models" not in prediction.provenance:
            raise ValueError(
                f"{path} does not name its models, so the ledger cannot; predict again, or give "
                "--out for a CSV alone"
            )
        for facts in prediction.provenance["models"]:
            model = from_dict(Model, facts, where=f"{path}: models")
            models[model.checkpoint_sha256] = model
    return tuple(models.values())


def _row(prediction: _Prediction, mask_YX: NDArray[np.bool_]) -> Row:
    """Return what the ledger keeps of a prediction."""
    height, width = mask_YX.shape
    return Row(
        prediction.name,
        height,
        width,
        prediction.threshold,
        float(mask_YX.mean()),
        prediction.provenance.get("settings", {}),
    )


def _note_means(predictions: list[_Prediction], threshold: float | None) -> None:
    """Say so if a mean of predictions gets the threshold of single ones."""
    means = [prediction.name for prediction in predictions if prediction.num_averaged > 1]
    if means and threshold is None:
        note(
            f"{', '.join(means)}: mean of several predictions, but the threshold was fitted on "
            "single predictions of the held-out pieces; --threshold overrides it"
        )


def _check_replaceable(out: Path) -> None:
    """Raise ValueError if `out` is there and is no submission, which alone may be replaced."""
    if not out.is_file():
        return
    try:
        read_submission(out)
    except ValueError as error:
        raise ValueError(
            f"{out} exists and is no submission, so it is not replaced; choose another --out"
        ) from error


def _check_ids(names: set[str], sample: Path) -> None:
    """Raise ValueError unless the ids are those of the sample submission."""
    _refuse_other_ids(names, set(read_submission(sample)), f"against {sample} the predictions lack")


def _refuse_other_ids(found: set[str], wanted: set[str], lacks: str) -> None:
    """Raise ValueError, which begins with `lacks`, unless the ids found are those wanted."""
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        raise ValueError(
            f"{lacks} {missing or 'nothing'} and add {extra or 'nothing'}; predict the missing "
            "ones, leave out the others"
        )


def _stand_in(name: str) -> str:
    """Return the row of a mask without ink, and say so."""
    note(f"{name}: no ink at all; its row becomes {EMPTY_ROW!r} because graders reject empty rows")
    return EMPTY_ROW


def _compare(name: str, text: str, mask_YX: NDArray[np.bool_]) -> None:
    """Raise unless `text` describes the mask, or is the stand-in of an empty one."""
    if not mask_YX.any() and text == EMPTY_ROW:
        return
    if not np.array_equal(rle.decode(text, mask_YX.shape), mask_YX):
        raise RuntimeError(f"row {name!r} reads back as another mask; nothing was written")


def _read_provenance(folder: Path) -> dict[str, Any]:
    """Return what a finished prediction says about itself, name and threshold at least."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in ("prob.tif", "provenance.json") if name not in names]
    if missing:
        is_begun = any(name in PARTS or name.endswith(".partial.tif") for name in names)
        if is_begun and "checkpoints" not in names:
            raise FileNotFoundError(
                f"{folder / missing[0]} does not exist: predict did not finish there; "
                f"run `vesuvius predict ... --out {folder}` again, it continues"
            )
        found = "is no prediction" if names else "does not exist or is empty"
        raise FileNotFoundError(
            f"{folder} {found}; give the --out of `vesuvius predict`, not a fragment or a run"
        )
    path = folder / "provenance.json"
    provenance = read_json(path)
    if not isinstance(provenance, dict) or not {"name", "threshold"} <= provenance.keys():
        raise ValueError(f"{path} lacks name and threshold; predict writes both, run it again")
    check_is_ink(folder, provenance)
    return provenance


def _checked_threshold(threshold: float | None, folder: Path) -> float:
    """Return the threshold once it is known to lie between 0 and 1."""
    if threshold is None:
        raise ValueError(f"{folder} has no threshold of its own; choose one with --threshold")
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold {threshold} for {folder} is outside the allowed range: above 0 and below 1"
        )
    return threshold
