from __future__ import annotations

import numpy as np
import pytest

from core.metrics import NUM_BINS, THRESHOLDS, ProbabilityHistogram, fbeta


def random_maps(seed: int = 0, size: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.random(size) < 0.3
    prob = np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1).astype(np.float32)
    prob[: NUM_BINS + 1] = THRESHOLDS  # values exactly on every bin edge, 0 and 1 included
    return prob, label, rng.random(size) < 0.8


def histogram_of(*pieces: tuple[np.ndarray, ...]) -> ProbabilityHistogram:
    histogram = ProbabilityHistogram()
    for piece in pieces:
        histogram.add(*piece)
    return histogram


def test_confusion_at_every_threshold_equals_counting_pixels() -> None:
    prob, label, valid = random_maps()
    tp, fp, fn = histogram_of((prob, label, valid)).confusion()
    for k in range(0, NUM_BINS + 1, 7):
        positive = prob >= k / NUM_BINS
        assert tp[k] == np.sum(positive & label & valid)
        assert fp[k] == np.sum(positive & ~label & valid)
        assert fn[k] == np.sum(~positive & label & valid)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_probability_equal_to_the_threshold_is_positive_in_every_dtype(dtype: type) -> None:
    prob = THRESHOLDS.astype(dtype)  # k/1024 is exact in all three
    tp, _, fn = histogram_of((prob, np.ones(prob.shape, dtype=bool))).confusion()
    np.testing.assert_array_equal(tp, NUM_BINS + 1 - np.arange(NUM_BINS + 1))
    np.testing.assert_array_equal(fn, np.arange(NUM_BINS + 1))


def test_streamed_pieces_and_sums_of_histograms_equal_one_call() -> None:
    prob, label, valid = random_maps()
    whole = histogram_of((prob, label, valid))
    pieces = [
        (prob[i : i + 700], label[i : i + 700], valid[i : i + 700]) for i in range(0, 4000, 700)
    ]
    np.testing.assert_array_equal(histogram_of(*pieces).counts, whole.counts)
    summed = histogram_of(*pieces[:2]) + histogram_of(*pieces[2:])
    np.testing.assert_array_equal(summed.counts, whole.counts)


def test_invalid_pixels_may_hold_anything() -> None:
    prob, label, valid = random_maps()
    expected = histogram_of((prob[valid], label[valid]))
    prob[~valid] = np.nan
    np.testing.assert_array_equal(histogram_of((prob, label, valid)).counts, expected.counts)


def test_best_threshold_equals_exhaustive_search() -> None:
    prob, label, valid = random_maps()
    scores = []
    for threshold in THRESHOLDS:
        positive = (prob >= threshold)[valid]
        tp = np.sum(positive & label[valid])
        precision, recall = tp / max(positive.sum(), 1), tp / label[valid].sum()
        total = 0.25 * precision + recall
        scores.append(1.25 * precision * recall / total if total else 0.0)
    threshold, score = histogram_of((prob, label, valid)).best_threshold(beta=0.5)
    assert score == pytest.approx(max(scores), abs=1e-12)
    assert scores[round(threshold * NUM_BINS)] == pytest.approx(max(scores), abs=1e-12)
    assert histogram_of((prob, label, valid)).fbeta_at(threshold) == score


def test_best_threshold_lies_in_the_middle_of_a_gap() -> None:
    histogram = histogram_of((np.array([0.1, 0.9]), np.array([False, True])))
    threshold, score = histogram.best_threshold()
    assert score == 1
    assert threshold == pytest.approx(0.5, abs=2 / NUM_BINS)


def test_average_precision_equals_the_sum_over_ranked_predictions() -> None:
    rng = np.random.default_rng(1)
    prob = rng.permutation(NUM_BINS)[:300] / NUM_BINS  # distinct bins: no ties, so exact
    label = rng.random(300) < prob
    order = np.argsort(-prob)
    hits = np.cumsum(label[order])
    expected = np.sum(hits / np.arange(1, 301) * label[order]) / label.sum()
    assert histogram_of((prob, label)).average_precision() == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_have_defined_ends() -> None:
    empty = histogram_of((np.array([0.2, 0.4]), np.array([False, False])))
    precision, recall = empty.precision_recall()
    assert precision[-1] == 1
    assert not recall.any()
    assert empty.best_threshold()[1] == 0
    assert empty.average_precision() == 0


def test_fbeta_is_the_weighted_harmonic_mean_and_0_without_positives() -> None:
    precision, recall = 6 / 8, 6 / 10
    assert fbeta(6, 2, 4) == pytest.approx(1.25 * precision * recall / (0.25 * precision + recall))
    assert fbeta(6, 2, 4, beta=1) == pytest.approx(2 * precision * recall / (precision + recall))
    np.testing.assert_array_equal(fbeta([0, 5], [0, 0], [0, 0]), [0, 1])


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_a_probability_outside_0_to_1_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"allowed is 0\.\.1 without NaN"):
        histogram_of((np.array([0.5, bad]), np.array([True, False])))


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prob \(2,\), label \(3,\)"):
        histogram_of((np.zeros(2), np.zeros(3)))
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        ProbabilityHistogram().fbeta_at(1.5)


def test_roc_auc_equals_comparing_every_pair() -> None:
    prob, label, _ = random_maps(size=1500)
    prob = np.floor(prob * NUM_BINS) / NUM_BINS  # pixels of one bin are equal
    positives, negatives = prob[label][:, None], prob[~label][None]
    expected = np.mean((positives > negatives) + 0.5 * (positives == negatives))
    assert histogram_of((prob, label)).roc_auc() == pytest.approx(expected, abs=1e-12)


def test_roc_auc_of_one_class_is_that_of_chance() -> None:
    assert histogram_of((np.array([0.2, 0.9]), np.array([True, True]))).roc_auc() == 0.5


def test_share_above_each_threshold_equals_counting() -> None:
    prob, label, valid = random_maps()
    share = histogram_of((prob, label, valid)).share_at_least()
    for k in range(0, NUM_BINS + 1, 64):
        assert share[k] == pytest.approx(np.mean(prob[valid] >= k / NUM_BINS))
