"""TIFF layers: bands are read right however layers are stored, and cut files are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from vesuvius.layers import open_layers

SHAPE = (5, 61, 47)
BANDS = [(0, 5, 0, 61), (0, 5, 0, 1), (2, 3, 60, 61), (1, 4, 5, 23), (0, 2, 16, 32)]


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, SHAPE, dtype=np.uint16)


def write_layers(folder: Path, voxels_ZYX: np.ndarray, **options: object) -> None:
    folder.mkdir(parents=True)
    for number, layer in enumerate(voxels_ZYX):
        tifffile.imwrite(folder / f"{number:02d}.tif", layer, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"rowsperstrip": 7},
        {"bigtiff": True},
        {"tile": (16, 32)},
        {"compression": "zlib"},
        {"compression": "lzw", "rowsperstrip": 8},
        {"compression": "zstd", "tile": (16, 32)},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 8, "byteorder": ">"},
    ],
    ids=str,
)
def test_bands_of_layers_equal_the_high_byte_of_what_was_written(
    tmp_path: Path, voxels: np.ndarray, options: dict[str, object]
) -> None:
    if options.get("compression") in ("lzw", "zstd"):
        pytest.importorskip("imagecodecs")
    write_layers(tmp_path / "layers", voxels, **options)
    volume = open_layers(tmp_path / "layers")
    assert volume.shape == SHAPE
    for z_start, z_stop, y_start, y_stop in BANDS:
        band = volume.read(z_start, z_stop, y_start, y_stop)
        assert band.dtype == np.uint8
        np.testing.assert_array_equal(band, voxels[z_start:z_stop, y_start:y_stop] >> 8)


def test_8_bit_layers_are_read_as_they_are(tmp_path: Path, voxels: np.ndarray) -> None:
    write_layers(tmp_path / "layers", voxels.astype(np.uint8))
    band = open_layers(tmp_path / "layers").read(0, 5, 3, 9)
    np.testing.assert_array_equal(band, voxels.astype(np.uint8)[:, 3:9])


def test_layers_are_ordered_by_number_not_by_name(tmp_path: Path, voxels: np.ndarray) -> None:
    for number in (8, 9, 10, 11):
        tifffile.imwrite(tmp_path / f"z{number}.tif", voxels[number - 8])
    np.testing.assert_array_equal(open_layers(tmp_path).read(0, 4, 0, 61), voxels[:4] >> 8)


def test_a_band_decodes_only_the_strips_that_cover_it(tmp_path: Path, voxels: np.ndarray) -> None:
    path = tmp_path / "0.tif"
    tifffile.imwrite(path, voxels[0], compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[2], tif.pages[0].databytecounts[2]
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + count] = bytes(count)
    path.write_bytes(damaged)
    volume = open_layers(tmp_path)
    np.testing.assert_array_equal(volume.read(0, 1, 0, 16)[0], voxels[0, :16] >> 8)
    np.testing.assert_array_equal(volume.read(0, 1, 24, 61)[0], voxels[0, 24:] >> 8)
    with pytest.raises(ValueError, match=r"0\.tif is damaged near row 16 \(.*\); copy it again"):
        volume.read(0, 1, 15, 17)


@pytest.mark.parametrize("compression", ["zlib", "lzma", "lzw", "zstd", "packbits", "lerc"])
def test_damage_inside_a_compressed_layer_is_named_whatever_the_codec(
    tmp_path: Path, voxels: np.ndarray, compression: str
) -> None:
    pytest.importorskip("imagecodecs")
    path = tmp_path / "0.tif"
    tifffile.imwrite(path, voxels[0], compression=compression, rowsperstrip=8)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + count] = bytes([0xFF]) * count
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"0\.tif is damaged near row 8 \(.*\); copy it again"):
        open_layers(tmp_path).read(0, 1, 0, 61)


def test_damage_is_named_without_imagecodecs_too(tmp_path: Path, voxels: np.ndarray) -> None:
    path = tmp_path / "0.tif"
    tifffile.imwrite(path, voxels[0], compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + count] = bytes(count)
    path.write_bytes(damaged)
    script = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from pathlib import Path; from vesuvius.layers import open_layers\n"
        "open_layers(Path(sys.argv[1])).read(0, 1, 0, 61)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert re.search(r"ValueError: .*0\.tif is damaged near row 0 \(.*\); copy it", done.stderr)


@pytest.mark.parametrize("options", [{"rowsperstrip": 7}, {"compression": "zlib"}], ids=str)
def test_a_layer_cut_anywhere_is_refused(
    tmp_path: Path, voxels: np.ndarray, options: dict[str, object]
) -> None:
    path = tmp_path / "0.tif"
    tifffile.imwrite(path, voxels[0], **options)
    size = path.stat().st_size
    for length in [*range(size - 1, size - 10, -1), *range(600, -1, -11)]:
        os.truncate(path, length)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            open_layers(tmp_path)
        tifffile.imwrite(path, voxels[0], **options)


def test_a_missing_codec_is_named_with_its_remedy(tmp_path: Path, voxels: np.ndarray) -> None:
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "0.tif", voxels[0], compression="lzw")
    script = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from pathlib import Path; from vesuvius.layers import open_layers\n"
        "open_layers(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert re.search(
        r"ValueError: .*0\.tif is compressed \(LZW\).*pip install imagecodecs",
        done.stderr,
    )
