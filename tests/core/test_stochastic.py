"""A sample is one network: the same masks in any batch, and the given model left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from core.deploy import specialize
from core.extend import extend
from core.mode import MoDE
from core.stochastic import GateNoise, SeededDropout, draw_sample, place, random_words
from core.unet3d import ConvNormAct, RepModeUNet

CORNERS = [(0, 0, 0), (0, 8, 0), (0, 0, 8), (16, 8, 8)]


def model(dropout: float = 0.0, num_tasks: int = 2) -> RepModeUNet:
    torch.manual_seed(0)
    network = RepModeUNet(num_tasks, base_channels=2, num_stages=2, dropout=dropout)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # else folding them would change nothing
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def tiles(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def predicted(network: nn.Module, x: torch.Tensor, corners, *task: torch.Tensor) -> torch.Tensor:
    place(network, corners, x.shape[2:])
    with torch.no_grad():
        return network(x, *task)


def sample(index: int = 0, seed: int = 7, dropout: float = 0.3, gate_noise: float = 0.2):
    return draw_sample(model(), seed, index, dropout, gate_noise)


def dropouts(network: nn.Module) -> list[SeededDropout]:
    return [module for module in network.modules() if isinstance(module, SeededDropout)]


def signed(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def word_in_python(offset: int, factor: int, point: tuple[int, ...]) -> int:
    """The slow twin: whole numbers one by one, as the reference writes the hash."""
    h = offset % 2**32
    for coordinate in point:
        h = (h + coordinate * (factor | 1)) % 2**32
        h = (h ^ (h >> 16)) * 0x7FEB352D % 2**32
        h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
        h ^= h >> 16
    return signed(h)


def test_random_words_are_those_of_the_plain_hash():
    axes = [[[0, 1, 2]], [[-2, -1], [0, 5], [7, 2**31 - 1]], [[3, 4], [4, 5], [-(2**31), 9]]]
    positions = [torch.tensor(axis, dtype=torch.int32) for axis in axes]
    for offset, factor in ((3, 6), (-5, -(2**31)), (2**31 - 1, 12345677)):
        words = random_words(offset, factor, positions)
        assert words.shape == (3, 3, 2, 2)
        for index in np.ndindex(3, 3, 2, 2):
            tile, *others = index
            point = [
                axis[min(tile, len(axis) - 1)][i] for axis, i in zip(axes, others, strict=True)
            ]
            assert words[index] == word_in_python(offset, factor, tuple(point))


def test_masks_have_their_probability_and_know_nothing_of_each_other():
    dropout = SeededDropout(0.2, (7, 0, "layer"))
    place(dropout, [(0, 0), (0, 64), (64, 0)], (32, 32))
    masks = [dropout.dropped((3, 8, 16, 32, 32), "cpu")]
    for key in ((8, 0, "layer"), (7, 1, "layer"), (7, 0, "other")):
        other = SeededDropout(0.2, key)
        place(other, [(0, 0)], (32, 32))
        masks.append(other.dropped((1, 8, 16, 32, 32), "cpu"))
    flat = torch.cat(masks).flatten(1).double()
    five_sigma = 5 / flat.shape[1] ** 0.5
    assert (flat.mean(1) - 0.2).abs().max() < 0.4 * five_sigma
    off_diagonal = torch.corrcoef(flat) - torch.eye(len(flat))
    assert off_diagonal.abs().max() < five_sigma
    # neighbours in each direction within one mask
    for axis in range(1, 5):
        mask = masks[0][0].double()
        left, right = mask.narrow(axis - 1, 0, 7), mask.narrow(axis - 1, 1, 7)
        pair = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))
        assert pair[0, 1].abs() < 5 / left.numel() ** 0.5


def test_dropout_keeps_the_mean_and_zeroes_what_its_mask_says():
    dropout = SeededDropout(0.25, (1, 2, "layer"))
    place(dropout, [(0, 0)], (32, 32))
    x = torch.ones(1, 4, 32, 32)
    dropped, out = dropout.dropped(x.shape, "cpu"), dropout(x)
    assert (out[dropped] == 0).all()
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 4 / 3))
    assert abs(out.mean() - 1) < 0.05
    assert (x == 1).all()


def masked(dropout: SeededDropout, shape: tuple[int, ...], corners, tile) -> torch.Tensor:
    place(dropout, corners, tile)
    return dropout.dropped((len(corners), *shape), "cpu")


def test_masks_lie_in_the_field_whatever_the_tiles_and_their_batch():
    dropout = SeededDropout(0.5, (7, 0, "layer"))
    field = masked(dropout, (3, 5, 32, 48), [(0, 0)], (32, 48))[0]
    corners = [(0, 0), (8, 16), (24, 32), (9, 31)]
    for order in (corners, corners[::-1], corners[2:3]):
        found = masked(dropout, (3, 5, 8, 16), [tuple(map(np.int64, c)) for c in order], (8, 16))
        for (y, x), mask in zip(order, found, strict=True):
            assert torch.equal(mask, field[..., y : y + 8, x : x + 16])


@pytest.mark.parametrize(
    ("tile", "length", "halvings"), [(16, 16, 0), (16, 4, 2), (20, 6, 2), (9, 8, 1), (5, 1, 3)]
)
def test_masks_of_deep_layers_lie_in_the_halved_field(tile, length, halvings):
    """Three halvings pad 20, 9 and 5 to lengths 24, 12, 6, 3, to 16, 8, 4, 2 and 8, 4, 2, 1."""
    dropout = SeededDropout(0.5, (7, 0, "layer"))
    field = masked(dropout, (2, 40, 40), [(0, 0)], (40, 40))[0]
    for corner in (0, 8, 16):
        (mask,) = masked(dropout, (2, length, length), [(corner, 8)], (tile, tile))
        y, x = corner >> halvings, 8 >> halvings
        assert torch.equal(mask, field[:, y : y + length, x : x + length])


def test_masks_stay_what_they_are_from_version_to_version():
    # else samples added later would not belong to those of today
    dropout = SeededDropout(0.5, (7, 3, "network.encoder.stages.0.blocks.0"))
    bits = masked(dropout, (2, 4, 4), [(64, 128)], (4, 4)).flatten().int().tolist()
    assert "".join(map(str, bits)) == "11110010001001101101010100001101"
    noise = GateNoise(1.0, (7, 3, "network.head"))(torch.zeros(1, 2, 2))
    expected = torch.tensor([-0.6743, -0.9371, -0.8543, 0.8846])
    torch.testing.assert_close(noise.flatten(), expected, atol=1e-4, rtol=0)


def test_a_tile_is_predicted_alike_in_any_batch():
    network, x, task = sample(), tiles(), torch.zeros(4, dtype=torch.long)
    whole = predicted(network, x, CORNERS, task)
    backwards = predicted(network, x.flip(0), CORNERS[::-1], task).flip(0)
    torch.testing.assert_close(backwards, whole, atol=1e-6, rtol=1e-5)
    for i in range(4):
        alone = predicted(network, x[i : i + 1], CORNERS[i : i + 1], task[:1])
        torch.testing.assert_close(alone[0], whole[i], atol=1e-6, rtol=1e-5)
    shifted = predicted(network, x, CORNERS[1:] + CORNERS[:1], task)
    assert ((shifted - whole).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize(("dropout", "gate_noise"), [(0.3, 0.0), (0.0, 0.5)])
def test_seed_and_index_name_the_dropout_and_the_gates_of_a_sample(dropout, gate_noise):
    x, task = tiles(), torch.zeros(4, dtype=torch.long)

    def answer(index: int, seed: int) -> torch.Tensor:
        return predicted(sample(index, seed, dropout, gate_noise), x, CORNERS, task)

    first = answer(3, 7)
    torch.testing.assert_close(answer(3, 7), first, atol=0, rtol=0)
    for other in (answer(4, 7), answer(3, 8)):
        assert (other - first).abs().max() > 1e-3


def test_gate_noise_moves_all_tiles_of_a_sample_by_one_network():
    network = sample(dropout=0.0, gate_noise=0.5)
    x, task = tiles(), torch.zeros(4, dtype=torch.long)
    noisy = predicted(network, x, CORNERS, task)
    torch.testing.assert_close(predicted(network, x, CORNERS[::-1], task), noisy, atol=0, rtol=0)
    assert (noisy - predicted(model().eval(), x, CORNERS, task)).abs().max() > 1e-3


def test_gate_noise_has_its_standard_deviation_and_differs_from_gate_to_gate():
    logits = torch.zeros(3, 40, 50)
    noise = GateNoise(0.3, (7, 0, "a"))(logits)
    assert abs(noise[0].std() - 0.3) < 0.02
    assert abs(noise[0].mean()) < 0.03
    torch.testing.assert_close(noise[0], noise[2])  # one noise for all tasks
    other = GateNoise(0.3, (7, 0, "b"))(logits)
    assert torch.corrcoef(torch.stack([noise[0].flatten(), other[0].flatten()]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("task", [0, 1])
def test_a_specialized_sample_is_the_sample(task):
    network = sample()
    plain = specialize(network, task)
    gated = predicted(network, tiles(), CORNERS, torch.full((4,), task))
    torch.testing.assert_close(
        predicted(plain, tiles(), CORNERS), gated, atol=1e-5, rtol=1e-5
    )  # fmt: skip
    assert len(dropouts(plain)) == len(dropouts(network))


@pytest.mark.parametrize("task", [0, 2, 3])
def test_every_gate_of_an_extended_network_moves(task):
    extended = extend(extend(model()))
    drawn = draw_sample(extended, 7, 0, 0.0, 0.5)
    tasks, x = torch.full((4,), task), tiles()
    noisy = predicted(drawn, x, CORNERS, tasks)
    assert (noisy - predicted(extended, x, CORNERS, tasks)).abs().max() > 1e-3
    plain = predicted(specialize(drawn, task), x, CORNERS)
    torch.testing.assert_close(plain, noisy, atol=1e-5, rtol=1e-5)


def test_a_sample_without_noise_is_the_network():
    quiet = sample(dropout=0.0, gate_noise=0.0)
    x, task = tiles(), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(
        predicted(quiet, x, CORNERS, task), predicted(model().eval(), x, CORNERS, task),
        atol=0, rtol=0,
    )  # fmt: skip


def test_every_block_of_experts_gets_dropout_and_every_gate_noise():
    network = sample()
    blocks = [module for module in network.modules() if isinstance(module, ConvNormAct)]
    for block in blocks:
        assert isinstance(block.dropout, SeededDropout) == isinstance(block.conv, MoDE)
    gates = [module.gate for module in network.modules() if isinstance(module, MoDE)]
    assert all(isinstance(gate.perturb, GateNoise) for gate in gates)
    keys = [dropout.key for dropout in dropouts(network)]
    assert len(set(keys)) == len(keys) == len(gates) - 1  # the head has no block around it


def test_the_model_is_left_as_it_was_and_lends_its_parameters():
    given = model(dropout=0.4).train()
    before = copy.deepcopy(given)
    drawn = draw_sample(given, 7, 0, 0.3, 0.2)
    place(drawn, CORNERS, (8, 8, 8))
    with torch.no_grad():
        drawn(tiles(), torch.zeros(4, dtype=torch.long))
    assert given.training
    assert repr(given) == repr(before)
    assert given.state_dict().keys() == before.state_dict().keys()
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name
        assert tensor.data_ptr() == drawn.state_dict()[name].data_ptr(), name
    assert not drawn.training


def test_dropout_that_was_not_told_its_tiles_says_so():
    with pytest.raises(RuntimeError, match="4 tiles come to a dropout that was told of 0"):
        sample()(tiles(), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("dropout", "gate_noise", "says"),
    [(1.0, 0.1, "dropout 1.0"), (-0.1, 0.1, "dropout -0.1"), (float("nan"), 0, "dropout nan"),
     (0.2, -1, "gate noise -1"), (0.2, float("nan"), "gate noise nan")],
)  # fmt: skip
def test_noise_out_of_range_is_refused(dropout, gate_noise, says):
    with pytest.raises(ValueError, match=says):
        draw_sample(model(), 0, 0, dropout, gate_noise)


@pytest.mark.gpu
def test_a_gpu_draws_the_masks_of_the_cpu():
    dropout = SeededDropout(0.2, (7, 0, "layer"))
    place(dropout, CORNERS, (16, 16, 16))
    shape = (4, 3, 16, 16, 16)
    torch.testing.assert_close(dropout.dropped(shape, "cuda").cpu(), dropout.dropped(shape, "cpu"))
    network, task = sample(), torch.zeros(4, dtype=torch.long)
    expected = predicted(network, tiles(), CORNERS, task)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = predicted(network.cuda(), tiles().cuda(), CORNERS, task.cuda()).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
