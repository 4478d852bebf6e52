"""Stacks are read alike from every format, a channel and a range of planes at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from ssp.readers import is_image, open_stack, plain_name

SIZE_UM = (0.3, 0.1, 0.12)
NAMES = ("TL", "DNA")


def write(files, kind, folder, voxels_TCZYX, size_um=SIZE_UM, names=NAMES):
    """Write (T, C, Z, Y, X) in one of the formats and return the path."""
    if kind == "czi":
        return files.write_czi(folder / "a.czi", voxels_TCZYX, size_um, names)
    if kind == "ome-tiff":
        return files.write_ome_tiff(folder / "a.ome.tif", voxels_TCZYX, "TCZYX", size_um, names)
    if kind == "compressed ome-tiff":
        options = {"compression": "zlib", "tile": (16, 16)}
        return files.write_ome_tiff(
            folder / "a.tif", voxels_TCZYX, "TCZYX", size_um, names, **options
        )
    number = 2 if kind == "ome-zarr 0.4" else 3
    return files.write_ome_zarr(folder / "a.zarr", voxels_TCZYX, "tczyx", size_um, names, number)


KINDS = ["czi", "ome-tiff", "compressed ome-tiff", "ome-zarr 0.4", "ome-zarr 0.5"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_stack(files, tmp_path, kind):
    voxels = files.noise((2, 2, 5, 20, 30))
    path = write(files, kind, tmp_path, voxels)
    stack = open_stack(path, time=1)
    assert stack.shape == (2, 5, 20, 30)
    assert stack.dtype == np.uint16
    assert stack.voxel_size_um == pytest.approx(SIZE_UM)
    assert stack.channel_names == NAMES
    np.testing.assert_array_equal(stack.read(1), voxels[1, 1])
    np.testing.assert_array_equal(stack.read(0, 1, 3), voxels[1, 0, 1:3])
    assert stack.find_channel("DNA") == stack.find_channel(1) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_must_be_chosen_among_several(files, tmp_path, kind):
    path = write(files, kind, tmp_path, files.noise((3, 1, 2, 20, 30)), names=("TL",))
    with pytest.raises(ValueError, match=r"a\.\S+ holds 3 times and none is chosen; .* 0 to 2"):
        open_stack(path)
    with pytest.raises(ValueError, match="time 3 is not among them"):
        open_stack(path, time=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_voxel_size_or_names_has_none(files, tmp_path, kind):
    path = write(files, kind, tmp_path, files.noise((1, 2, 3, 20, 30)), size_um=None, names=None)
    stack = open_stack(path)
    assert stack.voxel_size_um is None
    assert stack.channel_names == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_channel_is_refused_with_those_that_exist(files, tmp_path, kind):
    stack = open_stack(write(files, kind, tmp_path, files.noise((1, 2, 1, 20, 30))))
    for channel in (2, -1, "RNA", ""):
        with pytest.raises(ValueError, match=r"2 channel\(s\), 0 'TL', 1 'DNA', and there is no"):
            stack.find_channel(channel)
    with pytest.raises(ValueError, match="none is chosen; give an index or name"):
        stack.find_channel(None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_8_and_16_bits_and_floats_are_read_as_they_are(files, tmp_path, kind, dtype):
    voxels = files.noise((1, 1, 2, 20, 30), dtype=np.uint8).astype(dtype)
    stack = open_stack(write(files, kind, tmp_path, voxels, names=("TL",)))
    assert stack.dtype == stack.read(0).dtype == dtype
    np.testing.assert_array_equal(stack.read(0), voxels[0, 0])


@pytest.mark.parametrize("kind", ["ome-tiff", "ome-zarr 0.4"])
def test_voxels_of_another_type_are_refused(files, tmp_path, kind):
    path = write(files, kind, tmp_path, np.zeros((1, 1, 2, 20, 30), np.uint32), names=("TL",))
    with pytest.raises(ValueError, match=r"a\.\S+ holds voxels of type uint32; expected one of"):
        open_stack(path)


def test_scenes_of_a_czi_are_images_of_their_own(files, tmp_path):
    voxels = files.noise((1, 2, 3, 20, 30)) // 2
    path = files.write_czi(tmp_path / "a.czi", voxels, scenes=2)
    with pytest.raises(ValueError, match="holds 2 scenes and none is chosen"):
        open_stack(path)
    for scene in range(2):
        stack = open_stack(path, scene=scene)
        assert stack.shape == (2, 3, 20, 30)
        np.testing.assert_array_equal(stack.read(1), voxels[0, 1] + scene)


def test_a_colour_czi_is_refused(tmp_path):
    from pylibCZIrw import czi

    with czi.create_czi(str(tmp_path / "rgb.czi")) as document:
        document.write(np.zeros((20, 30, 3), np.uint8), plane={"C": 0})
        document.write_metadata("test")
    with pytest.raises(ValueError, match=r"rgb\.czi holds pixels of type Bgr24; expected Gray8"):
        open_stack(tmp_path / "rgb.czi")


def test_a_corrupt_czi_is_one_line_that_names_the_file(files, tmp_path):
    path = files.write_czi(tmp_path / "a.czi", files.noise((1, 2, 3, 40, 30)))
    content = path.read_bytes()
    for length in [0, 1, 600, *range(1000, len(content) // 2, 2000)]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.czi cannot be read as CZI: .*; copy it again"):
            open_stack(path)
    path.write_bytes(b"no image at all " * 1000)
    with pytest.raises(ValueError, match=r"a\.czi cannot be read as CZI"):
        open_stack(path)


def test_the_real_czi_says_what_it_holds(sample_data):
    folder = sample_data / "two_channel_czi"
    stack = open_stack(next(folder.glob("*.czi")), time=2)
    assert stack.shape == (2, 5, 170, 240)
    assert stack.voxel_size_um == pytest.approx((0.32, 0.0906, 0.0906), rel=1e-3)
    assert stack.channel_names == ("LED555", "LED470")
    whole = stack.read(stack.find_channel("LED470"))
    assert (whole.dtype, whole.shape) == (np.uint16, (5, 170, 240))
    np.testing.assert_array_equal(stack.read(1, 2, 4), whole[2:4])
    assert whole.std() > 100


def test_the_real_ome_zarr_and_ome_tiff_are_read(sample_data):
    stack = open_stack(sample_data / "scroll1_crop" / "segment.ome.zarr")
    assert (stack.shape, stack.voxel_size_um) == ((1, 40, 156, 156), (7.91, 18.2538, 18.2538))
    folder = sample_data / "phase_to_fluorescence"
    stack = open_stack(folder / "phase_z13.ome.tif")
    assert (stack.shape, stack.voxel_size_um) == ((1, 13, 512, 512), None)
    whole = tifffile.imread(folder / "phase_z13.ome.tif")
    np.testing.assert_array_equal(stack.read(0), whole)
    assert open_stack(folder / "dapi_maxproj.tif").shape == (1, 1, 512, 512)


def test_ome_zarr_may_lack_axes_and_count_in_nanometres(files, tmp_path):
    voxels = files.noise((20, 30))
    path = files.write_ome_zarr(tmp_path / "a.zarr", voxels, "yx")
    stack = open_stack(path)
    assert stack.shape == (1, 1, 20, 30)
    assert stack.voxel_size_um == (0.1, 0.1, 0.1)
    np.testing.assert_array_equal(stack.read(0), voxels[None])
    text = (path / ".zattrs").read_text().replace("micrometer", "nanometer")
    (path / ".zattrs").write_text(text)
    assert open_stack(path).voxel_size_um == pytest.approx((1e-4, 1e-4, 1e-4))


@pytest.mark.parametrize(("zarr_format", "chunk"), [(2, "0.0.0"), (3, "c/0/0/0")])
def test_a_damaged_chunk_is_one_line_that_names_the_folder(files, tmp_path, zarr_format, chunk):
    options = {"axes": "zyx", "zarr_format": zarr_format}
    path = files.write_ome_zarr(tmp_path / "a.zarr", files.noise((2, 30, 40)), **options)
    content = (path / "0" / chunk).read_bytes()
    (path / "0" / chunk).write_bytes(b"x" * len(content))
    with pytest.raises(ValueError, match=r"a\.zarr holds damaged chunks \(.*; copy it again"):
        open_stack(path).read(0)


def test_ome_zarr_of_other_axes_is_refused(files, tmp_path):
    path = files.write_ome_zarr(tmp_path / "a.zarr", files.noise((2, 3, 4)), "zyc")
    with pytest.raises(ValueError, match=r"a\.zarr has axes z, y, c; expected t, c, z, y, x"):
        open_stack(path)


def test_what_is_no_image_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*none\.tif; check the path"):
        open_stack(tmp_path / "none.tif")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "folder"):
        with pytest.raises(ValueError, match=rf"{name} is no image of a known format; .*CZI"):
            open_stack(tmp_path / name)
        assert not is_image(tmp_path / name)
    files.write_ome_zarr(tmp_path / "b.zarr", files.noise((2, 3)), "yx")
    assert is_image(tmp_path / "b.zarr")
    assert not is_image(tmp_path / ".a.tif")
    assert is_image(tmp_path / "a.TIF")


def test_the_name_of_an_image_does_not_tell_its_format(tmp_path):
    names = ["a.czi", "a.ome.tif", "a.OME.TIFF", "a.ome.zarr", "a.tif", "a"]
    assert {plain_name(tmp_path / name) for name in names} == {"a"}
    assert plain_name(tmp_path / "b.2.tif") == "b.2"
