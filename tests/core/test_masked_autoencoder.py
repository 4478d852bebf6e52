"""Masked autoencoding: what is hidden, what is counted, and what the light decoder returns."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch

from core.masked_autoencoder import (
    MaskConfig,
    VolumeAutoencoder,
    _eight_voxels,
    block_statistics,
    hidden_error,
    hidden_voxels,
    hide,
)
from core.unet3d import Encoder, Parts, PlainConv

SHAPE = (6, 20, 16)
DEFAULT = MaskConfig()


def drawn(seed: int = 0, config: MaskConfig = DEFAULT) -> np.ndarray:
    return hidden_voxels(SHAPE, config, np.random.default_rng(seed))


def blocks_of(shape: tuple[int, int, int], block: tuple[int, int, int]):
    """Yield the slices of every block, the last ones cut."""
    starts = (range(0, length, side) for length, side in zip(shape, block, strict=True))
    for corner in product(*starts):
        yield tuple(slice(a, a + side) for a, side in zip(corner, block, strict=True))


@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.9])
def test_whole_blocks_are_hidden_as_many_as_the_ratio_says(ratio):
    config = MaskConfig(block=(2, 4, 4), ratio=ratio)
    hidden = drawn(config=config)
    shares = [hidden[block].mean() for block in blocks_of(SHAPE, config.block)]
    assert set(shares) == {0.0, 1.0}
    assert sum(shares) == round(ratio * 3 * 5 * 4)


def test_what_is_hidden_follows_from_the_generator_alone():
    assert np.array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))


def test_every_block_is_hidden_now_and_then():
    often = np.mean([drawn(seed, MaskConfig((3, 4, 4), 0.5)) for seed in range(200)], axis=0)
    assert 0.3 < often.min() < often.max() < 0.7


def test_hidden_voxels_hold_the_mean_of_the_visible_ones_of_their_sample():
    x = torch.randn(2, 1, *SHAPE) + torch.tensor([5.0, -3.0]).view(2, 1, 1, 1, 1)
    hidden = torch.from_numpy(np.stack([drawn(0), drawn(1)]))[:, None]
    found = hide(x, hidden)
    for sample, mask, result in zip(x, hidden, found, strict=True):
        assert torch.equal(result[~mask], sample[~mask])
        assert torch.allclose(result[mask], sample[~mask].mean())
    changed = torch.where(hidden, torch.tensor(torch.nan), x)
    assert torch.equal(hide(changed, hidden), found)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_counts_hidden_voxels_only(normalize):
    config = MaskConfig(normalize_blocks=normalize)
    hidden = torch.from_numpy(drawn())[None, None]
    x, noise = torch.randn(1, 1, *SHAPE), torch.randn(1, 1, *SHAPE)
    prediction = torch.randn(1, 1, *SHAPE, requires_grad=True)
    loss = hidden_error(prediction, config.target(x), hidden)
    expected = (prediction - config.target(x))[hidden].square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (prediction.grad[~hidden] == 0).all()
    assert (prediction.grad[hidden] != 0).all()
    other_x = torch.where(hidden, x, noise)
    other_prediction = torch.where(hidden, prediction, torch.nan)
    assert torch.equal(hidden_error(other_prediction, config.target(other_x), hidden), loss)
    hidden_change = torch.where(hidden, noise, x)
    assert not torch.equal(hidden_error(prediction, config.target(hidden_change), hidden), loss)


@pytest.mark.parametrize("block", [(4, 8, 8), (6, 20, 16), (1, 3, 5)])
def test_blocks_are_normalised_as_one_by_one(block):
    x = 3 + 2 * torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    mean, std = block_statistics(x, block)
    for sample in range(2):
        for at in blocks_of(SHAPE, block):
            values = x[sample, 0][at]
            expected = values.var(correction=0).add(1e-6).sqrt()
            torch.testing.assert_close(mean[sample, 0][at], values.mean().expand_as(values))
            torch.testing.assert_close(std[sample, 0][at], expected.expand_as(values))


@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_told_can_be_turned_back_into_values(normalize):
    config = MaskConfig(normalize_blocks=normalize)
    x = 3 + 2 * torch.randn(2, 1, *SHAPE)
    assert torch.allclose(config.target(x), x) != normalize
    torch.testing.assert_close(config.values(config.target(x), x), x)


def test_each_position_tells_the_eight_voxels_it_stands_for():
    volume = torch.arange(4 * 6 * 2.0).view(1, 1, 4, 6, 2)
    octants = [volume[:, :, z::2, y::2, x::2] for z, y, x in product((0, 1), repeat=3)]
    assert torch.equal(_eight_voxels(torch.cat(octants, dim=1)), volume)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_the_autoencoder_returns_volumes_of_any_size_and_trains_all_of_the_encoder(num_stages):
    torch.manual_seed(0)
    model = VolumeAutoencoder(Encoder(Parts(PlainConv), 1, 2, num_stages), 2, num_stages)
    x = torch.randn(2, 1, 7, 17, 22)
    out = model(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


def test_it_learns_what_lies_behind_a_mask():
    """Stripes that go on behind hidden blocks are told far better than by their mean."""
    torch.manual_seed(0)
    model = VolumeAutoencoder(Encoder(Parts(PlainConv), 1, 4, 2), 4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config = MaskConfig(block=(2, 4, 4), ratio=0.4)
    rng = np.random.default_rng(0)
    phase = torch.arange(4).view(4, 1, 1, 1, 1)
    x = torch.sin((torch.arange(16) + phase) * (torch.pi / 4)).expand(4, 1, 4, 16, 16)
    errors = []
    for _ in range(60):
        masks = [hidden_voxels((4, 16, 16), config, rng) for _ in x]
        hidden = torch.from_numpy(np.stack(masks))[:, None]
        loss = hidden_error(model(hide(x, hidden)), config.target(x), hidden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert np.mean(errors[-5:]) < 0.2 * x.var().item()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": 0.0}, "mask.ratio is 0.0; allowed is above 0 and below 1"),
        ({"ratio": 1.0}, "mask.ratio is 1.0; allowed"),
        ({"ratio": float("nan")}, "mask.ratio is nan; allowed"),
        ({"block": (4, 0, 8)}, "mask.block (4, 0, 8) is not (layers, rows, columns)"),
        ({"block": (8, 8)}, "mask.block (8, 8) is not"),
    ],
)
def test_impossible_masks_are_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        MaskConfig(**settings)


def test_a_mask_that_would_hide_nothing_or_all_is_refused():
    for block, ratio, hides in (((6, 20, 16), 0.5, "0 of the 1"), ((3, 20, 16), 0.9, "2 of the 2")):
        with pytest.raises(ValueError, match=f"hides {hides} blocks of .* take smaller blocks"):
            drawn(config=MaskConfig(block, ratio))
