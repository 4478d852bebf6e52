from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from core.schedule import EpochPlan, learning_rate_factor

NUM_SAMPLES = 11


def test_every_sample_comes_once_per_epoch_before_any_comes_twice() -> None:
    plan = EpochPlan(NUM_SAMPLES, batch_size=4, accumulate=2, seed=0)
    for epoch in range(3):
        order = list(itertools.chain(*plan.batches(epoch)))
        assert sorted(order[:NUM_SAMPLES]) == list(range(NUM_SAMPLES))
        assert order[NUM_SAMPLES:] == order[:1]
    assert plan.batches(0) != plan.batches(1)
    assert plan.batches(0) != replace(plan, seed=1).batches(0)
    assert [plan.batches_in_step(step) for step in range(plan.num_steps)] == [2, 1]


def test_a_dataset_smaller_than_a_batch_fills_one() -> None:
    assert sorted(EpochPlan(2, batch_size=5, accumulate=1, seed=0).batches(0)[0]) in (
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
    )


def test_a_stream_started_in_the_middle_goes_on_as_the_whole_one() -> None:
    plan = EpochPlan(NUM_SAMPLES, batch_size=2, accumulate=2, seed=0)
    whole = list(plan.stream(0, 0, 3))
    assert list(plan.stream(1, 2, 3)) == whole[6 + 4 :]
    assert whole[7][0][0] == 1


def test_processes_share_every_batch() -> None:
    plan = EpochPlan(NUM_SAMPLES, batch_size=4, accumulate=1, seed=0)
    shares = [list(plan.stream(0, 0, 2, process, 2)) for process in range(2)]
    for batch, first, second in zip(plan.stream(0, 0, 2), *shares, strict=True):
        assert len(first) == len(second) == 2
        assert sorted(first + second) == sorted(batch)


def test_the_learning_rate_climbs_linearly_and_falls_along_a_cosine() -> None:
    factors = [learning_rate_factor(step, 11, 4, 0.2, 0.1) for step in range(11)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[7] == pytest.approx((1 + 0.1) / 2)  # half of the way from 4 to 10
    assert factors[5] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2)
    assert factors[-1] == pytest.approx(0.1)
    assert learning_rate_factor(0, 11, 0, 0.2, 0.1) == 1
    assert learning_rate_factor(0, 1, 0, 0.2, 0.1) == 1
    assert learning_rate_factor(4, 5, 4, 0.2, 0.1) == 1  # the peak is the last step
