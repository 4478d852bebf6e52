"""From probability maps to the file Kaggle scores.

A submission is a CSV with the header `Id,Predicted` and one row per fragment: its name and the
run-length encoding of its ink mask.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from core.files import atomic_path, read_json
from core.metrics import NUM_BINS
from core.terminal import note
from vesuvius import rle
from vesuvius.tasks import check_is_ink
from vesuvius.threshold import FLAT

HEADER = ["Id", "Predicted"]
EMPTY_ROW = "1 1"  # an empty cell reads back as NaN, which some graders reject
LONGEST_FIELD = 2**31 - 1  # characters; the csv module stops at 131,072, a real row has over 10^6
BAND_ROWS = 256
PARTS = {"prob.tif", "provenance.json", "moments.tif", ".journal"}  # of a prediction


def submit(
    predictions: tuple[Path, ...],
    /,
    out: Path,
    threshold: float | None = None,
    sample: Path | None = None,
) -> None:
    """Write a Kaggle submission from prediction folders.

    Args:
        predictions: Folders written by `vesuvius predict`, one per fragment.
        out: The CSV file to write.
        threshold: Probability, between 0 and 1, from which a pixel counts as ink. By default each
            prediction uses its model's own, fitted on single predictions of the validation pieces.
        sample: The competition's sample_submission.csv; the ids must be the same.

    Raises:
        FileNotFoundError: A prediction folder is missing or unfinished.
        ValueError: `out` is a file other than a submission, two predictions share a name, a
            threshold is not between 0 and 1, a probability is NaN, or the ids are not those of the
            sample.
    """
    if not predictions:
        raise ValueError("no prediction folder given; pass what `vesuvius predict --out` wrote")
    folders: dict[str, Path] = {}
    thresholds: dict[str, float] = {}
    means = []
    for folder in predictions:
        name, own_threshold, num_predictions = _read_provenance(folder)
        if name in folders:
            raise ValueError(
                f"{folders[name]} and {folder} both predict {name!r}; a submission has one row "
                "for each name, so leave one out"
            )
        folders[name] = folder
        thresholds[name] = _checked_threshold(
            own_threshold if threshold is None else threshold, folder
        )
        if num_predictions > 1 and threshold is None:
            means.append(name)
    _check_replaceable(out)
    if sample is not None:
        _check_ids(set(folders), sample)
    if means:
        note(
            f"{', '.join(means)}: mean of several predictions, but the threshold was fitted on "
            "single predictions of the held-out pieces; --threshold overrides it"
        )
    rows = {name: ink_mask(folders[name] / "prob.tif", thresholds[name]) for name in folders}
    for name, folder in folders.items():
        if is_flat(folder / "prob.tif"):
            note(f"{name}: {FLAT}")
    for name, mask_YX in rows.items():
        note(f"{name}: threshold {thresholds[name]:.3g}, ink on {mask_YX.mean():.2%} of the pixels")
    write_submission(rows, out)
    note(f"{out}: {len(rows)} rows, read back and found equal")


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
    wanted = set(read_submission(sample))
    missing, extra = sorted(wanted - names), sorted(names - wanted)
    if missing or extra:
        raise ValueError(
            f"the predictions lack {missing or 'nothing'} and add {extra or 'nothing'} against "
            f"{sample}; predict the missing ones, leave out the others"
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


def _read_provenance(folder: Path) -> tuple[str, float | None, int]:
    """Return the fragment's name, the model's own threshold and how many predictions it is of."""
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
    return provenance["name"], provenance["threshold"], provenance.get("num_predictions", 1)


def _checked_threshold(threshold: float | None, folder: Path) -> float:
    """Return the threshold once it is known to lie between 0 and 1."""
    if threshold is None:
        raise ValueError(f"{folder} has no threshold of its own; choose one with --threshold")
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold {threshold} for {folder} is outside the allowed range: above 0 and below 1"
        )
    return threshold
