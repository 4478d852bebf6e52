"""Fragments at another voxel size: prepared, recorded, and their maps brought back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from vesuvius.fragment import fingerprint, open_fragment
from vesuvius.prepare import prepare
from vesuvius.prepared import PreparedVolume, open_prepared
from vesuvius.resample import ResampledVolume
from vesuvius.voxel_size import (
    MapGrid,
    common_size,
    cubic,
    in_um,
    is_alike,
    native,
    note_voxel_sizes,
    resampled,
)

SHAPE = (6, 52, 40)


def write_fragment(folder: Path, seed: int = 0, layers: int = SHAPE[0]) -> Path:
    """Write a fragment in Kaggle layout with a ragged mask, a label and where it is labelled."""
    rng = np.random.default_rng(seed)
    (folder / "surface_volume").mkdir(parents=True)
    for number in range(layers):
        layer = rng.integers(0, 2**16, SHAPE[1:], dtype=np.uint16)
        tifffile.imwrite(folder / "surface_volume" / f"{number:02d}.tif", layer)
    for name, share in (("mask", 0.9), ("inklabels", 0.4), ("labelled_area", 0.8)):
        image = np.kron(rng.random((13, 10)) < share, np.ones((4, 4)))
        Image.fromarray(image.astype(np.uint8) * 255).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def fragment(tmp_path: Path) -> Path:
    return write_fragment(tmp_path / "1")


@pytest.fixture
def unsized(fragment: Path) -> Path:
    """The same as TIFF layers, which do not tell their voxel size."""
    (fragment / "surface_volume").rename(fragment / "layers")
    return fragment


def at_size(um: float, tmp_path: Path, fragment: Path, name: str = "out") -> PreparedVolume:
    prepare((fragment,), out=tmp_path / name, voxel_size=um)
    return open_prepared(tmp_path / name / "1.vol")


def test_voxels_mask_and_labels_are_prepared_at_the_size_asked_for(fragment, tmp_path):
    source = open_fragment(fragment)
    assert source.voxel_size_um == (4.0, 4.0, 4.0)  # the competition's
    stored = at_size(8, tmp_path, fragment)
    volume = ResampledVolume(source.volume, (0.5, 0.5, 0.5))
    expected = volume.read(0, 3, 0, 26).transpose(1, 2, 0)
    np.testing.assert_array_equal(stored.volume, expected)
    halves = {"papyrus_mask": source.papyrus_mask, "ink_label": source.ink_label}
    for name, whole in halves.items():  # whose squares have even sides
        np.testing.assert_array_equal(getattr(stored, name), whole[::2, ::2])
    area = source.labelled_area & source.papyrus_mask
    np.testing.assert_array_equal(stored.labelled_papyrus, area[::2, ::2])
    assert stored.info["voxel_size_um"] == [8, 8, 8]
    assert stored.info["resampled_from_um"] == [4, 4, 4]
    assert stored.info["shape"] == [26, 20, 3]
    assert open_fragment(stored.path).voxel_size_um == (8, 8, 8)
    assert open_fragment(stored.path).resampled_from_um == (4, 4, 4)


def test_a_label_is_where_it_covers_half_of_a_pixel(fragment):
    source = open_fragment(fragment)
    found = resampled(source, cubic(4 * 4 / 3)).ink_label  # pixels of 4/3
    shares = np.kron(source.ink_label, np.ones((3, 3))).reshape(39, 4, 30, 4).mean(axis=(1, 3))
    is_clear = abs(shares - 0.5) > 1e-6
    np.testing.assert_array_equal(found[is_clear], (shares >= 0.5)[is_clear])


def test_the_size_of_the_fragment_itself_changes_nothing(fragment, tmp_path):
    source = open_fragment(fragment)
    assert resampled(source, cubic(4)) is source
    stored = at_size(4, tmp_path, fragment)
    assert stored.info["resampled_from_um"] is None
    prepare((fragment,), out=tmp_path / "out")  # which is the same request
    assert stored.info["fingerprint"] == fingerprint(source)


def test_another_size_is_another_request(fragment, tmp_path, capsys):
    first = at_size(8, tmp_path, fragment)
    capsys.readouterr()
    at_size(8, tmp_path, fragment)
    assert "1.vol is already prepared\n" in capsys.readouterr().err
    for size, told in ((5, "5 um"), (None, "4 um")):
        with pytest.raises(ValueError, match=rf"1\.vol has voxels of 8 um, not of {told}; delete"):
            prepare((fragment,), out=tmp_path / "out", voxel_size=size)
    with pytest.raises(ValueError, match="has voxels of 8 um, not of 2 um"):
        prepare((fragment,), out=tmp_path / "out", input_voxel_size=2)
    others = {at_size(um, tmp_path, fragment, str(um)).info["fingerprint"] for um in (4, 5)}
    assert len(others | {first.info["fingerprint"]}) == 3
    os.utime(fragment / "mask.png", ns=(0, 1))
    with pytest.raises(ValueError, match="prepared from other files"):
        at_size(8, tmp_path, fragment)


def test_files_that_tell_no_size_need_an_option_to_be_resampled(unsized, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"does not tell its voxel size.*with --input-voxel-size"):
        at_size(8, tmp_path, unsized)
    assert not (tmp_path / "out").exists()
    prepare((unsized,), out=tmp_path / "out")
    assert open_prepared(tmp_path / "out" / "1.vol").info["voxel_size_um"] is None
    prepare((unsized,), out=tmp_path / "out", input_voxel_size=16)
    assert "is already prepared, without its voxel size" in capsys.readouterr().err
    prepare((unsized,), out=tmp_path / "told", voxel_size=8, input_voxel_size=16)
    stored = open_prepared(tmp_path / "told" / "1.vol")
    assert stored.info["shape"] == [104, 80, 12]
    assert stored.info["resampled_from_um"] == [16, 16, 16]


@pytest.mark.parametrize("um", [0, -1, float("nan"), float("inf")])
def test_what_is_no_size_is_refused(um, fragment, tmp_path):
    for option in ("voxel_size", "input_voxel_size"):
        with pytest.raises(ValueError, match="is no size; give micrometres above 0"):
            prepare((fragment,), out=tmp_path / "out", **{option: um})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("um", [0.2, 65])
def test_absurd_sizes_are_refused(um, fragment, tmp_path):
    told = rf"has voxels of 4 um, which cannot be resampled to {um} um: 16 times.*check both sizes"
    with pytest.raises(ValueError, match=told):
        at_size(um, tmp_path, fragment)


def test_papyrus_that_vanishes_is_refused(fragment):
    mask = np.zeros(SHAPE[1:], np.uint8)
    mask[20, 20] = 255
    Image.fromarray(mask).save(fragment / "mask.png")
    with pytest.raises(ValueError, match=r"1 has no papyrus left at 16 um; check its mask"):
        resampled(open_fragment(fragment), cubic(16))


def test_resampled_fragments_may_differ_in_layers(fragment, tmp_path):
    write_fragment(tmp_path / "2", layers=11)
    out = tmp_path / "out"
    prepare((fragment,), out=out)
    prepare((tmp_path / "2",), out=out, voxel_size=8)
    volumes = {name: open_prepared(out / f"{name}.vol") for name in "12"}
    assert [volume.volume.shape[2] for volume in volumes.values()] == [6, 6]
    assert list(native(volumes)) == ["1"]
    assert list(native({"2": volumes["2"]})) == ["2"]


def test_volumes_of_different_sizes_are_pointed_out(fragment, tmp_path, capsys):
    one, two = at_size(4, tmp_path, fragment), at_size(8, tmp_path, fragment, "coarse")
    note_voxel_sizes({"1": one, "2": one})
    assert not capsys.readouterr().err.splitlines()[2:]  # but for the bars of `prepare`
    note_voxel_sizes({"1": one, "2": two})
    said = capsys.readouterr().err
    assert "differ in voxel size (1 4 um, 2 8 um); prepare them with one --voxel-size" in said


def test_sizes_are_compared_as_far_as_they_are_known():
    assert is_alike((4, 4, 4), (4.05, 4, 3.95))
    assert not is_alike((4, 4, 4), (4.2, 4, 4))
    assert is_alike(None, (4, 4, 4))
    assert common_size([None, (4, 4, 4), (4.01, 4, 4)]) == (4, 4, 4)
    assert common_size([(4, 4, 4), (8, 8, 8)]) is None
    assert common_size([None]) is common_size([]) is None
    assert (in_um((7.91, 7.91, 7.91)), in_um(None)) == ("7.91 um", "unknown size")
    assert in_um((7.91, 18.2538, 18.2538)) == "7.91 x 18.25 x 18.25 um (Z, Y, X)"


@pytest.mark.parametrize("um", [1.0, 2.0, 3.1, 4.3, 8.0, 13.0])
def test_maps_come_back_on_the_own_grid_without_a_rim(fragment, um):
    mask = open_fragment(fragment).papyrus_mask
    mask[:, 30:] = False
    mask[5, 37] = mask[51, 39] = True  # alone
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(fragment / "mask.png")
    own = open_fragment(fragment)
    seen = resampled(own, cubic(um))
    grid = MapGrid.between(own, seen)
    assert grid.predicted.shape == seen.papyrus_mask.shape
    assert grid.predicted[seen.papyrus_mask].all()
    predicted = np.where(grid.predicted, np.float32(0.7), 0)[None]
    found = grid.publish(lambda start, stop: predicted[:, start:stop], 0, SHAPE[1])
    np.testing.assert_allclose(found, np.where(mask, 0.7, 0)[None], atol=1e-6)
    pieces = [grid.publish(lambda start, stop: predicted[:, start:stop], y, y + 4)
              for y in range(0, SHAPE[1], 4)]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), found)


def test_a_map_comes_back_where_it_was(fragment):
    (fragment / "mask.png").unlink()
    Image.fromarray(np.full(SHAPE[1:], 255, np.uint8)).save(fragment / "mask.png")
    own = open_fragment(fragment)
    for um in (1.0, 8.0):
        seen = resampled(own, cubic(um))
        grid = MapGrid.between(own, seen)
        height, width = seen.papyrus_mask.shape
        y, x = (np.arange(n) * um + um / 2 for n in (height, width))  # in um
        ramp = (y[:, None] / 400 + x / 800).astype(np.float32)[None]
        found = grid.publish(lambda start, stop, ramp=ramp: ramp[:, start:stop], 0, SHAPE[1])[0]
        y, x = (np.arange(n) * 4 + 2.0 for n in SHAPE[1:])
        expected = y[:, None] / 400 + x / 800
        inner = slice(2, -2), slice(2, -2)  # beyond the outermost centres there is no slope
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)
        assert abs(found - expected).max() < 0.02


def test_the_infrared_photograph_is_resampled_too(fragment, tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(photograph).save(fragment / "ir.png")
    found = at_size(8, tmp_path, fragment).ir_image
    expected = photograph.reshape(26, 2, 20, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(found, np.rint(expected))
