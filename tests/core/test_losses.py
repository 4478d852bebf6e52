from __future__ import annotations

import numpy as np
import pytest
import torch

from core.losses import DiceBCELoss


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 1, 6, 5)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    label = (torch.rand(shape, generator=generator) < 0.4).double()
    valid = (torch.rand(shape, generator=generator) < 0.7).double()
    return logits, label, valid


def numpy_twin(
    logits: np.ndarray, label: np.ndarray, valid: np.ndarray, smoothing: float, dice_weight: float
) -> float:
    chosen = valid > 0
    prob = 1 / (1 + np.exp(-logits[chosen]))
    y = label[chosen]
    soft = y * (1 - 2 * smoothing) + smoothing
    bce = -np.mean(soft * np.log(prob) + (1 - soft) * np.log(1 - prob))
    dice = 1 - 2 * np.sum(prob * y) / (np.sum(prob) + np.sum(y)) if y.any() else 0.0
    return dice_weight * dice + (1 - dice_weight) * bce


@pytest.mark.parametrize(("smoothing", "dice_weight"), [(0.25, 0.5), (0.0, 0.2), (0.1, 1.0)])
def test_dice_bce_equals_its_numpy_twin_in_float64(smoothing: float, dice_weight: float) -> None:
    logits, label, valid = random_batch()
    loss, parts = DiceBCELoss(smoothing, dice_weight)(logits, label, valid)
    expected = numpy_twin(logits.numpy(), label.numpy(), valid.numpy(), smoothing, dice_weight)
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    weighted = dice_weight * parts["dice"] + (1 - dice_weight) * parts["bce"]
    assert weighted.item() == pytest.approx(loss.item(), abs=1e-12)


def test_the_gradient_is_that_of_the_numpy_twin() -> None:
    logits, label, valid = random_batch()
    logits.requires_grad_()
    DiceBCELoss()(logits, label, valid)[0].backward()
    step = 1e-6
    for index in [(0, 0, 0, 0), (1, 0, 3, 2), (2, 0, 5, 4)]:
        shifted = [logits.detach().numpy().copy() for _ in range(2)]
        shifted[0][index] += step
        shifted[1][index] -= step
        high, low = (numpy_twin(x, label.numpy(), valid.numpy(), 0.25, 0.5) for x in shifted)
        assert logits.grad[index].item() == pytest.approx((high - low) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("value", [7.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_ignored_pixels_influence_neither_value_nor_gradient(value: float) -> None:
    logits, label, valid = random_batch()
    results = []
    for ignored in (0.0, value):
        x = torch.where(valid > 0, logits, ignored).requires_grad_()
        y = torch.where(valid > 0, label, ignored)
        loss, _ = DiceBCELoss()(x, y, valid)
        loss.backward()
        results.append((loss.item(), x.grad))
        assert not x.grad[valid == 0].any()
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_more_ignored_pixels_do_not_shrink_the_loss() -> None:
    logits, label, valid = random_batch()
    padded = [torch.cat([x, torch.zeros_like(x)], dim=2) for x in (logits, label, valid)]
    assert DiceBCELoss()(*padded)[0].item() == pytest.approx(
        DiceBCELoss()(logits, label, valid)[0].item(), abs=1e-12
    )


def test_a_batch_without_valid_pixels_gives_0_and_zero_gradient() -> None:
    logits, label, _ = random_batch()
    logits.requires_grad_()
    none = torch.zeros_like(label)
    loss, _ = DiceBCELoss()(logits, label, none)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_batch_without_ink_is_trained_by_the_cross_entropy_alone() -> None:
    logits, label, valid = random_batch()
    loss, parts = DiceBCELoss()(logits, torch.zeros_like(label), valid)
    assert parts["dice"] == 0
    assert loss.item() == pytest.approx(0.5 * parts["bce"].item())


def test_no_mask_means_all_pixels_are_valid_and_integer_labels_work() -> None:
    logits, label, _ = random_batch()
    ones = torch.ones_like(label)
    loss = DiceBCELoss()(logits, label, ones)[0]
    assert torch.equal(DiceBCELoss()(logits, label.long())[0], loss)


def test_maps_of_different_shapes_are_refused() -> None:
    logits, label, valid = random_batch()
    for maps, found in (
        ((logits, label[:, 0], valid), r"label is \(3, 6, 5\)"),
        ((logits, label, valid[:1]), r"valid is \(1, 1, 6, 5\)"),
    ):
        with pytest.raises(ValueError, match=found + r", the logits are \(3, 1, 6, 5\); give"):
            DiceBCELoss()(*maps)


@pytest.mark.parametrize("arguments", [{"smoothing": 0.5}, {"dice_weight": 1.1}])
def test_settings_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed is"):
        DiceBCELoss(**arguments)
