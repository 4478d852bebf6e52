"""Moments on disk: passes of another device or batch size add to them, and are written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from vesuvius.ensemble import EnsembleConfig
from vesuvius.moments import MomentMaps
from vesuvius.predict import predict

CPU, GPU = {"device": "cpu", "batch_size": 8}, {"device": "cuda", "batch_size": 8}
MEMBERS = np.random.default_rng(0).random((6, 4, 5)).astype(np.float32)
OPTIONS = {"tile_size": 48, "stride": 48, "device": "cpu"}


@pytest.fixture(autouse=True)
def _short_passes(monkeypatch):
    monkeypatch.setattr("vesuvius.ensemble.NETWORKS_PER_PASS", 2)


def maps(folder: Path, computing: dict[str, object]) -> MomentMaps:
    return MomentMaps(folder, "these members", computing, (4, 5))


def grow(moments: MomentMaps, total: int) -> None:
    while moments.missing(total):
        some = moments.begin(total, 2)
        some.write(0, 4, MEMBERS[some.start : some.stop])
        moments.commit()


def test_members_computed_elsewhere_are_added_and_told_of(tmp_path):
    for computing, total in ((CPU, 3), (CPU, 4), (GPU, 5), (CPU, 6)):
        grow(maps(tmp_path, computing), total)
    moments = maps(tmp_path, GPU)
    np.testing.assert_allclose(moments.read(0, 4).moments.mean, MEMBERS.mean(0), atol=1e-7)
    assert moments.computed() == [{"first": 0, **CPU}, {"first": 4, **GPU}, {"first": 5, **CPU}]


def test_nothing_was_computed_before_the_first_pass(tmp_path):
    assert maps(tmp_path, CPU).computed() == []


@pytest.mark.parametrize("other", [GPU, CPU | {"batch_size": 4}])
def test_a_pass_goes_on_with_what_it_began_with_only(tmp_path, other):
    some = maps(tmp_path, CPU).begin(6, 2)
    maps(tmp_path, other).begin(6, 2)  # nothing of it is done yet
    some = maps(tmp_path, CPU).begin(6, 2)
    some.write(0, 2, MEMBERS[:2, :2])
    some.journal.commit(1, np.zeros((2, 0, 5), np.float32))
    with pytest.raises(ValueError, match=r"\.journal belongs to .* model, input or setting"):
        maps(tmp_path, other).begin(6, 2)
    same = maps(tmp_path, CPU)
    rest = same.begin(6, 2)
    assert rest.journal.load()[0] == 1
    rest.write(2, 4, MEMBERS[:2, 2:])
    same.commit()
    np.testing.assert_allclose(same.read(0, 4).moments.mean, MEMBERS[:2].mean(0), atol=1e-7)


def test_samples_are_added_with_a_smaller_batch(run, fragments, tmp_path, capsys):
    def ask(out: Path, mc_samples: int, batch_size: int) -> list[dict[str, object]]:
        averaged = EnsembleConfig(mc_samples=mc_samples, gate_noise=1.0)
        options = OPTIONS | {"batch_size": batch_size, "averaged": averaged}
        predict(run, fragments["a"], out=out, **options)
        return json.loads((out / "provenance.json").read_text())["computed"]

    grown, whole = tmp_path / "grown", tmp_path / "whole"
    eight, two = {"device": "cpu", "batch_size": 8}, {"device": "cpu", "batch_size": 2}
    assert ask(grown, 2, 8) == [{"first": 0, **eight}]
    assert ask(grown, 3, 2) == [{"first": 0, **eight}, {"first": 2, **two}]
    assert ask(whole, 3, 2) == [{"first": 0, **two}]
    for name in ("prob.tif", "uncertainty.tif"):
        found, expected = (tifffile.imread(out / name) for out in (grown, whole))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    capsys.readouterr()
    ask(grown, 3, 4)
    assert "already finished" in capsys.readouterr().err


def test_a_plain_prediction_tells_what_computed_it_and_does_not_ask_for_it(
    run, fragments, tmp_path, capsys
):
    out = tmp_path / "a"
    predict(run, fragments["a"], out=out, **OPTIONS, batch_size=8)
    record = json.loads((out / "provenance.json").read_text())
    assert record["computed"] == [{"first": 0, "device": "cpu", "batch_size": 8}]
    predict(run, fragments["a"], out=out, **OPTIONS, batch_size=4)
    assert "already finished" in capsys.readouterr().err


def test_pixels_without_papyrus_stay_zero_and_those_that_are_zero_later_are_counted(tmp_path):
    members = MEMBERS.copy()
    members[:, :2] = 0
    members[2:, 3, 3] = 0
    moments = maps(tmp_path, CPU)
    while moments.missing(6):
        some = moments.begin(6, 2)
        some.write(0, 4, members[some.start : some.stop])
        moments.commit()
    found = moments.read(0, 4)
    assert not np.stack([found.moments.mean, found.moments.squares, found.mean_entropy])[
        :, :2
    ].any()
    np.testing.assert_allclose(found.moments.mean, members.mean(0), atol=1e-7)
    np.testing.assert_allclose(found.moments.std(), members.std(0), atol=1e-7)
