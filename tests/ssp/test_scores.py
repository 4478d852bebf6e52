"""Scores of whole images, and their means over tasks and over all images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.losses import structural_similarity
from ssp.scores import METRICS, ImageScores, ScoredImage, improvement, summarize


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    target = rng.normal(3, 2, (5, 14, 17)).astype(np.float32)
    return 0.6 * target + rng.normal(0, 1, target.shape).astype(np.float32), target


def scored(predicted, target, bands=((0, 5),)):
    scores = ImageScores(float(target.min()), float(target.max()))
    for start, stop in bands:
        scores.add(predicted[start:stop], target[start:stop])
    return scores.result()


def test_the_scores_are_those_of_the_formulas(pair):
    predicted, target = (x.astype(np.float64) for x in pair)
    found = scored(*pair)
    error = predicted - target
    assert found["mse"] == pytest.approx(np.mean(error**2))
    assert found["mae"] == pytest.approx(np.mean(np.abs(error)))
    assert found["r2"] == pytest.approx(
        1 - np.sum(error**2) / np.sum((target - target.mean()) ** 2)
    )
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted.ravel(), target.ravel())[0, 1])
    low, width = target.min(), np.ptp(target)
    scaled = (torch.from_numpy((x - low) / width)[:, None] for x in (predicted, target))
    assert found["ssim"] == pytest.approx(float(structural_similarity(*scaled).mean()))


def test_the_scores_of_an_image_do_not_depend_on_its_bands(pair):
    assert scored(*pair, bands=((0, 2), (2, 3), (3, 5))) == pytest.approx(scored(*pair), rel=1e-12)


def test_a_perfect_prediction_has_the_best_scores(pair):
    assert scored(pair[1], pair[1]) == pytest.approx(
        {"mse": 0, "mae": 0, "r2": 1, "pearson": 1, "ssim": 1}
    )


def test_a_constant_prediction_correlates_with_nothing(pair):
    found = scored(np.full_like(pair[1], pair[1].mean()), pair[1])
    assert found["pearson"] == 0
    assert found["r2"] == pytest.approx(0, abs=1e-6)


def test_a_constant_target_is_refused():
    with pytest.raises(ValueError, match="target is 2 everywhere"):
        ImageScores(2.0, 2.0)


def test_all_is_the_mean_over_images_and_not_over_tasks():
    images = [
        ScoredImage(str(number), task, dict.fromkeys(METRICS, value))
        for number, (task, value) in enumerate([("a", 1.0), ("b", 2.0), ("b", 4.0), ("b", 6.0)])
    ]
    means = summarize(images)
    assert [means[name]["mse"] for name in ("a", "b", "All")] == [1.0, 4.0, 3.25]


def test_improvement_is_that_of_the_paper():
    repmode = {"mse": 0.4956, "mae": 0.4078, "r2": 0.4735, "pearson": 0.7, "ssim": 0.6}
    multi_net = {"mse": 0.5341, "mae": 0.4269, "r2": 0.4337, "pearson": 0.7, "ssim": 0.0}
    found = improvement(repmode, multi_net)
    assert found["mse"] == pytest.approx(7.209, abs=0.005)
    assert found["mae"] == pytest.approx(4.482, abs=0.02)
    assert found["r2"] == pytest.approx(9.176, abs=0.005)
    assert found["pearson"] == 0
    assert np.isnan(found["ssim"])
