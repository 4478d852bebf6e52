from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesuvius.label_care import LabelConfig, patch_maps

SIZE = 8
LABEL = np.zeros((24, 26), bool)
LABEL[5:13, 7:16] = True
LABEL[18:, 20:] = True
PAPYRUS = np.ones((24, 26), bool)
PAPYRUS[:, :3] = False
PAPYRUS[15:17, 10:12] = False


def is_near(map_YX: np.ndarray, y: int, x: int, radius: int, value: bool) -> bool:
    """Tell whether a pixel of that value lies within `radius` along y and x."""
    around = map_YX[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
    return bool((around == value).any())


def plain_twin(y: int, x: int, config: LabelConfig) -> tuple[bool, bool]:
    counts = not is_near(PAPYRUS, y, x, config.mask_band, False)
    edge = config.edge_band
    counts &= not (edge and is_near(LABEL, y, x, edge, True) and is_near(LABEL, y, x, edge, False))
    return bool(LABEL[y, x]), counts


@settings(max_examples=60)
@given(st.integers(0, 16), st.integers(0, 18), st.integers(0, 4), st.integers(0, 4))
def test_bands_along_edges_do_not_count(y, x, edge_band, mask_band):
    config = LabelConfig(edge_band, mask_band)
    maps = patch_maps(LABEL, PAPYRUS, (y, x), SIZE, config)
    assert maps.shape == (SIZE, SIZE, 2)
    for row in range(SIZE):
        for column in range(SIZE):
            found = tuple(map(bool, maps[row, column]))
            assert found == plain_twin(y + row, x + column, config)


@pytest.mark.parametrize("name", ["edge_band", "mask_band"])
def test_negative_bands_are_refused(name):
    with pytest.raises(ValueError, match=rf"labels\.{name} is -1; it is at least 0"):
        LabelConfig(**{name: -1})
