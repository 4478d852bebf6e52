"""Many predictions: streamed = kept in a list, later = at once, views undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.deploy import specialize
from core.inference import stream
from core.stochastic import SeededDropout, draw_sample
from core.tiling import TilePlan
from core.uncertainty import (
    Member,
    Moments,
    ProbabilityMoments,
    View,
    binary_entropy,
    make_members,
    plane_views,
    predictor,
    with_reversed,
    with_shifts,
)
from core.unet3d import RepModeUNet


def maps(count: int, seed: int = 0) -> np.ndarray:
    """Probabilities of all sizes, 0 and 1 among them."""
    rng = np.random.default_rng(seed)
    prob = rng.beta(0.3, 0.3, (count, 5, 7)).astype(np.float32)
    prob[:, 0, 0], prob[:, 0, 1] = 0, 1
    return prob


def moments_of(prob: np.ndarray) -> ProbabilityMoments:
    moments = ProbabilityMoments.empty(prob.shape[1:])
    for one in prob:
        moments.add(one)
    return moments


def entropy_in_python(p: float) -> float:
    return -sum(q * np.log2(q) for q in (p, 1 - p) if q > 0)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_streamed_moments_equal_those_of_a_list(count, seed):
    prob = maps(count, seed).astype(np.float64)
    moments = moments_of(prob)
    mean, mean_entropy = prob.mean(0), np.vectorize(entropy_in_python)(prob).mean(0)
    total = np.vectorize(entropy_in_python)(mean)
    np.testing.assert_allclose(moments.moments.mean, mean, atol=1e-12)
    np.testing.assert_allclose(moments.moments.std(), prob.std(0), atol=1e-12)
    np.testing.assert_allclose(moments.mean_entropy, mean_entropy, atol=1e-12)
    np.testing.assert_allclose(moments.predictive_entropy(), total, atol=1e-12)
    np.testing.assert_allclose(moments.mutual_information(), total - mean_entropy, atol=1e-12)
    assert (moments.mutual_information() >= 0).all()


def test_values_far_from_zero_keep_their_spread():
    values = 1e8 + np.random.default_rng(0).standard_normal((200, 6))
    moments = Moments.empty((6,))
    for value in values:
        moments.add(value)
    np.testing.assert_allclose(moments.std(), values.std(0), rtol=1e-6)


def test_predictions_that_agree_have_no_spread_at_all():
    moments = moments_of(np.repeat(maps(1), 9, axis=0))
    assert not moments.moments.std().any()
    assert not moments.mutual_information().any()
    np.testing.assert_array_equal(moments.moments.mean, maps(1)[0])


def test_entropy_is_in_bits_and_defined_at_the_ends():
    np.testing.assert_allclose(
        binary_entropy(np.array([0, 0.5, 0.25, 1], np.float32)), [0, 1, 0.8112781244591328, 0]
    )
    just_above_1 = np.nextafter(np.float32(1), np.float32(2))  # as blended tiles may be
    assert binary_entropy(just_above_1) == 0


def test_half_zeros_and_half_ones_are_all_disagreement():
    moments = moments_of(np.array([[0.0], [1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(moments.mutual_information(), 1)
    np.testing.assert_allclose(moments.moments.std(), 0.5)


@pytest.mark.parametrize("view", with_reversed(plane_views()))
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 7), (2, 1, 4, 6, 6)])
def test_views_are_undone(view, shape):
    volume = torch.randn(shape)
    torch.testing.assert_close(view.undo(view.apply(volume)), volume, atol=0, rtol=0)
    layers = volume[:, 0]
    depth_lost = view.undo(view.apply(layers).amax(1, keepdim=True))
    torch.testing.assert_close(depth_lost, layers.amax(1, keepdim=True), atol=0, rtol=0)


def test_views_are_all_different_and_the_plain_one_is_first():
    volume = torch.arange(2 * 3 * 3).view(1, 1, 2, 3, 3)
    reversed_too = with_reversed(plane_views())
    for views, count in ((plane_views(), 8), (reversed_too, 16), (with_reversed([View()]), 2)):
        assert len({tuple(view.apply(volume).flatten().tolist()) for view in views}) == count
        assert views[0] == View()


def test_moved_windows_are_cut_from_the_layers_around_near_before_far():
    volume = torch.arange(8 * 2 * 2).view(1, 1, 8, 2, 2)
    moved = with_shifts(with_reversed([View()]), 2, 4)
    seen = [view.apply(volume)[0, 0, :, 0, 0].div(4).int().tolist() for view in moved]
    up, down = [2, 3, 4, 5], [5, 4, 3, 2]
    by = (0, -1, 1, -2, 2)
    assert seen == [[z + shift for z in layers] for shift in by for layers in (up, down)]
    for view in with_shifts(with_reversed(plane_views()), 2, 4):
        lost = view.undo(view.apply(volume[0]).amax(1, keepdim=True))
        expected = volume[0, :, slice(*view.layers)].amax(1, keepdim=True)
        torch.testing.assert_close(lost, expected, atol=0, rtol=0)


def symmetric_convolution() -> nn.Module:
    """A convolution that flips and turns of its input pass through."""
    convolution = nn.Conv3d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    centre = torch.stack(torch.meshgrid(*[torch.arange(3) - 1] * 3, indexing="ij")).abs().sum(0)
    convolution.weight.copy_(centre.float())
    return convolution


def test_all_views_of_an_equivariant_network_agree_with_the_plain_one():
    network, tiles = symmetric_convolution(), torch.randn(2, 1, 6, 8, 8)
    plain = network(tiles)
    for view in with_reversed(plane_views()):
        seen = Member(network, view)(tiles, [(0, 0), (0, 8)])
        torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)


def test_views_of_another_network_do_not_agree():
    network, tiles = nn.Conv3d(1, 1, 3, padding=1), torch.randn(1, 1, 6, 8, 8)
    seen = [Member(network, view)(tiles, [(0, 0)]) for view in with_reversed(plane_views())]
    for number, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-3 for other in seen[:number])


def members() -> list[Member]:
    """Two samples of each of two checkpoints, each through two views."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = RepModeUNet(1, base_channels=1, num_stages=1)
        networks += [specialize(draw_sample(model, 5, s, 0.3, 0.1), 0) for s in range(2)]
    return [Member(network, view) for network in networks for view in plane_views()[3:5]]


PLAN = TilePlan((8, 20, 12), (8, 8, 8), (8, 4, 4))


def streamed(some: list[Member], batch_size: int = 3, plan: TilePlan = PLAN) -> np.ndarray:
    """Return the map of each member (M, Z, Y, X)."""
    source = np.random.default_rng(0).random(plan.shape, np.float32)
    field = np.empty((len(some), *plan.shape), np.float32)

    def write(start: int, stop: int, values: np.ndarray) -> None:
        field[:, start:stop] = values

    inner = predictor(some, "cpu")
    stream(
        plan,
        lambda start, stop: source[start:stop],
        lambda batch, corners: inner(batch[:, None], corners),
        write,
        batch_size=batch_size,
        num_channels=len(some),
    )
    return field


def test_an_ensemble_predicts_what_each_member_does_alone_whatever_the_batches():
    together = streamed(members())
    alone = np.concatenate([streamed([member]) for member in members()])
    np.testing.assert_array_equal(together, alone)
    assert len({one.tobytes() for one in alone}) == len(alone)
    for batch_size in (1, 100):
        np.testing.assert_allclose(streamed(members(), batch_size), together, atol=1e-6)


def test_a_sample_is_one_network_for_the_field_however_it_is_tiled_and_seen():
    """Dropout alone sees no border, so tiles that overlap must agree on what they drop."""
    dropped = [
        Member(SeededDropout(0.5, (1, 2, "layer")), view) for view in with_reversed(plane_views())
    ]
    shape = (12, 20, 16)
    whole = streamed(dropped, plan=TilePlan(shape, shape, shape, "crop"))
    assert 0.4 < (whole == 0).mean() < 0.6
    for tile, stride in (((4, 4, 4), (4, 4, 4)), ((8, 6, 10), (4, 5, 3)), ((5, 7, 3), (2, 7, 1))):
        for kind in ("crop", "gaussian"):
            tiled = streamed(dropped, plan=TilePlan(shape, tile, stride, kind))
            np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_a_predictor_puts_its_networks_into_evaluation_mode():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5)).train()
    tiles = np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
    predict = predictor([Member(network)], "cpu")
    np.testing.assert_allclose(predict(tiles, [(0, 0)] * 2), tiles, rtol=1e-4)


def test_members_are_counted_network_by_network_and_each_network_is_made_once():
    made = []

    def make_network(number):
        made.append(number)
        return nn.Identity()

    views = plane_views()
    members = make_members(range(6, 18), views, make_network)
    assert made == [0, 1, 2]
    assert [member.view for member in members] == [*views[6:], *views, *views[:2]]
    assert len({id(member.network) for member in members}) == 3
    assert members[1].network is not members[2].network is members[9].network


def test_the_plain_view_copies_nothing():
    x = torch.zeros(1, 4, 6, 8)
    assert View().apply(x) is x
    assert View().undo(x) is x
