"""Fluorescence prediction with an official checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from core.official import load_official_checkpoint
from ssp.predict import predict, read_stack, standardized


@pytest.fixture
def checkpoint(sample_data):
    return sample_data / "repmode_reference" / "repmode_mc2_3tasks.p"


def test_small_stack_equals_the_network_on_the_whole_volume(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4000, (32, 128, 128), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", voxels)
    predict(checkpoint, tmp_path / "stack.tif", out=tmp_path / "out", task=("dna",), device="cpu")
    model, tasks = load_official_checkpoint(checkpoint)
    x = torch.from_numpy(standardized(voxels.astype(np.float32)))[None, None]
    with torch.no_grad():
        expected = model(x, torch.tensor([tasks.index("dna")]))[0, 0]
    written = tifffile.imread(tmp_path / "out" / "dna.tif")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dna.tif"]


def test_every_task_is_predicted_by_default_at_any_size(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "stack.tif", rng.random((5, 20, 137), dtype=np.float32))
    predict(checkpoint, tmp_path / "stack.tif", out=tmp_path / "out", device="cpu")
    for name in ("alpha_tubulin", "dna", "tom20"):
        assert tifffile.imread(tmp_path / "out" / f"{name}.tif").shape == (5, 20, 137)


def test_single_plane_is_a_stack_of_one(tmp_path):
    tifffile.imwrite(tmp_path / "plane.tif", np.zeros((4, 5), np.uint8))
    assert read_stack(tmp_path / "plane.tif").shape == (1, 4, 5)


def test_bad_input_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        read_stack(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("text")
    with pytest.raises(ValueError, match=r"text\.tif cannot be read"):
        read_stack(tmp_path / "text.tif")
    four_axes = np.zeros((2, 3, 4, 5), np.uint8)
    tifffile.imwrite(tmp_path / "channels.tif", four_axes, photometric="minisblack")
    with pytest.raises(ValueError, match="save the transmitted-light channel alone"):
        read_stack(tmp_path / "channels.tif")
    tifffile.imwrite(tmp_path / "flat.tif", np.ones((5, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="cannot be z-scored"):
        predict(checkpoint, tmp_path / "flat.tif", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"unknown task actin; .* alpha_tubulin, dna, tom20"):
        predict(checkpoint, tmp_path / "flat.tif", out=tmp_path / "out", task=("actin",))
    assert not (tmp_path / "out").exists()
