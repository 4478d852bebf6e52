"""Fragments: every layout gives the same voxels, and bad input is found at opening."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from vesuvius.fragment import fingerprint, open_fragment, read_binary_png
from vesuvius.prepare import prepare_fragment

SHAPE = (5, 61, 47)
BANDS = [(0, 5, 0, 61), (0, 5, 0, 1), (2, 3, 60, 61), (1, 4, 5, 23), (0, 2, 16, 32)]


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, SHAPE, dtype=np.uint16)


def write_layers(folder: Path, voxels_ZYX: np.ndarray, **options: object) -> None:
    folder.mkdir(parents=True)
    for number, layer in enumerate(voxels_ZYX):
        tifffile.imwrite(folder / f"{number:02d}.tif", layer, **options)


def write_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path)


@pytest.fixture
def kaggle(tmp_path: Path, voxels: np.ndarray) -> Path:
    """A whole fragment in Kaggle layout."""
    folder = tmp_path / "1"
    write_layers(folder / "surface_volume", voxels)
    write_png(folder / "mask.png", np.tri(*SHAPE[1:], dtype=np.uint8) * 255)
    write_png(folder / "inklabels.png", np.eye(*SHAPE[1:], dtype=np.uint8) * 255)
    return folder


def test_every_layout_of_the_same_voxels_reads_the_same(kaggle: Path, tmp_path: Path) -> None:
    expected = open_fragment(kaggle)
    segment = tmp_path / "segment"
    shutil.copytree(kaggle / "surface_volume", segment / "layers")
    shutil.copy(kaggle / "mask.png", segment / "20230101_mask.png")
    shutil.copy(kaggle / "inklabels.png", segment / "20230101_inklabels.png")
    tiff = tmp_path / "tiff"
    shutil.copytree(kaggle / "surface_volume", tiff)
    shutil.copy(kaggle / "mask.png", tiff)
    prepared = prepare_fragment(kaggle, tmp_path / "out")
    for path, layout in ((segment, "segment"), (tiff, "tiff"), (prepared, "prepared")):
        fragment = open_fragment(path)
        assert fragment.layout == layout
        assert fragment.volume.shape == SHAPE
        np.testing.assert_array_equal(fragment.papyrus_mask, expected.papyrus_mask)
        for band in BANDS:
            np.testing.assert_array_equal(fragment.volume.read(*band), expected.volume.read(*band))
    for path in (segment, prepared):
        np.testing.assert_array_equal(open_fragment(path).ink_label, expected.ink_label)
    assert open_fragment(prepared).name == expected.name == "1"


def test_the_real_16_bit_slices_are_read_in_order(sample_data: Path) -> None:
    fragment = open_fragment(sample_data / "uint16_layers")
    assert fragment.volume.shape == (25, 384, 384)
    slices = sorted((sample_data / "uint16_layers").glob("*.tif"))
    expected = np.stack([tifffile.imread(path) >> 8 for path in slices])
    np.testing.assert_array_equal(fragment.volume.read(0, 25, 100, 140), expected[:, 100:140])


def test_a_missing_mask_is_all_true_and_said_so(
    tmp_path: Path, voxels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_layers(tmp_path / "a", voxels)
    fragment = open_fragment(tmp_path / "a")
    assert fragment.papyrus_mask.all()
    assert fragment.papyrus_mask.shape == SHAPE[1:]
    assert "no papyrus mask" in capsys.readouterr().err


def test_a_given_mask_replaces_the_own_one(kaggle: Path, tmp_path: Path) -> None:
    own = open_fragment(kaggle).papyrus_mask
    write_png(tmp_path / "other.png", ~own)
    store = prepare_fragment(kaggle, tmp_path)
    for path in (kaggle, store):
        fragment = open_fragment(path, mask_path=tmp_path / "other.png")
        np.testing.assert_array_equal(fragment.papyrus_mask, ~own)


def test_the_fingerprint_follows_every_file(kaggle: Path) -> None:
    before = fingerprint(open_fragment(kaggle))
    assert fingerprint(open_fragment(kaggle)) == before
    (kaggle / "notes.txt").write_bytes(b"not read")
    assert fingerprint(open_fragment(kaggle)) == before
    write_png(kaggle / "ir.png", np.ones(SHAPE[1:], bool))
    for name in ("surface_volume/03.tif", "mask.png", "inklabels.png", "ir.png"):
        os.utime(kaggle / name, ns=(0, 1))
        after = fingerprint(open_fragment(kaggle))
        assert after != before
        before = after


def test_without_its_label_a_fragment_neither_reads_nor_counts_it(
    kaggle: Path, tmp_path: Path
) -> None:
    store = prepare_fragment(kaggle, tmp_path)
    for path, label in ((kaggle, "inklabels.png"), (store, "ink_label.npy")):
        assert open_fragment(path).ink_label is not None
        before = fingerprint(open_fragment(path, with_label=False))
        (path / label).write_bytes(b"no image")
        fragment = open_fragment(path, with_label=False)
        assert fragment.ink_label is None
        assert fingerprint(fragment) == before
        (path / label).unlink()
        assert fingerprint(open_fragment(path, with_label=False)) == before


def test_a_linked_fragment_has_the_name_of_the_link(
    kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scroll.zarr").symlink_to(kaggle)
    assert open_fragment(tmp_path / "scroll.zarr").name == "scroll"
    monkeypatch.chdir(kaggle)
    assert open_fragment(".").name == "1"


def test_hidden_images_are_not_taken_for_masks(tmp_path: Path, voxels: np.ndarray) -> None:
    write_layers(tmp_path / "layers", voxels)
    write_png(tmp_path / "a_mask.png", np.tri(*SHAPE[1:], dtype=bool))
    for name in ("._a_mask.png", "._a_inklabels.png"):
        (tmp_path / name).write_bytes(b"what macOS leaves beside a file")
    fragment = open_fragment(tmp_path)
    np.testing.assert_array_equal(fragment.papyrus_mask, np.tri(*SHAPE[1:], dtype=bool))
    assert fragment.ink_label is None


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def copy(old: str, new: str):
    return lambda folder: shutil.copy(folder / old, folder / new)


def put(name: str, layer: np.ndarray, **options: object):
    return lambda folder: tifffile.imwrite(folder / name, layer, **options)


def put_png(name: str, image: np.ndarray):
    return lambda folder: write_png(folder / name, image)


def cut(name: str, size: int):
    return lambda folder: os.truncate(folder / name, size)


def empty(name: str):
    return lambda folder: [path.unlink() for path in (folder / name).iterdir()]


LAYER = "surface_volume/02.tif"
ZEROS = np.zeros(SHAPE[1:], np.uint16)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove(LAYER), ValueError, r"surface_volume lacks 02\.tif; .* from 0 to 4"),
        (remove("surface_volume/00.tif"), ValueError, r"lacks 00\.tif"),
        (rename("surface_volume/04.tif", "surface_volume/20.tif"), ValueError, "and 11 more;"),
        (copy(LAYER, "surface_volume/2.tif"), ValueError, r"twice: 02\.tif and 2\.tif; remove"),
        (copy(LAYER, "surface_volume/02.TIFF"), ValueError, r"twice: 02\.TIFF and 02\.tif"),
        (copy(LAYER, "surface_volume/02 copy.tif"), ValueError, r"02 copy\.tif is not a numb"),
        (copy(LAYER, "surface_volume/old02.tif"), ValueError, r"old02\.tif is not a numbered"),
        (empty("surface_volume"), ValueError, "surface_volume holds no TIFF layers"),
        (put(LAYER, ZEROS[:, 1:]), ValueError, r"02\.tif is 61 x 46 .* 00\.tif is 61 x 47"),
        (put(LAYER, ZEROS.astype(np.uint8)), ValueError, r"02\.tif is uint8 but 00.* uint16"),
        (put(LAYER, ZEROS.astype(np.float32)), ValueError, r"02\.tif .*float32; .*convert"),
        (put(LAYER, ZEROS.astype(np.int16)), ValueError, r"02\.tif .* int16; .*convert"),
        (
            put(LAYER, np.zeros((61, 47, 3), np.uint8), photometric="rgb"),
            ValueError,
            r"02\.tif .*\(61, 47, 3\).*one channel",
        ),
        (put(LAYER, np.stack([ZEROS, ZEROS])), ValueError, r"02\.tif holds 2 page"),
        (cut(LAYER, 2000), ValueError, r"02\.tif is truncated: 2000 of \d+ bytes; copy"),
        (cut(LAYER, 100), ValueError, r"02\.tif is not a readable TIFF .*copy it again"),
        (cut(LAYER, 0), ValueError, r"02\.tif is not a readable TIFF"),
        (remove("mask.png"), FileNotFoundError, r"mask\.png not found"),
        (
            put_png("mask.png", np.ones((61, 46), bool)),
            ValueError,
            r"mask\.png is 61 x 46 but .*61 x 47",
        ),
        (
            put_png("inklabels.png", np.ones((6, 4), bool)),
            ValueError,
            r"inklabels\.png is 6 x 4 but",
        ),
        (put_png("mask.png", np.zeros(SHAPE[1:], bool)), ValueError, r"mask\.png is all black"),
        (cut("mask.png", 70), ValueError, r"mask\.png is not a readable image"),
        (cut("mask.png", 20), ValueError, r"mask\.png is not a readable image"),
        (cut("mask.png", 0), ValueError, r"mask\.png is not a readable image"),
    ],
)
def test_bad_input_is_refused_at_opening_in_one_line(
    kaggle: Path, damage, error: type[Exception], message: str
) -> None:
    damage(kaggle)
    with pytest.raises(error, match=message) as caught:
        open_fragment(kaggle)
    assert "\n" not in str(caught.value)
    assert str(kaggle) in str(caught.value)


def test_paths_that_are_no_fragment_are_refused(kaggle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mask.png").touch()
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        open_fragment(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a folder"):
        open_fragment(kaggle / "mask.png")
    with pytest.raises(ValueError, match=r"empty is empty; expected surface_volume/"):
        open_fragment(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"other holds no layers; expected"):
        open_fragment(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"no\.png not found"):
        open_fragment(kaggle, mask_path=tmp_path / "no.png")


def test_several_masks_are_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    write_layers(tmp_path / "layers", voxels)
    for name in ("a_mask.png", "b_mask.png"):
        write_png(tmp_path / name, np.ones(SHAPE[1:], bool))
    with pytest.raises(ValueError, match=r"a_mask\.png, b_mask\.png; rename .* mask\.png"):
        open_fragment(tmp_path)


def truth() -> np.ndarray:
    return np.random.default_rng(1).random((30, 20)) > 0.7


def with_palette(indices: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette(palette)
    return image


@pytest.mark.parametrize(
    "make",
    [
        lambda ink: with_palette(ink, [0, 0, 0, 255, 255, 255]),
        lambda ink: with_palette(~ink, [255, 255, 255, 0, 0, 0]),
        lambda ink: with_palette(ink, [0, 0, 0, 1, 1, 1, 255, 0, 0]),
        lambda ink: Image.fromarray(ink),
        lambda ink: Image.fromarray(ink.astype(np.uint8)),
        lambda ink: Image.fromarray(ink.astype(np.uint8) * 255),
        lambda ink: Image.fromarray(np.where(ink, 200, 40).astype(np.uint8)),
        lambda ink: Image.fromarray(ink.astype(np.uint16) * 65535),
        lambda ink: Image.fromarray(ink.astype(np.uint16)),
        lambda ink: Image.fromarray(np.repeat(ink[..., None], 3, 2).astype(np.uint8) * 255),
        lambda ink: Image.fromarray(ink.astype(np.uint8) * 255).convert("RGBA"),
        lambda ink: Image.fromarray(ink.astype(np.uint8) * 255).convert("LA"),
    ],
    ids=[
        "palette 0/255",
        "inverted palette",
        "palette 0/1, unused red",
        "1 bit",
        "0/1",
        "0/255",
        "40/200",
        "16 bit 0/65535",
        "16 bit 0/1",
        "RGB",
        "RGBA",
        "LA",
    ],
)
def test_black_and_white_is_read_whatever_the_mode(tmp_path: Path, make) -> None:
    make(truth()).save(tmp_path / "a.png")
    image = read_binary_png(tmp_path / "a.png")
    assert image.dtype == bool
    np.testing.assert_array_equal(image, truth())


def test_an_all_black_and_an_all_white_image_stay_so(tmp_path: Path) -> None:
    for value in (0, 1, 255):
        write_png(tmp_path / "a.png", np.full((3, 4), value, np.uint8))
        assert (read_binary_png(tmp_path / "a.png") == bool(value)).all()


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_coloured_image_is_refused(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (4, 3), (255, 0, 0)).convert(mode)
    red.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is coloured"):
        read_binary_png(tmp_path / "a.png")


def test_images_beyond_pillows_size_limit_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "a.png", truth())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(read_binary_png(tmp_path / "a.png"), truth())
    assert Image.MAX_IMAGE_PIXELS == 10


def test_the_real_ink_label_has_the_pixels_of_its_run_lengths(sample_data: Path) -> None:
    folder = sample_data / "kaggle_fragment_1"
    ink = read_binary_png(folder / "inklabels.png")
    runs = (folder / "inklabels_rle.csv").read_text().split(",")[-1].split()
    assert ink.shape == (8181, 6330)
    assert abs(int(ink.sum()) - sum(map(int, runs[1::2]))) <= 2
