"""Fluorescence prediction with an official checkpoint."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import tifffile
import torch

from core.official import load_official_checkpoint
from core.provenance import file_hash
from ssp import predict as module
from ssp.predict import predict, read_stack, standardized


@pytest.fixture
def checkpoint(sample_data):
    return sample_data / "repmode_reference" / "repmode_mc2_3tasks.p"


@pytest.fixture
def stack(tmp_path):
    """A small stack of noise."""
    voxels = np.random.default_rng(0).integers(0, 4000, (5, 20, 24), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", voxels)
    return tmp_path / "stack.tif"


@pytest.fixture
def predicted(monkeypatch):
    """The names of the tasks that are computed, in order, while a test runs."""
    names = []
    inner = module.predict_volume

    def spy(plain, volume, device, batch_size, name):
        names.append(name)
        return inner(plain, volume, device, batch_size, name)

    monkeypatch.setattr(module, "predict_volume", spy)
    return names


def test_small_stack_equals_the_network_on_the_whole_volume(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4000, (32, 128, 128), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", voxels)
    predict(checkpoint, tmp_path / "stack.tif", out=tmp_path / "out", task=("dna",), device="cpu")
    model, tasks = load_official_checkpoint(checkpoint)
    x = torch.from_numpy((voxels - voxels.mean()) / voxels.std()).float()[None, None]
    with torch.no_grad():
        expected = model(x, torch.tensor([tasks.index("dna")]))[0, 0]
    written = tifffile.imread(tmp_path / "out" / "dna.tif")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["dna.provenance.json", "dna.tif"]


def test_every_task_is_predicted_by_default_at_any_size(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "stack.tif", rng.random((5, 20, 137), dtype=np.float32))
    predict(checkpoint, tmp_path / "stack.tif", out=tmp_path / "out", device="cpu")
    for name in ("alpha_tubulin", "dna", "tom20"):
        assert tifffile.imread(tmp_path / "out" / f"{name}.tif").shape == (5, 20, 137)


def test_a_prediction_tells_where_it_comes_from(checkpoint, stack, tmp_path):
    predict(checkpoint, stack, out=tmp_path / "out", task=("dna",), device="cpu")
    record = json.loads((tmp_path / "out" / "dna.provenance.json").read_text())
    assert record["task"] == "dna"
    assert record["device"].startswith("cpu")
    assert record["input"] == str(stack)
    assert record["shape"] == [5, 20, 24]
    assert record["resampling"] == "none"
    assert record["settings"] == {
        "checkpoint_sha256": file_hash(checkpoint),
        "stack_sha256": file_hash(stack),
        "chosen": {"channel": None, "scene": None, "time": None, "axes": None},
        "tile": [32, 128, 128],
        "stride": [16, 64, 64],
        "batch_size": 1,
        "device": "cpu",
    }


def test_the_same_command_again_predicts_only_what_is_missing(
    checkpoint, stack, tmp_path, predicted
):
    out = tmp_path / "out"
    predict(checkpoint, stack, out=out, task=("dna", "dna"), device="cpu")
    assert predicted == ["dna"]
    predict(checkpoint, stack, out=out, device="cpu")
    assert predicted == ["dna", "alpha_tubulin", "tom20"]
    predict(checkpoint, stack, out=out, device="cpu")
    assert len(predicted) == 3


def test_a_folder_of_another_prediction_is_refused(checkpoint, stack, tmp_path, predicted):
    out = tmp_path / "out"
    predict(checkpoint, stack, out=out, task=("dna",), device="cpu")
    tifffile.imwrite(stack, np.random.default_rng(1).random((5, 20, 24), dtype=np.float32))
    for task in ("dna", "tom20"):
        with pytest.raises(ValueError, match=r"dna\.tif .* other stack_sha256; .* another --out"):
            predict(checkpoint, stack, out=out, task=(task,), device="cpu")
    (out / "dna.provenance.json").unlink()
    with pytest.raises(ValueError, match=r"dna\.tif .* unknown origin"):
        predict(checkpoint, stack, out=out, task=("dna",), device="cpu")
    assert predicted == ["dna"]


def test_a_failed_prediction_may_be_repeated_with_other_settings(
    checkpoint, stack, tmp_path, monkeypatch
):
    def fail(*args):
        raise RuntimeError("out of memory")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_volume", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            predict(checkpoint, stack, out=out, task=("dna",), batch_size=8, device="cpu")
    predict(checkpoint, stack, out=out, task=("dna",), batch_size=1, device="cpu")
    record = json.loads((out / "dna.provenance.json").read_text())
    assert record["settings"]["batch_size"] == 1


def test_a_folder_that_cannot_be_made_is_found_before_the_work(
    checkpoint, stack, tmp_path, predicted
):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="file"):
        predict(checkpoint, stack, out=tmp_path / "file", device="cpu")
    assert predicted == []


def test_the_chosen_channel_and_time_of_a_file_are_predicted(checkpoint, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4000, (2, 5, 3, 20, 24), dtype=np.uint16)
    options = {"ome": True, "metadata": {"axes": "TZCYX", "Channel": {"Name": ["a", "b", "c"]}}}
    tifffile.imwrite(tmp_path / "many.tif", voxels, **options)
    tifffile.imwrite(tmp_path / "one.tif", voxels[1, :, 2])
    usual = {"task": ("dna",), "device": "cpu"}
    predict(checkpoint, tmp_path / "many.tif", tmp_path / "1", channel="c", time=1, **usual)
    predict(checkpoint, tmp_path / "one.tif", tmp_path / "2", **usual)
    first, second = (tifffile.imread(tmp_path / name / "dna.tif") for name in "12")
    np.testing.assert_array_equal(first, second)


def test_a_stack_is_read_as_float32_of_three_axes(tmp_path):
    tifffile.imwrite(tmp_path / "plane.tif", np.ones((4, 5), np.uint8))
    plane = read_stack(tmp_path / "plane.tif")
    assert (plane.shape, plane.dtype) == ((1, 4, 5), np.float32)


def test_a_standardized_stack_has_mean_0_and_standard_deviation_1():
    volume = np.random.default_rng(0).normal(3000, 50, (4, 64, 64)).astype(np.float32)
    z_scores = standardized(volume)
    assert z_scores.dtype == np.float32
    assert abs(z_scores.mean(dtype=np.float64)) < 1e-4
    assert abs(z_scores.std(dtype=np.float64) - 1) < 1e-4
    exact = volume.astype(np.float64)
    exact = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(z_scores, exact, atol=1e-4)


def test_standardizing_does_not_hold_the_stack_in_double_precision():
    volume = np.random.default_rng(0).random((64, 64, 64), dtype=np.float32)
    tracemalloc.start()
    standardized(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * volume.nbytes


@pytest.mark.parametrize("value", [0.1, np.nan, np.inf])
def test_a_stack_without_contrast_or_with_odd_values_is_refused(value):
    volume = np.full((3, 8, 8), value, np.float32)
    volume[0, 0, 0] = 0.1
    with pytest.raises(ValueError, match="cannot be z-scored"):
        standardized(volume)


def test_bad_input_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        read_stack(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("text")
    with pytest.raises(ValueError, match=r"text\.tif cannot be read"):
        read_stack(tmp_path / "text.tif")
    tifffile.imwrite(tmp_path / "flat.tif", np.ones((5, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="cannot be z-scored"):
        predict(checkpoint, tmp_path / "flat.tif", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"unknown task actin; .* alpha_tubulin, dna, tom20"):
        predict(checkpoint, tmp_path / "flat.tif", out=tmp_path / "out", task=("actin",))
    assert not (tmp_path / "out").exists()
