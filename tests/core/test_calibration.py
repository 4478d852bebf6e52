"""Calibration, temperature and risk against plain sums over all pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.calibration import (
    NUM_RELIABILITY_BINS,
    LogitHistogram,
    Reliability,
    RiskCoverage,
    logit,
    tempered,
)


def pixels(seed: int = 0, size: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated float32 probabilities, 0 and 1 among them, and their truth."""
    rng = np.random.default_rng(seed)
    prob = rng.beta(0.4, 1.2, size)
    return prob.astype(np.float32), rng.random(size) < prob


def in_pieces(counter, first: np.ndarray, second: np.ndarray):
    for start in range(0, len(first), 3000):
        counter.add(first[start : start + 3000], second[start : start + 3000])
    return counter


def slow_expected_error(prob: np.ndarray, label: np.ndarray) -> float:
    total = 0.0
    edges = np.arange(NUM_RELIABILITY_BINS + 1) / NUM_RELIABILITY_BINS
    for low, high in pairwise(edges):
        chosen = (prob >= low) & ((prob < high) | (high == 1))
        if chosen.any():
            gap = prob[chosen].mean(dtype=np.float64) - label[chosen].mean()
            total += abs(gap) * chosen.mean()
    return total


def slow_log_loss(prob: np.ndarray, label: np.ndarray) -> float:
    p = np.clip(prob.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(label, np.log(p), np.log(1 - p))))


def test_calibration_and_loss_equal_sums_over_all_pixels():
    prob, label = pixels()
    prob[:3], label[:3] = (0.0, 1.0, 1.0), (True, False, True)
    found = in_pieces(Reliability(), prob, label)
    assert found.expected_error() == pytest.approx(slow_expected_error(prob, label), abs=1e-10)
    assert found.cross_entropy() == pytest.approx(slow_log_loss(prob, label), abs=1e-10)
    p = prob.astype(np.float64)
    dice = 1 - 2 * p[label].sum() / (p.sum() + label.sum())
    assert found.dice_loss() == pytest.approx(dice, abs=1e-10)
    mean, share = found.curve()
    top = prob >= 1 - 1 / NUM_RELIABILITY_BINS
    assert (mean[-1], share[-1]) == pytest.approx((p[top].mean(), label[top].mean()))


def test_loss_is_that_of_training_without_smoothing():
    torch = pytest.importorskip("torch")
    from core.losses import MapLoss

    prob, label = pixels(size=4000)
    prob = prob.clip(1e-6, 1 - 1e-6)
    maps = [torch.from_numpy(x.astype(np.float64)).reshape(1, 1, 40, 100) for x in (prob, label)]
    loss, parts = MapLoss(smoothing=0.0)(torch.logit(maps[0]), maps[1])
    found = in_pieces(Reliability(), prob, label)
    assert found.cross_entropy() == pytest.approx(float(parts["bce"]), abs=1e-10)
    assert found.dice_loss() == pytest.approx(float(parts["dice"]), abs=1e-10)
    assert (found.cross_entropy() + found.dice_loss()) / 2 == pytest.approx(float(loss))


def test_nothing_counted_is_no_error():
    empty = Reliability()
    assert (empty.expected_error(), empty.cross_entropy(), empty.dice_loss()) == (0, 0, 0)
    assert (RiskCoverage().area(), RiskCoverage().error_rate()) == (0, 0)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_was_done_to_the_logits(true_temperature):
    calibrated, label = pixels(size=200_000)
    prob = tempered(calibrated, 1 / true_temperature)
    found = in_pieces(LogitHistogram(), prob, label).temperature()
    assert found == pytest.approx(true_temperature, rel=0.03)
    before, after = (in_pieces(Reliability(), p, label) for p in (prob, tempered(prob, found)))
    assert after.expected_error() < 0.004
    if true_temperature != 1:
        assert before.expected_error() > 5 * after.expected_error()


def test_temperature_has_the_least_loss_over_all_pixels():
    """The slow twin: every pixel's own loss at every temperature of a fine list."""
    prob, label = pixels(3)
    prob = tempered(prob, 0.4)
    found = in_pieces(LogitHistogram(), prob, label).temperature()
    tried = np.exp(np.linspace(-1, 2, 1501))
    losses = [slow_log_loss(tempered(prob, t), label) for t in tried]
    assert found == pytest.approx(tried[int(np.argmin(losses))], rel=0.004)


def test_calibration_and_risk_of_two_parts_add_up():
    rng = np.random.default_rng(3)
    prob, label = rng.random(400, dtype=np.float32), rng.random(400) < 0.4
    reliabilities, risks = [], []
    for part in (slice(0, 150), slice(150, 400), slice(0, 400)):
        reliabilities.append(Reliability())
        reliabilities[-1].add(prob[part], label[part])
        risks.append(RiskCoverage())
        risks[-1].add(prob[part], label[part])
    first, second, whole = reliabilities
    added = first + second
    for one in ("expected_error", "cross_entropy", "dice_loss"):
        assert getattr(added, one)() == pytest.approx(getattr(whole, one)())
    np.testing.assert_allclose(added.curve(), whole.curve())
    np.testing.assert_array_equal((risks[0] + risks[1]).curve(), risks[2].curve())


def test_histograms_of_logits_add_up():
    prob, label = pixels()
    whole = in_pieces(LogitHistogram(), prob, label)
    parts = [in_pieces(LogitHistogram(), prob[i::2], label[i::2]) for i in (0, 1)]
    summed = parts[0] + parts[1]
    np.testing.assert_array_equal(summed.counts, whole.counts)
    assert summed.temperature() == pytest.approx(whole.temperature(), rel=1e-9)
    assert parts[0].temperature() != parts[1].temperature()


@pytest.mark.parametrize("kind", [False, True])
def test_temperature_needs_both_kinds_of_pixels(kind):
    prob, _ = pixels(size=100)
    one_kind = in_pieces(LogitHistogram(), prob, np.full(100, kind))
    assert not one_kind.has_both()
    with pytest.raises(ValueError, match="needs positive and negative pixels"):
        one_kind.temperature()
    assert (one_kind + in_pieces(LogitHistogram(), prob, np.full(100, not kind))).has_both()


def test_temperature_1_changes_nothing_and_order_stays():
    prob = np.array([1e-5, 0.2, 0.5, 0.999])
    np.testing.assert_allclose(tempered(prob, 1.0), prob, atol=1e-12)
    assert (np.diff(tempered(prob, 7.0)) > 0).all()
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_risk_at_every_coverage_equals_sorting_all_pixels():
    rng = np.random.default_rng(1)
    uncertainty = (rng.integers(0, 100, 5000) / 100) ** 4  # one bin each: the fourth root is exact
    is_wrong = rng.random(5000) < uncertainty
    coverage, risk = in_pieces(RiskCoverage(), uncertainty, is_wrong).curve()
    levels = np.unique(uncertainty)
    assert len(coverage) == len(levels) == 100
    for level, share, rate in zip(levels, coverage, risk, strict=True):
        kept = uncertainty <= level
        assert (share, rate) == pytest.approx((kept.mean(), is_wrong[kept].mean()))


def test_area_of_risk_equals_that_over_sorted_pixels():
    rng = np.random.default_rng(2)
    uncertainty = rng.random(20000) ** 3
    is_wrong = rng.random(20000) < 0.4 * uncertainty
    found = in_pieces(RiskCoverage(), uncertainty, is_wrong)
    in_order = is_wrong[np.argsort(uncertainty)]
    area = np.mean(np.cumsum(in_order) / np.arange(1, 20001))
    assert found.area() == pytest.approx(area, abs=2e-4)
    pairs = uncertainty[is_wrong][:, None] > uncertainty[~is_wrong][None]
    assert found.finds_errors() == pytest.approx(pairs.mean(), abs=1e-3)
    perfect = np.mean(np.cumsum(np.sort(is_wrong)) / np.arange(1, 20001))
    assert found.least_area() == pytest.approx(perfect, abs=1e-4)
    assert found.error_rate() == pytest.approx(is_wrong.mean())
    assert found.least_area() < found.area() < found.error_rate()


def test_small_uncertainties_are_told_apart():
    found = in_pieces(RiskCoverage(), np.array([1e-9, 1e-7, 1e-5]), np.array([False, False, True]))
    assert found.finds_errors() == 1.0


def test_uncertainty_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"allowed is 0\.\.1"):
        RiskCoverage().add(np.array([1.5]), np.array([True]))
