"""Networks of any encoder, decoder and head keep the size of what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.encoder_decoder import EncoderDecoder


class Halve(nn.Module):
    def forward(self, x, *condition):
        return [x, x[(..., *[slice(None, None, 4)] * (x.ndim - 2))]]


class Scale(nn.Module):
    def forward(self, features, *condition):
        x = features[0] if isinstance(features, list) else features
        return x * (condition[0] if condition else 1)


@pytest.mark.parametrize("shape", [(5, 7, 6), (7, 6)])
def test_the_prediction_has_the_size_of_the_input_and_each_part_the_condition(shape):
    network = EncoderDecoder(Halve(), Scale(), Scale(), multiple=4)
    x = torch.randn(2, 1, *shape)
    assert torch.equal(network(x), x)
    assert torch.equal(network(x, 3.0), x * 3 * 3)
