"""Random inputs for exported networks: their shapes, their range, and noise of several scales."""

from __future__ import annotations

import torch

from core.signature import Input, Signature

TILES = Input("tiles", torch.uint8, ("N", 6, "Y", "X"), 10, 200)
SIGNATURE = Signature(
    (TILES, Input("scale", torch.float32, (), 0.5, 0.6)), "map", ("N", 1, "Y", "X"),
    {"Y": 4, "X": 8},
)  # fmt: skip


def test_lengths_are_multiples_and_values_in_range():
    tiles, scale = SIGNATURE.sample(3, (2, 3))
    assert (tiles.shape, tiles.dtype) == ((3, 6, 8, 24), torch.uint8)
    assert (scale.shape, scale.dtype) == ((), torch.float32)
    assert 10 <= tiles.min() < 20
    assert 190 < tiles.max() < 200
    assert 0.5 <= scale <= 0.6


def test_the_same_call_gives_the_same_values():
    assert torch.equal(SIGNATURE.sample(3, (2, 3))[0], SIGNATURE.sample(3, (2, 3))[0])


def test_each_sample_is_noise_in_blocks_of_twice_the_size():
    tiles, _ = SIGNATURE.sample(3, (4, 2))
    for n, block in enumerate((1, 2, 4)):
        corners = tiles[n, ::block, ::block, ::block]
        for axis in range(3):
            corners = corners.repeat_interleave(block, axis)
        assert torch.equal(tiles[n], corners[:6, :16, :16])
        assert len(tiles[n].unique()) > 16
