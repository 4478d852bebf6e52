"""Which Monte Carlo samples are drawn."""

from __future__ import annotations

import pytest

from core.samples import SampleConfig


def test_there_is_no_noise_without_samples():
    assert SampleConfig().noise(0.3) == {}


@pytest.mark.parametrize(
    ("options", "trained_with", "noise"),
    [
        ({}, 0.0, {"mc_dropout": 0.05, "gate_noise": 0.1, "seed": 0}),
        ({}, 0.3, {"mc_dropout": 0.3, "gate_noise": 0.1, "seed": 0}),
        ({"mc_dropout": 0.0, "seed": 7}, 0.3, {"mc_dropout": 0.0, "gate_noise": 0.1, "seed": 7}),
        ({"gate_noise": 0.0}, 0.3, {"mc_dropout": 0.3, "gate_noise": 0.0, "seed": 0}),
    ],
)
def test_what_is_not_given_has_a_default(options, trained_with, noise):
    assert SampleConfig(mc_samples=2, **options).noise(trained_with) == noise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mc_samples": 0}, "mc_samples 0 is below 1"),
        ({"mc_samples": 2, "mc_dropout": 1.0}, r"mc_dropout 1\.0 is outside"),
        ({"mc_samples": 2, "gate_noise": -1.0}, r"gate_noise -1\.0 is no standard deviation"),
        ({"seed": 1}, "seed means nothing for 1 sample"),
        ({"mc_samples": 2, "mc_dropout": 0.0, "gate_noise": 0.0}, "make 2 samples alike"),
    ],
)
def test_samples_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SampleConfig(**options)
