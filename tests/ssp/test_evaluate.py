"""Evaluation of a run: tables, pictures, and what they are compared with."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest
import torch

from ssp.assess import assess
from ssp.evaluate import evaluate, field_of
from ssp.mapping import Field
from ssp.model import load_model
from ssp.networks.registry import for_task
from ssp.prepared import open_data
from tests.ssp.cells import prepared


@pytest.fixture(scope="module")
def scores(run, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    evaluate(run, data=data, out=out, device="cpu")
    return out


def test_the_scores_are_those_of_whole_images(scores, run, data):
    record = json.loads((scores / "scores.json").read_text())
    model, images = load_model(run), open_data(data).select("test")
    assert [(row["task"], row["name"]) for row in record["images"]] == [
        (image.task, image.name) for image in images
    ]
    for image, row in zip(images, record["images"], strict=True):
        network = for_task(model.network, model.tasks.index(image.task))
        found = assess(network, image, field_of(model, image), "cpu", batch_size=3)
        assert row == pytest.approx({"task": image.task, "name": image.name, **found.scores})
        assert record["tasks"][image.task] == pytest.approx(found.scores)
    means = [row["mse"] for row in record["images"]]
    assert record["tasks"]["All"]["mse"] == pytest.approx(np.mean(means))


def test_tables_hold_every_task_and_image(scores, run, data, capsys):
    with (scores / "tasks.csv").open() as file:
        assert [row["task"] for row in csv.DictReader(file)] == ["dna", "tom20", "All"]
    with (scores / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    record = json.loads((scores / "scores.json").read_text())
    assert [float(row["mse"]) for row in rows] == [row["mse"] for row in record["images"]]


def test_pictures_show_signal_target_prediction_and_error(scores):
    (path, _) = sorted((scores / "pictures").iterdir())
    assert path.name.startswith("dna-")
    assert cv2.imread(str(path)).shape == (20, 4 * 24 + 3 * 8, 3)


def test_an_error_is_red_where_the_prediction_is_too_bright(data):
    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.full_like(x, 10.0)

    image = open_data(data).select("test")[0]
    found = assess(Bright(), image, Field(image.signal.shape, (4, 16, 16)), "cpu")
    assert found.picture_with_error()[:, -24:].reshape(-1, 3).tolist() == [[255, 0, 0]] * 480
    assert found.scores["pearson"] == 0


def test_a_reference_tells_by_how_much_scores_are_better(scores, run, data, tmp_path, capsys):
    record = json.loads((scores / "scores.json").read_text())
    for means in record["tasks"].values():
        means["mse"] *= 2
    (tmp_path / "scores.json").write_text(json.dumps(record))
    evaluate(run, data=data, out=tmp_path / "out", reference=tmp_path, device="cpu")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["improvement"]
    assert found["All"]["mse"] == pytest.approx(50)
    assert found["All"]["mae"] == pytest.approx(0)
    assert "MSE +%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": ("golgi",)}, "unknown task golgi; .* knows dna, tom20"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"split": "val", "reference": "scores"}, "scores of other images"),
    ],
)
def test_what_cannot_be_scored_is_refused(options, message, scores, run, data, tmp_path):
    if "reference" in options:
        options = options | {"reference": scores}
    with pytest.raises(ValueError, match=message):
        evaluate(run, data=data, out=tmp_path / "out", device="cpu", **options)


def test_data_of_other_tasks_are_refused_or_left_out(run, tmp_path, capsys):
    others = prepared(tmp_path / "others", tasks=("zo1",))
    with pytest.raises(ValueError, match=r"knows dna, tom20 and .* has zo1"):
        evaluate(run, data=others, out=tmp_path / "out", device="cpu")
    mixed = prepared(tmp_path / "mixed", tasks=("dna", "zo1"))
    evaluate(run, data=mixed, out=tmp_path / "out", device="cpu")
    assert "not scored, as the model does not know them: zo1" in capsys.readouterr().err
