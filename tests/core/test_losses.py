from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from core.losses import SSIM_SIGMA, LossWeights, MapLoss, structural_similarity
from core.torchvision_guard import ensure_torchvision

PARTS = ("dice", "bce", "focal", "mse", "ssim")


def dice_bce(smoothing: float = 0.25, dice: float = 0.5) -> MapLoss:
    return MapLoss(LossWeights(dice, 1 - dice), smoothing)


def only(part: str, **options: float) -> MapLoss:
    weights = dict.fromkeys(PARTS, 0.0) | {part: 1.0}
    return MapLoss(LossWeights(**weights), **options)


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


@pytest.mark.parametrize(("smoothing", "dice_weight"), [(0.25, 0.5), (0.0, 0.2), (0.1, 0.9)])
def test_dice_bce_equals_its_numpy_twin_in_float64(smoothing: float, dice_weight: float) -> None:
    logits, label, valid = random_batch()
    loss, parts = dice_bce(smoothing, dice_weight)(logits, label, valid)
    expected = numpy_twin(logits.numpy(), label.numpy(), valid.numpy(), smoothing, dice_weight)
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    weighted = dice_weight * parts["dice"] + (1 - dice_weight) * parts["bce"]
    assert weighted.item() == pytest.approx(loss.item(), abs=1e-12)


def test_the_gradient_is_that_of_the_numpy_twin() -> None:
    logits, label, valid = random_batch()
    logits.requires_grad_()
    dice_bce()(logits, label, valid)[0].backward()
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
        loss, _ = dice_bce()(x, y, valid)
        loss.backward()
        results.append((loss.item(), x.grad))
        assert not x.grad[valid == 0].any()
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_more_ignored_pixels_do_not_shrink_the_loss() -> None:
    logits, label, valid = random_batch()
    padded = [torch.cat([x, torch.zeros_like(x)], dim=2) for x in (logits, label, valid)]
    assert dice_bce()(*padded)[0].item() == pytest.approx(
        dice_bce()(logits, label, valid)[0].item(), abs=1e-12
    )


def test_a_batch_without_valid_pixels_gives_0_and_zero_gradient() -> None:
    logits, label, _ = random_batch()
    logits.requires_grad_()
    none = torch.zeros_like(label)
    loss, _ = dice_bce()(logits, label, none)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_batch_without_ink_is_trained_by_the_cross_entropy_alone() -> None:
    logits, label, valid = random_batch()
    loss, parts = dice_bce()(logits, torch.zeros_like(label), valid)
    assert parts["dice"] == 0
    assert loss.item() == pytest.approx(0.5 * parts["bce"].item())


def test_no_mask_means_all_pixels_are_valid_and_integer_labels_work() -> None:
    logits, label, _ = random_batch()
    ones = torch.ones_like(label)
    loss = dice_bce()(logits, label, ones)[0]
    assert torch.equal(dice_bce()(logits, label.long())[0], loss)


def test_maps_of_different_shapes_are_refused() -> None:
    logits, label, valid = random_batch()
    for maps, found in (
        ((logits, label[:, 0], valid), r"label is \(3, 6, 5\)"),
        ((logits, label, valid[:1]), r"valid is \(1, 1, 6, 5\)"),
    ):
        with pytest.raises(ValueError, match=found + r", the logits are \(3, 1, 6, 5\); give"):
            dice_bce()(*maps)


@pytest.mark.parametrize("part", ["dice", "bce", "focal"])
def test_a_part_equals_that_of_segmentation_models_pytorch(part: str) -> None:
    ensure_torchvision()
    from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, SoftBCEWithLogitsLoss

    twins = {
        "dice": DiceLoss("binary"),
        "bce": SoftBCEWithLogitsLoss(smooth_factor=0.25),
        "focal": FocalLoss("binary", alpha=0.3, gamma=2.0),
    }
    logits, label, _ = random_batch()
    loss = only(part)(logits, label)[0]
    assert loss.item() == pytest.approx(twins[part](logits, label).item(), abs=1e-10)


def test_the_squared_error_is_that_of_the_probability() -> None:
    logits, label, valid = random_batch()
    prob = 1 / (1 + np.exp(-logits.numpy()[valid > 0]))
    expected = np.mean((prob - label.numpy()[valid > 0]) ** 2)
    assert only("mse")(logits, label, valid)[0].item() == pytest.approx(expected, abs=1e-12)


def ssim_twin(a: np.ndarray, b: np.ndarray, y: int, x: int) -> float:
    """Return the structural similarity around one pixel of maps (Y, X)."""
    weights, values = [], []
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            weights.append(np.exp(-(dy**2 + dx**2) / (2 * SSIM_SIGMA**2)))
            rows, columns = (np.pad(np.arange(n), 5, mode="reflect") for n in a.shape)
            place = rows[y + dy + 5], columns[x + dx + 5]
            values.append((a[place], b[place]))
    w, (p, q) = np.array(weights) / np.sum(weights), np.array(values).T
    mean_p, mean_q = w @ p, w @ q
    covariance = w @ ((p - mean_p) * (q - mean_q))
    variances = w @ (p - mean_p) ** 2 + w @ (q - mean_q) ** 2
    top = (2 * mean_p * mean_q + 1e-4) * (2 * covariance + 9e-4)
    return top / ((mean_p**2 + mean_q**2 + 1e-4) * (variances + 9e-4))


def test_structural_similarity_equals_its_slow_twin() -> None:
    a, b = torch.rand(2, 2, 1, 9, 12, generator=torch.Generator().manual_seed(0)).double()
    found = structural_similarity(a, b)
    for n, y, x in [(0, 0, 0), (0, 4, 6), (1, 8, 11), (1, 2, 9)]:
        expected = ssim_twin(a[n, 0].numpy(), b[n, 0].numpy(), y, x)
        assert found[n, 0, y, x].item() == pytest.approx(expected, abs=1e-10)


def test_structural_similarity_is_1_for_equal_maps_of_any_size() -> None:
    for size in [(1, 1), (3, 20), (16, 16)]:
        map_ = torch.rand(1, 1, *size)
        assert structural_similarity(map_, map_).min().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_ignores_invalid_pixels_and_falls_when_trained(part: str) -> None:
    logits, label, valid = random_batch()
    x = torch.where(valid > 0, logits, torch.nan).requires_grad_()
    before = only(part)(x, label, valid)[0]
    before.backward()
    assert x.grad.isfinite().all()
    assert not x.grad[valid == 0].any()
    after = only(part)((x - 0.1 * x.grad / x.grad.norm()).detach(), label, valid)[0]
    assert after < before


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    logits, label, valid = random_batch()
    weights = dict(zip(PARTS, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    loss, parts = MapLoss(LossWeights(**weights))(logits, label, valid)
    assert tuple(parts) == PARTS
    expected = sum(weight * parts[name].item() for name, weight in weights.items())
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert set(only("focal")(logits, label)[1]) == {"focal"}


def test_focal_settings_change_what_they_say() -> None:
    logits, label, _ = random_batch()
    entropy = only("bce", smoothing=0.0)(logits, label)[0]
    half = only("focal", focal_alpha=0.5, focal_gamma=0.0)(logits, label)[0]
    assert half.item() == pytest.approx(entropy.item() / 2, abs=1e-12)
    ink_only = only("focal", focal_alpha=1.0, focal_gamma=0.0)(logits, torch.zeros_like(label))[0]
    assert ink_only == 0
    easy = torch.full_like(logits, -9.0)
    looked_away, looked = (
        only("focal", focal_gamma=gamma)(easy, torch.zeros_like(label))[0] for gamma in (2.0, 0.0)
    )
    assert 0 < looked_away < 1e-6 * looked


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MapLoss(smoothing=0.5), "smoothing is 0.5, allowed is 0 <= smoothing < 0.5"),
        (lambda: MapLoss(focal_alpha=1.1), "focal_alpha is 1.1, allowed is 0..1"),
        (lambda: MapLoss(focal_gamma=0.5), "focal_gamma is 0.5, allowed is 0, or 1 or more"),
        (lambda: LossWeights(ssim=-1.0), "weight of ssim is -1.0, allowed is 0 or more"),
        (lambda: LossWeights(bce=float("nan")), "weight of bce is nan"),
        (lambda: LossWeights(0.0, 0.0), "are 0; give one above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
