"""The squared error counts what is valid, and nothing else."""

from __future__ import annotations

import pytest
import torch

from ssp.losses import squared_error


def test_it_is_the_mean_over_the_valid_voxels_of_the_batch():
    predicted, target = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 5.0]]]]), torch.zeros(2, 1, 1, 2)
    assert squared_error(predicted, target).item() == pytest.approx((1 + 4 + 9 + 25) / 4)
    valid = torch.tensor([1, 0, 1, 0]).view(2, 1, 1, 2)
    assert squared_error(predicted, target, valid).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("ignored", [torch.nan, torch.inf])
def test_ignored_voxels_change_neither_value_nor_gradient(ignored):
    predicted = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    target, valid = torch.tensor([0.0, ignored]).view(1, 1, 1, 2), torch.tensor([[[[1, 0]]]])
    loss = squared_error(predicted, target, valid)
    loss.backward()
    assert loss.item() == 1
    assert predicted.grad.flatten().tolist() == [2, 0]


def test_without_valid_voxels_it_is_0_with_zero_gradient():
    predicted = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = squared_error(predicted, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad.abs().sum() == 0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"target is \(1, 1, 2\), the prediction is \(1, 1, 3\)"):
        squared_error(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match=r"valid is \(1, 1, 2\), the prediction is \(1, 1, 3\)"):
        squared_error(*torch.zeros(2, 1, 1, 3), valid=torch.zeros(1, 1, 2))
