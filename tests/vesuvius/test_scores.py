"""Scores of a map from its bands against those of whole arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.metrics import fbeta
from vesuvius.folds import Piece
from vesuvius.maps import MapFile
from vesuvius.scored import ScoredMap, Way
from vesuvius.scores import CONFIDENCE, Cleaning, Counts, Decisions

SHAPE = (70, 40)
PIECE = Piece("a", 11, 59, 4, 33, "validation")


@pytest.fixture(autouse=True)
def _small_bands(monkeypatch):
    monkeypatch.setattr("vesuvius.scored.BAND_ROWS", 9)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, bool)
    label[8:60:6] = label[9:60:6] = True
    prob = np.clip(0.25 + 0.4 * label + rng.normal(0, 0.2, SHAPE), 0, 1).astype(np.float32)
    valid = rng.random(SHAPE) < 0.9
    prob[~valid] = np.nan
    return {
        "prob": prob,
        "label": label,
        "valid": valid,
        "uncertainty": rng.random((3, *SHAPE), dtype=np.float32),
    }


def scored_map(folder: Path, maps: dict[str, np.ndarray], piece: Piece | None) -> ScoredMap:
    prob = MapFile.create(folder / "prob.tif", SHAPE)
    prob.write(0, SHAPE[0], maps["prob"][None])
    spread = MapFile.create(folder / "uncertainty.tif", (3, *SHAPE))
    spread.write(0, SHAPE[0], maps["uncertainty"])
    region = piece.slices if piece else ...
    return ScoredMap(
        name="a", source=folder, way=Way("k", "way", 1), threshold=0.5, threshold_saw_it=False,
        piece=piece, prob=prob, uncertainty=spread, origin=(0, 0), label=maps["label"][region],
        valid=maps["valid"][region],
    )  # fmt: skip


@pytest.fixture(params=[None, PIECE], ids=["whole", "piece"])
def both(request, tmp_path) -> tuple[ScoredMap, dict[str, np.ndarray]]:
    """A map, and the valid pixels of what is scored of it as flat arrays."""
    maps = arrays()
    scored = scored_map(tmp_path, maps, request.param)
    region = PIECE.slices if request.param else (slice(None), slice(None))
    valid = maps["valid"][region]
    return scored, {name: array[(..., *region)][..., valid] for name, array in maps.items()}


def test_bands_hold_the_rows_of_the_piece(tmp_path):
    maps = arrays()
    bands = list(scored_map(tmp_path, maps, PIECE).bands())
    for name, axis in (("prob", 0), ("label", 0), ("uncertainty", 1)):
        joined = np.concatenate([getattr(band, name) for band in bands], axis=axis)
        np.testing.assert_array_equal(joined, maps[name][(..., *PIECE.slices)])
    assert [band.rows.start for band in bands] == list(range(0, 48, 9))


def test_every_row_is_reported_once_a_pass(tmp_path):
    scored, done = scored_map(tmp_path, arrays(), PIECE), []
    Counts(scored, done.append)
    assert done == [9, 9, 9, 9, 9, 3]
    Decisions(scored, 0.5, None, advance=done.append)
    assert sum(done) == 2 * 48


def test_a_file_that_begins_elsewhere_is_read_in_its_own_rows(tmp_path):
    whole = scored_map(tmp_path, arrays(), PIECE)
    shifted = replace(whole, origin=(3, 2))
    np.testing.assert_array_equal(
        shifted.band(3, 6).prob[:, 2:], whole.band(0, 3).prob[:, :-2]
    )  # row 3 of the piece is row 11 of the file


def test_first_pass_equals_whole_arrays(both):
    scored, flat = both
    found = Counts(scored).describe()
    prob, label = flat["prob"].astype(np.float64), flat["label"]
    assert found["pixels"] == label.size
    assert found["ink_share"] == pytest.approx(label.mean())
    p = np.clip(np.where(label, prob, 1 - prob), 1e-7, 1 - 1e-7)
    bce, dice = -np.log(p).mean(), 1 - 2 * prob[label].sum() / (prob.sum() + label.sum())
    assert found["loss"] == pytest.approx((bce + dice) / 2, abs=1e-10)
    assert (found["bce"], found["dice_loss"]) == pytest.approx((bce, dice), abs=1e-10)
    candidates = [float(f05(prob >= k / 1024, label)) for k in range(1025)]
    assert found["best_f05"] == pytest.approx(max(candidates), abs=1e-12)
    assert candidates[round(1024 * found["best_threshold"])] == pytest.approx(max(candidates))
    curve = np.array(found["threshold_precision_recall"])
    assert curve.shape == (65, 3)
    for threshold, precision, recall in curve[[0, 20, 40]]:
        ink = prob >= threshold
        assert (precision, recall) == pytest.approx((label[ink].mean(), ink[label].mean()))
    assert -1 <= found["ssim"] <= 1
    assert found["ssim"] != found["ssim_of_empty"]


def f05(ink: np.ndarray, label: np.ndarray) -> float:
    return float(fbeta((ink & label).sum(), (ink & ~label).sum(), (~ink & label).sum()))


def test_second_pass_equals_whole_arrays(both):
    scored, flat = both
    threshold = 0.4567  # on no bin
    found = Decisions(scored, threshold, temperature=2.0).describe()
    ink, label = flat["prob"] >= threshold, flat["label"]
    assert found["f05"] == pytest.approx(f05(ink, label), abs=1e-12)
    assert found["precision"] == pytest.approx(label[ink].mean())
    assert found["recall"] == pytest.approx(ink[label].mean())
    is_wrong = ink != label
    assert found["wrong_share"] == pytest.approx(is_wrong.mean())
    names = ["standard deviation", "predictive entropy", "mutual information"]
    assert list(found["uncertainty"]) == [CONFIDENCE, *names]
    for name, values in zip(names, flat["uncertainty"], strict=True):
        in_order = is_wrong[np.argsort(values)]
        area = np.mean(np.cumsum(in_order) / np.arange(1, label.size + 1))
        assert found["uncertainty"][name]["risk_area"] == pytest.approx(area, abs=3e-3)
        pairs = values[is_wrong][:, None] > values[~is_wrong][None]
        assert found["uncertainty"][name]["finds_errors"] == pytest.approx(pairs.mean(), abs=2e-3)
    assert found["uncertainty"][CONFIDENCE]["finds_errors"] > 0.6


def test_temperature_changes_calibration_and_nothing_else(both):
    scored, _ = both
    plain, flat = (Decisions(scored, 0.5, temperature).describe() for temperature in (1.0, 5.0))
    assert plain["calibration_error_tempered"] == pytest.approx(
        Counts(scored).describe()["calibration_error"], abs=1e-6
    )
    assert plain["bce_tempered"] == pytest.approx(Counts(scored).describe()["bce"], abs=1e-6)
    differing = {key for key in plain if plain[key] != flat[key]}
    assert differing == {"temperature", "calibration_error_tempered", "bce_tempered"}
    assert Decisions(scored, 0.5, None).describe()["calibration_error_tempered"] is None


def test_cleaning_reports_what_each_step_brings(tmp_path):
    maps = arrays()
    maps["valid"][:] = True
    maps["label"][:] = False
    maps["label"][20:30, 5:35] = True
    maps["prob"] = np.full(SHAPE, 0.1, np.float32)
    maps["prob"][20:30, 5:35] = 0.4  # faint, but one end of it is clear
    maps["prob"][20:30, 5:8] = 0.9
    maps["prob"][60:62, 10:12] = 0.9  # a speck
    scored = scored_map(tmp_path, maps, None)
    found = Decisions(scored, 0.5, None, Cleaning(hysteresis=0.6, min_component=10)).cleaned
    label, speck = 300, 4
    assert found == {
        "hysteresis": pytest.approx(float(fbeta(label, speck, 0))),
        "min_component": pytest.approx(float(fbeta(30, 0, 270))),
        "both": 1.0,
    }
    (not_reached,) = Decisions(scored, 0.5, None, Cleaning(hysteresis=0.85)).cleaned.values()
    assert not_reached == Decisions(scored, 0.5, None).f05
    assert list(Decisions(scored, 0.5, None, Cleaning(min_component=2)).cleaned) == [
        "min_component"
    ]
    assert Decisions(scored, 0.5, None).cleaned == {}


def test_choices_of_cleaning_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"hysteresis 1\.5 is not allowed"):
        Cleaning(hysteresis=1.5)
    with pytest.raises(ValueError, match="min_component 0 is below 1"):
        Cleaning(min_component=0)


def test_a_probability_that_is_none_names_its_file(tmp_path):
    maps = arrays()
    maps["valid"][:] = True
    with pytest.raises(ValueError, match=r"prob\.tif: prob is between nan and nan"):
        Counts(scored_map(tmp_path, maps, None))


def test_a_map_without_ink_has_scores(tmp_path):
    maps = arrays()
    maps["label"][:] = False
    scored = scored_map(tmp_path, maps, None)
    found = Counts(scored).describe() | Decisions(scored, 0.5, 1.0).describe()
    assert (found["ink_share"], found["best_f05"], found["f05"], found["recall"]) == (0, 0, 0, 0)
    assert found["roc_auc"] == 0.5
    assert found["ssim_of_empty"] == 1
