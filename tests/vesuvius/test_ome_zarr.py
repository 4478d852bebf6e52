"""OME-Zarr: reads like layers, and what is damaged or incomplete is refused at opening."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from vesuvius.fragment import open_fragment

SHAPE = (5, 61, 47)
BANDS = [(0, 5, 0, 61), (0, 5, 0, 1), (2, 3, 60, 61), (1, 4, 5, 23), (0, 2, 16, 32)]


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, SHAPE, dtype=np.uint16)


def write_zarr(path: Path, voxels_ZYX: np.ndarray, zarr_format: int, **options: object) -> Path:
    """Write an OME-Zarr of axes (C, Z, Y, X) in chunks of (1, 2, 16, 16)."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    shape, chunks = (1, *voxels_ZYX.shape), (1, 2, 16, 16)
    array = group.create_array("0", shape=shape, chunks=chunks, dtype=np.uint16, **options)
    array[:] = voxels_ZYX[None]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": [1, 8.0, 4.0, 4.0]}
    multiscale = {
        "axes": [{"name": "c", "type": "channel"}, *axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    stored = {"multiscales": [multiscale]}
    group.attrs.update(stored if zarr_format == 2 else {"ome": {"version": "0.5", **stored}})
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr_of_either_version_reads_like_layers(
    tmp_path: Path, voxels: np.ndarray, zarr_format: int
) -> None:
    path = write_zarr(tmp_path / "scroll.ome.zarr", voxels, zarr_format)
    fragment = open_fragment(path)
    assert (fragment.name, fragment.layout, fragment.source_layout) == ("scroll", "zarr", "zarr")
    assert fragment.voxel_size_um == (8.0, 4.0, 4.0)
    assert fragment.papyrus_mask.all()
    for z_start, z_stop, y_start, y_stop in BANDS:
        np.testing.assert_array_equal(
            fragment.volume.read(z_start, z_stop, y_start, y_stop),
            voxels[z_start:z_stop, y_start:y_stop] >> 8,
        )


def test_ome_zarr_in_shards_reads_like_layers(
    tmp_path: Path, voxels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_zarr(tmp_path / "a.zarr", voxels, zarr_format=3, shards=(1, 2, 32, 32))
    np.testing.assert_array_equal(open_fragment(path).volume.read(0, 5, 0, 61), voxels >> 8)
    (path / "0" / "c" / "0" / "0" / "1" / "1").unlink()
    open_fragment(path)
    assert "0 lacks 1 of 12 chunks, the first being c/0/0/1/1," in capsys.readouterr().err


@pytest.mark.parametrize(("zarr_format", "chunk"), [(2, "0.1.2.0"), (3, "c/0/1/2/0")])
def test_ome_zarr_without_some_chunks_says_so(
    tmp_path: Path,
    voxels: np.ndarray,
    zarr_format: int,
    chunk: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_zarr(tmp_path / "a.zarr", voxels, zarr_format)
    open_fragment(path)
    assert "lacks" not in capsys.readouterr().err
    (path / "0" / chunk).unlink()
    assert not open_fragment(path).volume.read(2, 4, 32, 48)[:, :, :16].any()
    said = capsys.readouterr().err
    assert f"0 lacks 1 of 36 chunks, the first being {chunk}, which are read as 0;" in said


@pytest.mark.parametrize(
    ("zarr_format", "file"),
    [(2, ".zattrs"), (2, "0/.zarray"), (3, "zarr.json"), (3, "0/zarr.json")],
)
def test_damaged_ome_zarr_metadata_is_refused_by_name(
    tmp_path: Path, voxels: np.ndarray, zarr_format: int, file: str
) -> None:
    path = write_zarr(tmp_path / "a.zarr", voxels, zarr_format)
    text = (path / file).read_text()
    for damaged in (text[:-5], "", "[]"):
        (path / file).write_text(damaged)
        with pytest.raises(ValueError, match=r"a\.zarr has damaged metadata \(.*; copy it again"):
            open_fragment(path)


def test_the_real_scroll_crop_is_the_same_from_layers_and_ome_zarr(sample_data: Path) -> None:
    layers = open_fragment(sample_data / "scroll1_crop")
    stored = open_fragment(sample_data / "scroll1_crop" / "segment.ome.zarr")
    assert layers.volume.shape == stored.volume.shape == (40, 156, 156)
    assert stored.voxel_size_um == (7.91, 18.2538, 18.2538)
    for band in ((0, 40, 0, 156), (3, 17, 50, 90)):
        np.testing.assert_array_equal(layers.volume.read(*band), stored.volume.read(*band))


def test_zarr_that_is_no_ome_zarr_volume_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="has no multiscales metadata"):
        open_fragment(tmp_path / "plain.zarr")
    group = zarr.create_group(tmp_path / "two.zarr", zarr_format=2)
    group.create_array("0", shape=(2, *SHAPE), dtype=np.uint8)
    axes = [{"name": name} for name in "czyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    with pytest.raises(ValueError, match=r"shape \(2, 5, 61, 47\).* of one channel"):
        open_fragment(tmp_path / "two.zarr")
