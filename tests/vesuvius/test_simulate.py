from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from core.files import read_json
from vesuvius import rle
from vesuvius import simulate as simulate_module
from vesuvius.fragment import open_fragment, read_binary_png
from vesuvius.glyphs import FREQUENCIES, GLYPHS, draw_text
from vesuvius.phantom import SHEET_LAYERS, Phantom, Physics
from vesuvius.simulate import draw_papyrus_mask, simulate
from vesuvius.texture import CrackleTexture, FibreTexture, SmoothField, voxel_noise

SIZE = (80, 112)
LAYERS = 24
FIBRE_PERIOD = FibreTexture.PERIOD


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Spare most tests the time that the real tile of fibres takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FibreTexture, "PERIOD", 256)
        yield


def write_png(path, image):
    Image.fromarray(image.astype(np.uint8) * 255).save(path)
    return path


def write_palette_png(path, image):
    picture = Image.fromarray(image.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(path)
    return path


def make_phantom(size, seed=0, num_layers=65, mask=None, label=None, **physics):
    rng = np.random.default_rng(seed)
    mask = draw_papyrus_mask(size, rng) if mask is None else mask
    label = draw_text(size, rng) & mask if label is None else label
    return Phantom(mask, label, num_layers, seed, replace(Physics(), **physics)), mask, label


def in_bands(phantom, rows):
    height = phantom.shape[1]
    bands = [phantom.read(y, min(y + rows, height)) for y in range(0, height, rows)]
    return np.concatenate(bands, axis=1)


def roc_auc(values, is_ink):
    """Probability that an ink value is the more extreme one, whichever way ink differs: uint16."""
    ink, bare = (np.bincount(values[where], minlength=65536) for where in (is_ink, ~is_ink))
    below = np.concatenate([[0], np.cumsum(bare)[:-1]])
    area = (ink / ink.sum() * (below + bare / 2) / bare.sum()).sum()
    return max(area, 1 - area)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated") / "a"
    simulate(path, size=SIZE, layers=LAYERS, seed=5)
    return path


def test_the_folder_has_the_kaggle_layout(folder):
    names = sorted(path.name for path in folder.iterdir())
    expected = ["inklabels.png", "inklabels_rle.csv", "ir.png", "mask.png", "simulation.json"]
    assert names == [*expected, "surface_volume"]
    layers = sorted((folder / "surface_volume").iterdir())
    assert [path.name for path in layers] == [f"{z:02}.tif" for z in range(LAYERS)]
    for path in layers:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            assert len(tiff.pages) == 1
            assert (page.shape, page.dtype, page.compression) == (SIZE, np.uint16, 1)
    fragment = open_fragment(folder)
    assert (fragment.layout, fragment.volume.shape) == ("kaggle", (LAYERS, *SIZE))
    assert fragment.papyrus_mask.any()
    assert fragment.ink_label.any()
    assert not (fragment.ink_label & ~fragment.papyrus_mask).any()


def test_the_layers_on_disk_are_the_phantom(folder):
    mask, label = (read_binary_png(folder / name) for name in ("mask.png", "inklabels.png"))
    phantom = Phantom(mask, label, LAYERS, 5, Physics())
    paths = sorted((folder / "surface_volume").iterdir())
    np.testing.assert_array_equal(
        np.stack([tifffile.imread(path) for path in paths]), phantom.read(0, SIZE[0])
    )
    np.testing.assert_array_equal(
        np.array(Image.open(folder / "ir.png")), phantom.read_infrared(0, SIZE[0])
    )


def test_the_rle_file_is_like_the_real_one(folder):
    header, row = (folder / "inklabels_rle.csv").read_bytes().decode().split("\n")
    name, runs = row.split(",")
    assert (header, name) == ("Id,Predicted", "a")
    np.testing.assert_array_equal(rle.decode(runs, SIZE), read_binary_png(folder / "inklabels.png"))


def test_masks_are_grey_images_of_0_and_255(folder):
    for name in ("mask.png", "inklabels.png"):
        image = Image.open(folder / name)
        assert image.mode == "L"
        assert np.unique(image).tolist() == [0, 255]


def test_the_real_header_of_the_rle_file_is_matched(folder, sample_data):
    with (sample_data / "kaggle_fragment_1" / "inklabels_rle.csv").open() as file:
        header = file.readline()
    assert (folder / "inklabels_rle.csv").read_text().startswith(header)


@pytest.mark.parametrize("rows", [1, 17, 32, 48, 80])
def test_voxels_do_not_depend_on_the_band_height(rows):
    # So thick in places that the sheet fills all layers made for it.
    phantom, _, _ = make_phantom(SIZE, num_layers=LAYERS, thickness_layers=4.0)
    np.testing.assert_array_equal(in_bands(phantom, rows), phantom.read(0, SIZE[0]))


def test_a_crop_of_rows_equals_the_rows_of_the_whole():
    phantom, _, _ = make_phantom(SIZE, num_layers=LAYERS)
    np.testing.assert_array_equal(phantom.read(37, 50), phantom.read(0, SIZE[0])[:, 37:50])
    np.testing.assert_array_equal(
        phantom.read_infrared(37, 50), phantom.read_infrared(0, SIZE[0])[37:50]
    )


def test_the_folder_does_not_depend_on_the_band_height(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_module, "BAND_ROWS", 23)
    simulate(tmp_path / "a", size=SIZE, layers=LAYERS, seed=5)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(folder)).read_bytes()


def test_another_seed_gives_another_fragment():
    one, two = (make_phantom(SIZE, seed=seed, num_layers=16)[0].read(0, 8) for seed in (0, 1))
    assert (one != two).mean() > 0.99


def test_the_sheet_is_as_bright_and_as_thick_as_stated():
    full = np.ones((160, 160), dtype=bool)
    phantom, _, _ = make_phantom(full.shape, mask=full)
    profile = phantom.read(0, 160).mean(axis=(1, 2))
    physics = Physics()
    assert 8_000 < profile[:10].mean() < 15_000
    assert 25_000 < profile.max() < 35_000
    inside = profile > (physics.air + physics.papyrus) / 2
    assert abs(inside.sum() - SHEET_LAYERS) <= 2
    assert abs(np.flatnonzero(inside).mean() - 32) < 3 * physics.drift_layers


def test_the_upper_ply_runs_along_x_and_the_lower_along_y():
    full = np.ones((256, 256), dtype=bool)
    phantom, _, _ = make_phantom(full.shape, mask=full, label=~full, noise=0.0, drift_layers=0.0)
    volume = phantom.read(0, 256).astype(np.float64)

    def roughness(layers):
        """Mean change from pixel to pixel along y and along x."""
        return [np.abs(np.diff(volume[layers], axis=axis)).mean() for axis in (1, 2)]

    along_y, along_x = roughness(slice(27, 30))
    assert along_y > 1.5 * along_x
    along_y, along_x = roughness(slice(34, 37))
    assert along_x > 1.5 * along_y


def test_outside_the_papyrus_there_is_only_air():
    phantom, mask, _ = make_phantom(SIZE, noise=0.0, beam_hardening=0.0)
    assert np.unique(phantom.read(0, SIZE[0])[:, ~mask]).tolist() == [Physics().air]
    empty, _, _ = make_phantom(SIZE, mask=np.zeros(SIZE, dtype=bool), num_layers=LAYERS)
    assert abs(empty.read(0, SIZE[0])[LAYERS // 2].mean() - Physics().air) < 100


def test_ink_changes_only_the_upper_surface_below_the_label():
    full = np.ones((160, 160), dtype=bool)
    label = draw_text(full.shape, np.random.default_rng(3))
    inked, bare = (
        make_phantom(full.shape, mask=full, label=ink, drift_layers=0.0)[0].read(0, 160)
        for ink in (label, ~full)
    )
    differs = inked != bare
    assert not differs[:, ~label].any()
    assert differs[:, label].any(axis=0).mean() > 0.9
    assert not differs[34:].any()


def test_ink_of_difficulty_1_leaves_no_trace_and_difficulty_0_the_strongest():
    full = np.ones((160, 160), dtype=bool)
    label = draw_text(full.shape, np.random.default_rng(3))

    def volume(label, difficulty):
        phantom, _, _ = make_phantom(full.shape, mask=full, label=label, difficulty=difficulty)
        return phantom.read(0, 160).astype(np.float32)

    bare = volume(~full, 0.0)
    easy, usual, hard, none = (
        np.abs(volume(label, difficulty) - bare).sum() for difficulty in (0.0, 0.45, 0.8, 1.0)
    )
    assert easy > 1.1 * usual > 1.1 * hard > 0 == none


def test_ink_covers_a_sixth_of_the_papyrus():
    for seed in range(4):
        _, mask, label = make_phantom((1024, 1024), seed=seed)
        assert 0.1 < label[mask].mean() < 0.2


@pytest.mark.parametrize("seed", [0, 6])
def test_ink_cannot_be_read_from_intensity(seed, monkeypatch):
    monkeypatch.setattr(FibreTexture, "PERIOD", FIBRE_PERIOD)
    phantom, mask, label = make_phantom((512, 512), seed=seed)
    volume = in_bands(phantom, 32)[:, mask]
    is_ink = label[mask]
    assert max(roc_auc(layer, is_ink) for layer in volume) < 0.6
    assert roc_auc(volume.mean(axis=0).astype(np.uint16), is_ink) < 0.6


def test_ink_can_be_read_from_texture():
    """Without noise and with its depth known, the surface is rougher along x where ink crackled."""
    full = np.ones((320, 320), dtype=bool)
    label = draw_text(full.shape, np.random.default_rng(1))
    phantom, _, _ = make_phantom(
        full.shape, mask=full, label=label, difficulty=0.0, drift_layers=0.0, wear=0.0, noise=0.0
    )
    surface = phantom.read(0, 320)[25:27].astype(np.float64).mean(axis=0)
    steps = np.abs(np.diff(surface, axis=1))
    roughness = np.lib.stride_tricks.sliding_window_view(steps, (12, 11)).mean(axis=(2, 3))
    centres = label[6 : 6 + roughness.shape[0], 6 : 6 + roughness.shape[1]]
    assert roc_auc((roughness / roughness.max() * 65535).astype(np.uint16), centres) > 0.8


def test_smooth_fields_have_mean_0_and_standard_deviation_1():
    field = SmoothField(np.random.default_rng(0), (600, 700), 8).read(0, 600)
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.05
    assert abs(field.std() - 1) < 0.05
    assert np.abs(np.diff(field, axis=0)).max() < 0.7


def test_fibres_have_mean_0_and_standard_deviation_1_and_are_long():
    texture = FibreTexture(np.random.default_rng(0), (512, 512), 2, is_horizontal=True)
    slab = texture.read(0, 512, slice(100, 400))
    assert slab.shape == (2, 512, 300)
    assert abs(slab.std() - 1) < 0.15
    lag = 8
    along = (slab[:, :, lag:] * slab[:, :, :-lag]).mean()
    across = (slab[:, lag:] * slab[:, :-lag]).mean()
    assert along > 0.5 > 0.4 > across
    upright = FibreTexture(np.random.default_rng(0), (512, 512), 2, is_horizontal=False)
    assert upright.read(0, 512, slice(None)).std() > 0.8


def test_crackle_is_a_net_that_closes_around_plates():
    net = CrackleTexture(np.random.default_rng(0), (512, 700)).read(0, 512, slice(None))
    assert (net.shape, net.dtype) == ((512, 700), np.float32)
    assert (net.min(), net.max()) == (0, 1)
    assert abs(net.mean() - CrackleTexture.MEAN) < 0.005
    assert abs(net.std() - CrackleTexture.STD) < 0.005
    num_plates, _ = cv2.connectedComponents((net == 0).astype(np.uint8), connectivity=4)
    assert num_plates > 0.7 * net.size / CrackleTexture.PLATE_PX**2


def test_crackle_is_where_the_two_nearest_of_all_points_are_equally_far():
    texture = CrackleTexture(np.random.default_rng(0), (60, 50))
    points = texture._points.reshape(2, 1, 1, -1).astype(np.float64)
    pixels = np.indices((60, 50))[..., None]
    distances = np.sort(np.hypot(*(points - pixels)), axis=-1)
    gap = distances[..., 1] - distances[..., 0]
    expected = np.clip(1.5 - gap / texture.CRACK_PX, 0, 1)
    np.testing.assert_allclose(texture.read(0, 60, slice(None)), expected, atol=1e-4)
    np.testing.assert_array_equal(
        texture.read(0, 60, slice(None))[13:40, 7:30], texture.read(13, 40, slice(7, 30))
    )


def test_crackle_shows_no_piece_twice():
    """A held-out part of a fragment must not show what was trained on, however displaced."""
    net = CrackleTexture(np.random.default_rng(0), (1024, 1024)).read(0, 1024, slice(None))
    for top, left in ((0, 0), (300, 500), (900, 120)):
        piece = net[top : top + 64, left : left + 64]
        alike = cv2.matchTemplate(net, piece, cv2.TM_CCOEFF_NORMED)
        assert alike[top, left] > 0.99
        alike[max(top - 8, 0) : top + 9, max(left - 8, 0) : left + 9] = 0
        assert alike.max() < 0.5


def test_voxel_noise_is_unit_normal_and_differs_between_layers_and_rows():
    noise = voxel_noise(0, 3, 10, 200, 300)
    assert noise.shape == (190, 300)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    np.testing.assert_array_equal(noise[30:60], voxel_noise(0, 3, 40, 70, 300))
    for other in (voxel_noise(0, 4, 10, 200, 300), voxel_noise(1, 3, 10, 200, 300)):
        assert abs((noise * other).mean()) < 0.02
    assert abs((noise[:32] * noise[32:64]).mean()) < 0.05


def test_every_letter_has_a_frequency_and_fits_its_line():
    assert len(FREQUENCIES) == len(GLYPHS) == 24
    points = np.concatenate([stroke for strokes in GLYPHS.values() for stroke in strokes])
    assert points.min() >= -0.25
    assert points.max() <= 1.25


def test_text_is_binary_and_reproducible():
    one, two = (draw_text((400, 600), np.random.default_rng(2)) for _ in range(2))
    assert one.dtype == bool
    np.testing.assert_array_equal(one, two)
    assert 0.1 < draw_text((1024, 1024), np.random.default_rng(0)).mean() < 0.2


def test_the_given_shapes_are_used(tmp_path):
    rng = np.random.default_rng(0)
    mask = draw_papyrus_mask((70, 90), rng)
    label = draw_text((70, 90), rng)
    simulate(
        tmp_path / "1",
        layers=16,
        ink_label=write_palette_png(tmp_path / "label.png", label),
        papyrus_mask=write_png(tmp_path / "mask.png", mask),
    )
    fragment = open_fragment(tmp_path / "1")
    np.testing.assert_array_equal(fragment.ink_label, label)
    np.testing.assert_array_equal(fragment.papyrus_mask, mask)
    assert fragment.volume.shape == (16, 70, 90)
    record = read_json(tmp_path / "1" / "simulation.json")
    assert record["ink_label"]["name"] == "label.png"
    assert (record["size"], record["seed"]) == ([70, 90], 0)


def test_a_finished_simulation_is_recognised_and_another_refused(folder, capsys):
    before = (folder / "ir.png").stat().st_mtime_ns
    simulate(folder, size=SIZE, layers=LAYERS, seed=5)
    assert (folder / "ir.png").stat().st_mtime_ns == before
    assert "already holds this simulation" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"another seed, physics; remove it or choose"):
        simulate(folder, size=SIZE, layers=LAYERS, seed=6, difficulty=0.1)


def test_a_folder_with_something_else_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"already exists and is no simulation"):
        simulate(tmp_path / "a", size=SIZE)
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(ValueError, match=r"^\. already exists and is no simulation"):
        simulate(Path(), size=SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (32, 100)}, "size 32 x 100 is too small; height and width are 64 or more"),
        ({"layers": 8}, "layers 8 cannot hold the sheet; 16 or more"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"difficulty": 1.5}, r"difficulty 1.5 is outside 0 .* to 1"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_sizes_or_without_papyrus_are_refused(tmp_path):
    label = write_png(tmp_path / "label.png", np.ones((70, 90)))
    mask = write_png(tmp_path / "mask.png", np.ones((70, 80)))
    black = write_png(tmp_path / "black.png", np.zeros((70, 90)))
    with pytest.raises(ValueError, match=r"mask.png is 70 x 80, .*label.png is 70 x 90"):
        simulate(tmp_path / "a", ink_label=label, papyrus_mask=mask)
    with pytest.raises(ValueError, match=r"label.png is 70 x 90, size is 64 x 64"):
        simulate(tmp_path / "a", size=(64, 64), ink_label=label)
    with pytest.raises(ValueError, match=r"black.png is all black; white is where"):
        simulate(tmp_path / "a", ink_label=label, papyrus_mask=black)
    with pytest.raises(FileNotFoundError, match=r"none.png not found"):
        simulate(tmp_path / "a", ink_label=tmp_path / "none.png")
    assert not (tmp_path / "a").exists()
