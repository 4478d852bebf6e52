"""Predictions back on the grid of the image, and written."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from scipy.ndimage import zoom

from ssp import outputs
from ssp.outputs import restored, write_image
from ssp.readers import open_stack


def volume(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("new_shape", [(9, 14, 8), (5, 14, 8), (3, 4, 25), (5, 7, 11)])
@pytest.mark.parametrize("band_bytes", [1, 2**20])
def test_a_volume_is_resampled_as_by_scipy_whatever_the_bands(
    new_shape, band_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(outputs, "BAND_BYTES", band_bytes)
    voxels = volume((5, 7, 11))
    planes = restored(lambda start, stop: voxels[start:stop], voxels.shape, new_shape, tmp_path)
    factors = [new / old for new, old in zip(new_shape, voxels.shape, strict=True)]
    expected = zoom(voxels.astype(np.float64), factors, order=3, mode="nearest")
    np.testing.assert_allclose(np.stack([*planes]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_a_written_image_is_read_back_with_its_voxel_size_and_name(name, tmp_path):
    voxels = volume((3, 6, 5))
    write_image(tmp_path / name, iter(voxels), voxels.shape, (0.5, 0.1, 0.2), "dna")
    stack = open_stack(tmp_path / name)
    np.testing.assert_array_equal(stack.read(0), voxels)
    assert stack.voxel_size_um == pytest.approx((0.5, 0.1, 0.2))
    write_image(tmp_path / f"2{name}", iter(voxels), voxels.shape, None, "dna")
    assert open_stack(tmp_path / f"2{name}").voxel_size_um is None


def test_an_ome_zarr_is_of_version_0_4_with_a_chunk_for_each_plane(tmp_path):
    voxels = volume((3, 6, 5))
    write_image(tmp_path / "a.ome.zarr", iter(voxels), voxels.shape, (0.5, 0.1, 0.2), "dna")
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    (image,) = group.attrs["multiscales"]
    assert (image["version"], image["name"]) == ("0.4", "dna")
    assert group["0"].chunks == (1, 6, 5)
    assert (tmp_path / "a.ome.zarr" / "0" / "2" / "0" / "0").is_file()


def test_an_image_that_fails_half_way_leaves_nothing(tmp_path):
    def failing():
        yield volume((6, 5))
        raise KeyboardInterrupt

    for name in ("a.ome.tif", "a.ome.zarr"):
        with pytest.raises(KeyboardInterrupt):
            write_image(tmp_path / name, failing(), (3, 6, 5), None, "dna")
    assert list(tmp_path.iterdir()) == []
