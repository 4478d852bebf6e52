"""The demo end to end, cut down to seconds; the full one is measured by benchmarks/demo.py."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from tests.vesuvius.conftest import tiny_recipe
from vesuvius.demo import demo, f05
from vesuvius.submission import read_submission


def test_pooled_f05_counts_pixels_of_all_fragments():
    mask = np.array([[True, True, False, False]])
    label = np.array([[True, False, True, False]])
    assert f05([(mask, label)]) == pytest.approx(1.25 / (1.25 + 0.25 + 1))
    both = f05([(mask, label), (label, label)])
    assert both == pytest.approx(1.25 * 3 / (1.25 * 3 + 0.25 + 1))


def test_demo_leaves_what_it_promises_and_continues_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("vesuvius.demo.SIZE", (192, 224))
    monkeypatch.setattr("vesuvius.demo.small", tiny_recipe)
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr("vesuvius.demo.submit", lambda *_, **__: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):  # noqa: PT011 (stopped on purpose)
            demo(out)
    trained = (out / "model" / "checkpoints" / "best.safetensors").stat().st_mtime_ns
    demo(out)
    assert (out / "model" / "checkpoints" / "best.safetensors").stat().st_mtime_ns == trained
    assert {path.name for path in out.iterdir()} == {
        "data", "prepared", "model", "predictions", "submission.csv", "scores.json",
        "report.html", "overview.png", "times.json",
    }  # fmt: skip
    scores = json.loads((out / "scores.json").read_text())
    assert {"f05", "baseline_f05", "threshold"} <= scores.keys()
    assert 0 <= scores["f05"] <= 1
    assert 0 < scores["all_ink_f05"] < 0.5
    assert scores["seconds"]["train"] > 0.5  # of the first run, not of the second that skipped it
    assert list(read_submission(out / "submission.csv")) == ["a", "b"]
    for name in ("a", "b"):
        assert (out / "predictions" / name / "prob.tif").is_file()
        assert (out / "data" / "test" / name / "inklabels.png").is_file()
    page = (out / "report.html").read_text()
    assert len(re.findall("data:image/png;base64,", page)) == 9
    assert f"{scores['f05']:.3f}" in page


@pytest.mark.slow
def test_demo_reaches_its_score_in_its_time(tmp_path):
    started_s = time.monotonic()
    demo(tmp_path / "demo")
    assert time.monotonic() - started_s < 480
    scores = json.loads((tmp_path / "demo" / "scores.json").read_text())
    assert 0.60 <= scores["f05"] <= 0.85
    assert scores["baseline_f05"] < 0.35
