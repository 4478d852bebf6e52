"""A torch model as the `predict` of a stream, and the device it runs on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.inference import choose_device, torch_predictor


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_torch_predictor_hands_over_the_values_that_were_read(dtype):
    batch = np.random.default_rng(0).integers(0, 200, (2, 3, 4, 5)).astype(dtype)
    predicted = torch_predictor(lambda x, _: x.mean(1, keepdim=True), "cpu")(batch, [])
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, batch.astype(np.float32).mean(1, keepdims=True))


def test_the_torch_predictor_keeps_no_graph_and_returns_float32_under_autocast():
    linear, seen = torch.nn.Linear(5, 5), []

    def model(x, corners):
        seen.append((linear(x).dtype, torch.is_inference_mode_enabled()))
        return linear(x)

    batch = noise((2, 1, 4, 5))
    exact = torch_predictor(model, "cpu")(batch, [])
    rounded = torch_predictor(model, "cpu", torch.bfloat16)(batch, [])
    assert seen == [(torch.float32, True), (torch.bfloat16, True)]
    assert rounded.dtype == np.float32
    assert (rounded != exact).any()
    np.testing.assert_allclose(rounded, exact, atol=0.02)


def test_too_little_device_memory_names_the_option_to_change():
    def model(x, corners):
        raise torch.OutOfMemoryError("allocation failed")

    with pytest.raises(RuntimeError, match=r"2 tiles of shape \(4, 5\) .*; use a smaller --batch"):
        torch_predictor(model, "cpu")(noise((2, 4, 5)), [])


@pytest.mark.gpu
def test_a_cuda_device_predicts_what_the_cpu_does():
    batch = noise((2, 4, 5))
    cuda = torch_predictor(lambda x, _: x[:, None] * 2, "cuda")(batch, [])
    np.testing.assert_array_equal(cuda, batch[:, None] * 2)


@pytest.mark.gpu
def test_more_than_a_cuda_device_holds_names_the_option_to_change():
    predict = torch_predictor(lambda x, _: x.new_zeros(1 << 50), "cuda")
    with pytest.raises(RuntimeError, match="--batch-size"):
        predict(noise((2, 4, 5)), [])


def test_device_is_chosen_openly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"'cuda' is not available: .* use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
