"""The options of the ink network change what they say, and nothing by default."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from core.collapse import COLLAPSES, ZAsChannels
from core.map_networks import CollapsedUNet, UNetThenCollapse
from core.mode import MoDE
from vesuvius.networks.registry import build_network
from vesuvius.networks.repmode import RepModeConfig

TINY = RepModeConfig(base_channels=1, num_stages=1, largest_expert=3)


def kinds(network: nn.Module) -> set[type]:
    return {type(module) for module in network.modules()}


def test_default_decodes_in_2d_with_z_as_channels():
    model = build_network(TINY, num_layers=4, num_tasks=1)
    assert {CollapsedUNet, ZAsChannels} <= kinds(model)
    ranks = {m.kernels[0].ndim - 2 for m in model.network.decoder.modules() if type(m) is MoDE}
    assert ranks == {2}


def test_3d_decoder_collapses_once_at_the_end():
    model = build_network(replace(TINY, decoder="3d"), num_layers=4, num_tasks=1)
    assert UNetThenCollapse in kinds(model)
    ranks = {m.kernels[0].ndim - 2 for m in model.modules() if type(m) is MoDE}
    assert ranks == {3}
    assert sum(type(m) is ZAsChannels for m in model.modules()) == 1


def test_every_decoder_and_collapse_makes_another_network():
    made = set()
    for decoder, collapse in product(["2d", "3d"], COLLAPSES):
        torch.manual_seed(0)
        config = replace(TINY, decoder=decoder, collapse=collapse)
        model = build_network(config, num_layers=5, num_tasks=2).eval()
        with torch.no_grad():
            out = model(torch.ones(2, 1, 5, 3, 4).cumsum(2), torch.tensor([0, 1]))
        assert out.shape == (2, 1, 3, 4)
        made.add(tuple(out.flatten().tolist()))
    assert len(made) == 12


def test_unknown_collapse_is_refused():
    with pytest.raises(ValueError, match="unknown collapse 'sum'"):
        build_network(replace(TINY, collapse="sum"), num_layers=4, num_tasks=1)
