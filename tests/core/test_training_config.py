from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from core.training_config import TrainingConfig

CONFIG = TrainingConfig(epochs=3, batch_size=2, learning_rate=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, allowed is 1 or more"),
        ({"learning_rate": math.nan}, "learning_rate is nan, allowed is above 0"),
        ({"warmup_epochs": 3}, r"warmup_epochs is 3, allowed is 0 or more and below epochs \(3\)"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"precision": "fp8"}, "precision is 'fp8', allowed is 'auto', 'no', 'bf16' or 'fp16'"),
        ({"seed": -1}, "seed is -1"),
        ({"reference_samples": -1}, r"reference_samples is -1, allowed is 0 \(no scaling\) or"),
        ({"seed": 2**31}, r"seed is 2147483648, allowed is 0 to 2147483647"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "reference_samples", "expected"),
    [(2, 1, 0, 0.05), (8, 4, 0, 0.05), (2, 1, 2, 0.05), (8, 1, 2, 0.2), (2, 4, 16, 0.025)],
)
def test_the_peak_grows_with_the_samples_of_a_step(
    batch_size: int, accumulate: int, reference_samples: int, expected: float
) -> None:
    config = replace(
        CONFIG,
        batch_size=batch_size,
        accumulate=accumulate,
        reference_samples=reference_samples,
    )
    assert config.peak_learning_rate == pytest.approx(expected)
