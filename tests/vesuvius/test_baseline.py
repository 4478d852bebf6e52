"""The intensity baseline finds what intensity shows, and nothing it was not fitted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.metrics import fbeta
from vesuvius.baseline import fit_baseline
from vesuvius.fragment import Fragment


class Voxels:
    def __init__(self, voxels_ZYX: np.ndarray) -> None:
        self.voxels_ZYX = voxels_ZYX
        self.shape = voxels_ZYX.shape

    def read(self, z_start, z_stop, y_start, y_stop):
        return self.voxels_ZYX[z_start:z_stop, y_start:y_stop]


def fragment(seed: int, contrast: float) -> Fragment:
    """A sheet at layer 12 of 30 with ink of the given contrast in a band of columns."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(60, 10, (30, 96, 96))
    voxels[9:16] += 60
    label = np.zeros((96, 96), bool)
    start = rng.integers(10, 50)
    label[:, start : start + 24] = True
    voxels[8:12][:, label] += contrast
    mask = np.ones((96, 96), bool)
    mask[:5] = False
    return Fragment(
        name=str(seed),
        path=Path(str(seed)),
        layout="tiff",
        source_layout="tiff",
        volume=Voxels(voxels.clip(0, 255).astype(np.uint8)),
        papyrus_mask=mask,
        ink_label=label & mask,
        files=(),
    )


def f05(found: np.ndarray, label: np.ndarray) -> float:
    return float(fbeta((found & label).sum(), (found & ~label).sum(), (~found & label).sum()))


@pytest.mark.parametrize("contrast", [30.0, -30.0])
def test_bright_or_dark_ink_is_found_on_an_unseen_fragment(contrast):
    baseline = fit_baseline([fragment(1, contrast), fragment(2, contrast)])
    unseen = fragment(3, contrast)
    assert baseline.sign == np.sign(contrast)
    assert f05(baseline.predict(unseen), unseen.ink_label) > 0.8
    assert not baseline.predict(unseen)[~unseen.papyrus_mask].any()


def test_ink_without_contrast_is_not_found():
    baseline = fit_baseline([fragment(1, 0.0), fragment(2, 0.0)])
    unseen = fragment(3, 0.0)
    assert f05(baseline.predict(unseen), unseen.ink_label) < 0.4


def test_score_of_the_fit_is_that_of_its_own_prediction():
    labelled = fragment(1, 30.0)
    baseline = fit_baseline([labelled])
    assert f05(baseline.predict(labelled), labelled.ink_label) == pytest.approx(
        baseline.f05, abs=1e-6
    )
