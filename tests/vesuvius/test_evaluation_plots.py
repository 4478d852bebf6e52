"""Pictures of an evaluation: no wider than a screen, and no curve better than its map."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.vesuvius.test_evaluate import write_prediction
from vesuvius.evaluate import score
from vesuvius.evaluation_plots import _draw_precision_recall, strip_picture
from vesuvius.fragment import open_fragment
from vesuvius.maps import MapFile
from vesuvius.scored import Band, Truths, scored_predictions


@pytest.mark.parametrize("shape", [(3000, 3000), (3000, 2990), (9000, 2000), (500, 6000)])
def test_a_strip_fits_on_a_screen(shape):
    label = np.zeros(shape, bool)
    empty = Band(slice(0), np.zeros(1), label[:1], label[:1], None)
    scored = SimpleNamespace(
        label=label,
        band=lambda start, stop: replace(
            empty,
            prob=np.zeros((stop - start, shape[1])),
            label=label[start:stop],
            valid=label[start:stop],
        ),
    )
    png = np.frombuffer(strip_picture(SimpleNamespace(scored=scored)), np.uint8)
    assert cv2.imdecode(png, cv2.IMREAD_UNCHANGED).shape[1] <= 1200


def curve_of(folder) -> tuple[np.ndarray, str]:
    """Return the drawn precisions of a prediction and what the legend says of them."""
    (one,) = score(scored_predictions(folder, Truths(())))
    axes = Figure().subplots()
    _draw_precision_recall(axes, one)
    return np.unique(axes.lines[0].get_ydata()), axes.lines[0].get_label()


def test_a_flat_map_is_called_flat_and_its_curve_is_that_of_chance(fragments, tmp_path, capsys):
    folder = write_prediction(tmp_path / "1", fragments["1"])
    assert len(curve_of(folder)[0]) > 50
    assert "map is flat" not in capsys.readouterr().err
    opened = open_fragment(fragments["1"])
    flat = np.where(opened.papyrus_mask, np.float32(0.3), np.float32(0))
    MapFile(folder / "prob.tif").write(0, len(flat), flat[None])
    precisions, text = curve_of(folder)
    assert precisions == pytest.approx([opened.ink_label[opened.papyrus_mask].mean()])
    assert "(flat map)" in text
    assert f"{folder}: the map is flat: all papyrus has about the" in capsys.readouterr().err
