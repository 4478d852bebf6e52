"""The control for invented ink: shifted labels over the same voxels, and what chance is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from core.files import read_json, write_json
from vesuvius.control import NUM_SHIFTS, control, even_shift, judge, shift_labels
from vesuvius.prepared import open_prepared
from vesuvius.survey import draw_offsets
from vesuvius.train import open_volumes

SHAPE = (160, 200)


def blobs(seed: int) -> np.ndarray:
    """Return a label of random squares, bool (Y, X)."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, bool)
    for y, x in rng.integers(0, 140, (12, 2)):
        label[y : y + 14, x : x + 14] = True
    return label


def mapped(prob: np.ndarray, label: np.ndarray) -> SimpleNamespace:
    """Return what `judge` needs of a scored map."""
    valid = np.ones(SHAPE, bool)
    band = SimpleNamespace(prob=prob.astype(np.float32), label=label, valid=valid)
    return SimpleNamespace(title="piece", label=label, valid=valid, band=lambda start, stop: band)


def test_labels_are_shifted_far_and_the_voxels_are_the_same(prepared, tmp_path):
    volumes = open_volumes(prepared)
    shifted = open_volumes(shift_labels(volumes, tmp_path / "control", seed=0))
    for name, volume in volumes.items():
        copy = shifted[name]
        assert (copy.path / "volume.npy").resolve() == (volume.path / "volume.npy").resolve()
        np.testing.assert_array_equal(copy.volume, volume.volume)
        assert not (copy.ink_label & ~copy.papyrus_mask).any()
        ink, moved = volume.ink_label & volume.papyrus_mask, np.asarray(copy.ink_label)
        assert (ink != moved).any()
        steps = [
            (dy, dx)
            for dy in range(ink.shape[0])
            for dx in range(ink.shape[1])
            if (np.roll(ink, (dy, dx), (0, 1)) & volume.papyrus_mask == moved).all()
        ]
        assert len(steps) == 1
        assert ink.shape[0] / 4 <= steps[0][0] <= 3 * ink.shape[0] / 4


def test_the_infrared_photograph_which_shows_ink_too_is_shifted_with_the_label(prepared, tmp_path):
    folder = shutil.copytree(prepared / "1.vol", tmp_path / "data" / "1.vol")
    np.save(folder / "ir_image.npy", 200 - 100 * np.load(folder / "ink_label.npy").astype(np.uint8))
    write_json(folder / "volume.json", read_json(folder / "volume.json") | {"has_ir_image": True})
    volumes = open_volumes(tmp_path / "data")
    copy = open_volumes(shift_labels(volumes, tmp_path / "control", seed=0))["1"]
    ink = copy.ink_label[copy.papyrus_mask]
    assert ink.any()
    dark = copy.ir_image[copy.papyrus_mask] == 100
    assert dark[ink].all()
    assert not np.array_equal(copy.ir_image, volumes["1"].ir_image)


def test_the_shift_is_the_one_that_meets_ink_as_often_as_papyrus():
    label, mask = blobs(0), np.ones(SHAPE, bool)

    def unevenness(offset) -> float:
        moved = np.roll(label, tuple(offset), axis=(0, 1))
        return abs((moved & label).sum() / moved.sum() - label.mean())

    found = [unevenness(offset) for offset in draw_offsets(SHAPE, NUM_SHIFTS, 4).tolist()]
    assert unevenness(even_shift(label, mask, 4)) == min(found) < 0.1 * max(found)


def test_a_map_that_is_surely_wrong_is_below_chance():
    label = blobs(0)
    assert "below chance; the shifted labels avoid the ink" in str(judge(mapped(~label, label), 0))


def test_the_same_control_is_found_again_and_another_is_refused(prepared, tmp_path):
    volumes, out = open_volumes(prepared), tmp_path / "control"
    shift_labels(volumes, out, seed=0)
    before = (out / "1.vol" / "ink_label.npy").stat().st_mtime_ns
    shift_labels(volumes, out, seed=0)
    assert (out / "1.vol" / "ink_label.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"is of another control; choose another --out"):
        shift_labels(volumes, out, seed=1)


def test_a_volume_without_a_label_is_refused_and_nothing_is_left(prepared, tmp_path):
    volumes = {"1": replace(open_prepared(prepared / "1.vol"), ink_label=None)}
    with pytest.raises(ValueError, match=r"1\.vol has no ink label to shift"):
        shift_labels(volumes, tmp_path / "control", seed=0)
    assert not list(tmp_path.iterdir())


def test_a_control_that_would_start_from_other_weights_is_refused(
    run, prepared, tmp_path, monkeypatch
):
    pretrained = SimpleNamespace(sha256="aa")
    monkeypatch.setattr("vesuvius.control.open_pretrained", lambda path: pretrained)
    out = tmp_path / "control"
    with pytest.raises(ValueError, match=r"started from random weights .*; leave --pretrained out"):
        control(run, data=prepared, out=out, pretrained=tmp_path)
    description = read_json(run / "config.json")["description"] | {"pretrained_sha256": "bb"}
    monkeypatch.setattr("vesuvius.control.run_description", lambda path: description)
    for given in (None, tmp_path):
        with pytest.raises(ValueError, match=r"from a pretrained encoder .*; give the same with"):
            control(run, data=prepared, out=out, pretrained=given)
    assert not out.exists()
    description["pretrained_sha256"] = "aa"
    trained = []

    def spy(*arguments, **options):
        trained.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("vesuvius.control.train", spy)
    with pytest.raises(KeyboardInterrupt):
        control(run, data=prepared, out=out, pretrained=tmp_path)
    assert trained == [{"resume": False, "pretrained": tmp_path}]


def test_a_map_that_knows_nothing_is_at_chance_and_one_that_knows_is_not():
    label, noise = blobs(0), np.random.default_rng(1).random(SHAPE)
    unknowing = judge(mapped(noise, label), seed=0)
    assert unknowing.is_chance
    assert unknowing.least < 0.5 < unknowing.greatest
    knowing = judge(mapped(0.2 * label + 0.8 * noise, label), seed=0)
    assert not knowing.is_chance
    assert knowing.roc_auc > knowing.greatest
    assert "NOT at chance; look for a leak" in str(knowing)


def test_a_map_of_ink_elsewhere_is_at_chance_however_sure_it_is():
    verdict = judge(mapped(np.where(blobs(5), 0.9, 0.1), blobs(0)), seed=0)
    assert verdict.is_chance
    assert verdict.greatest - verdict.least > 0.05  # as sure maps do, by luck alone


def test_one_command_trains_scores_and_reports_the_control(run, prepared, tmp_path, capsys):
    control(run, data=prepared, out=tmp_path / "control")
    record = read_json(tmp_path / "control" / "report" / "evaluation.json")
    ways = ["the run", "control, on its own shifted labels", "control, on the true labels"]
    assert list(record["averages"]) == ways
    assert len(record["maps"]) == 6
    assert len(record["control"]) == 2
    page = (tmp_path / "control" / "report" / "report.html").read_text()
    assert all(line in page for line in record["control"])
    by_way = {way: [m for m in record["maps"] if m["way"] == way] for way in ways}
    for own, true in zip(by_way[ways[1]], by_way[ways[2]], strict=True):
        assert own["title"] == true["title"]
        assert own["ink_share"] != true["ink_share"]
    config = read_json(tmp_path / "control" / "run" / "config.json")
    assert (
        config["description"]["recipe"] == read_json(run / "config.json")["description"]["recipe"]
    )
    capsys.readouterr()
    control(run, data=prepared, out=tmp_path / "control")  # nothing is trained again
    assert "the run" in capsys.readouterr().out
