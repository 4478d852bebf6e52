"""TIFF of every writer as a stack."""

from __future__ import annotations

import lzma
import struct
import zlib

import numpy as np
import pytest
import tifffile

from ssp.readers import open_stack


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 8, 9), {}),
        ((5, 1, 9), {}),
        ((5, 8, 9), {"metadata": None}),
        ((5, 8, 9), {"metadata": {"axes": "ZYX"}, "ome": True}),
        ((1, 5, 1, 8, 9), {"metadata": {"axes": "TZCYX"}, "ome": True}),
        ((5, 8, 9), {"metadata": {"axes": "ZYX"}, "imagej": True}),
        ((5, 8, 9), {"byteorder": ">"}),
        ((5, 8, 9), {"compression": "zlib"}),
        ((5, 32, 32), {"tile": (16, 16)}),
        ((5, 32, 32), {"tile": (2, 16, 16), "metadata": {"axes": "ZYX"}, "volumetric": True}),
    ],
)
def test_a_stack_of_one_channel_is_read_whoever_wrote_it(files, tmp_path, shape, options):
    voxels = files.noise(shape)
    tifffile.imwrite(tmp_path / "stack.tif", voxels, **options)
    stack = open_stack(tmp_path / "stack.tif")
    expected = voxels.reshape(5, *shape[-2:])
    assert stack.shape == (1, *expected.shape)
    np.testing.assert_array_equal(stack.read(0), expected)
    np.testing.assert_array_equal(stack.read(0, 2, 4), expected[2:4])


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TCZYX", "ZTCYX", "CTZYX"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_axes_may_come_in_any_order(files, tmp_path, axes, options):
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 8, "X": 9}
    voxels = files.noise(tuple(sizes[axis] for axis in axes))
    options = {**options, "metadata": {"axes": axes}, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", voxels, **options)
    stack = open_stack(tmp_path / "a.tif", time=1 if "T" in axes else None)
    assert stack.shape == (3, 4, 8, 9)
    order = axes.replace("T", "")
    at_time = voxels.take(1, axes.index("T")) if "T" in axes else voxels
    expected = at_time.transpose([order.index(axis) for axis in "CZYX"])
    for channel in range(3):
        np.testing.assert_array_equal(stack.read(channel), expected[channel])


def test_only_the_planes_asked_for_are_read(files, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", files.noise((6, 8, 9)), compression="zlib")
    read = []
    inner = tifffile.TiffPage.asarray  # frames read through it too
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda p: read.append(p.index) or inner(p))
    open_stack(tmp_path / "a.tif").read(0, 2, 4)
    assert read == [2, 3]


def test_several_images_are_scenes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        for depth in (5, 6):
            writer.write(np.full((depth, 8, 9), depth, np.uint8))
    with pytest.raises(ValueError, match=r"two\.tif holds 2 scenes and none is chosen"):
        open_stack(tmp_path / "two.tif")
    stack = open_stack(tmp_path / "two.tif", scene=1)
    assert stack.shape == (1, 6, 8, 9)
    assert (stack.read(0) == 6).all()


@pytest.mark.parametrize(
    ("shape", "axes", "found"),
    [
        ((64, 48, 3), None, r"Y 64, X 48, S 3"),
        ((2, 2, 2, 5, 8, 9), None, r"Q 2, Q 2, Q 2, Q 5, Y 8, X 9"),
        ((2, 5, 8, 9), None, r"Q 2, Q 5, Y 8, X 9"),
    ],
)
def test_axes_that_are_not_known_are_refused(tmp_path, shape, axes, found):
    tifffile.imwrite(tmp_path / "other.tif", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=rf"other\.tif has axes {found}; give them with axes:"):
        open_stack(tmp_path / "other.tif")


def test_axes_that_a_file_does_not_tell_may_be_given(files, tmp_path):
    voxels = files.noise((2, 5, 8, 9))
    tifffile.imwrite(tmp_path / "a.tif", voxels)
    stack = open_stack(tmp_path / "a.tif", axes="CZYX")
    np.testing.assert_array_equal(stack.read(1), voxels[1])
    stack = open_stack(tmp_path / "a.tif", axes="ZCYX")
    np.testing.assert_array_equal(stack.read(1), voxels[:, 1])
    for axes in ("ZYX", "CCYX", "CZXY", "AZYX"):
        with pytest.raises(ValueError, match=f"axes '{axes}' do not fit: give one of"):
            open_stack(tmp_path / "a.tif", axes=axes)


def test_the_voxel_size_is_that_of_imagej_or_ome_in_any_unit(files, tmp_path):
    imagej = {"imagej": True, "resolution": (10, 5), "metadata": {"spacing": 0.3, "unit": "um"}}
    tifffile.imwrite(tmp_path / "ij.tif", files.noise((5, 8, 9)), **imagej)
    assert open_stack(tmp_path / "ij.tif").voxel_size_um == pytest.approx((0.3, 0.2, 0.1))
    metadata = {"axes": "ZYX", "PhysicalSizeX": 100, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 0.2, "PhysicalSizeZ": 3e-4, "PhysicalSizeZUnit": "mm"}
    tifffile.imwrite(tmp_path / "ome.tif", files.noise((5, 8, 9)), ome=True, metadata=metadata)
    assert open_stack(tmp_path / "ome.tif").voxel_size_um == pytest.approx((0.3, 0.2, 0.1))
    metadata["PhysicalSizeXUnit"] = "pixel"
    tifffile.imwrite(tmp_path / "ome.tif", files.noise((5, 8, 9)), ome=True, metadata=metadata)
    assert open_stack(tmp_path / "ome.tif").voxel_size_um is None


def test_a_single_plane_without_spacing_has_that_of_its_rows(files, tmp_path):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2}
    tifffile.imwrite(tmp_path / "a.tif", files.noise((8, 9)), ome=True, metadata=metadata)
    assert open_stack(tmp_path / "a.tif").voxel_size_um == (0.2, 0.2, 0.1)


@pytest.mark.parametrize("compression", ["zlib", "lzma", "zstd"])
def test_a_damaged_page_is_one_line_that_names_the_file(tmp_path, compression):
    path = tmp_path / "damaged.tif"
    if compression == "zstd":
        pytest.importorskip("imagecodecs")
    tifffile.imwrite(path, np.zeros((5, 64, 64), np.uint16), compression=compression)
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + length] = b"U" * length
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.tif cannot be read as TIFF") as error:
        open_stack(path).read(0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [zlib.error, lzma.LZMAError, struct.error])
def test_damage_is_named_without_imagecodecs_too(files, tmp_path, monkeypatch, error):
    tifffile.imwrite(tmp_path / "a.tif", files.noise((8, 9)), compression="zlib")

    def fail(page):
        raise error("invalid block")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as TIFF: invalid block"):
        open_stack(tmp_path / "a.tif").read(0)


@pytest.mark.parametrize("is_ome", [False, True])
def test_a_truncated_file_is_one_line_that_names_the_file(tmp_path, is_ome):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((5, 20, 24), np.uint16), ome=is_ome, metadata={"axes": "ZYX"})
    content = path.read_bytes()
    for length in [0, 3, 100, *range(400, len(content) if is_ome else 5 * 20 * 24 * 2, 601)]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.tif cannot be read as TIFF"):
            open_stack(path).read(0)
