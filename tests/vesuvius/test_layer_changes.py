from __future__ import annotations

import numpy as np

from vesuvius.layer_changes import move_run


def test_a_run_keeps_its_order_at_any_depth_and_the_rest_is_blank():
    patch = np.arange(1, 9, dtype=np.uint8) * np.ones((3, 2, 1), np.uint8)
    seen = set()
    for seed in range(2000):
        moved = move_run(patch, 0.5, 99, np.random.default_rng(seed))
        assert (moved == moved[0, 0]).all()
        layers = moved[0, 0]
        kept = np.flatnonzero(layers != 99)
        assert (np.diff(kept) == 1).all()
        assert (np.diff(layers[kept].astype(int)) == 1).all()
        seen.add((len(kept), int(layers[kept[0]]) - 1, int(kept[0])))
    expected = {
        (length, start, target)
        for length in range(4, 9)
        for start in range(9 - length)
        for target in range(9 - length)
    }
    assert seen == expected  # the first and the last place of each occur, none beyond


def test_a_share_of_one_keeps_the_patch():
    patch = np.random.default_rng(0).integers(0, 256, (4, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(move_run(patch, 1.0, 0, np.random.default_rng(1)), patch)
