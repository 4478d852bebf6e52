"""Synthetic cells: seeded, read like real data, and predictable from transmitted light."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from ssp import simulate as module
from ssp.cells import CellLayer
from ssp.optics import defocused
from ssp.prepare import prepare
from ssp.prepared import open_data
from ssp.readers import open_stack
from ssp.simulate import draw_image, simulate
from ssp.structures import DENSITIES
from ssp.tasks import STRUCTURES

SIZE = (16, 64, 72)
VOXEL_UM = (0.4, 0.3, 0.3)


def test_images_are_read_and_prepared_like_real_ones(tmp_path):
    tasks = ("dna", "zo1")
    simulate(tmp_path / "cells", size=SIZE, images=2, tasks=tasks, voxel_size=VOXEL_UM)
    stack = open_stack(tmp_path / "cells" / "images" / "zo1_01.ome.tif")
    assert (stack.shape, stack.dtype) == ((2, *SIZE), np.uint16)
    assert stack.voxel_size_um == pytest.approx(VOXEL_UM)
    assert stack.channel_names == ("transmitted light", "tight junction")
    prepare((tmp_path / "cells",), out=tmp_path / "data")
    data = open_data(tmp_path / "data")
    assert data.tasks == tasks
    assert [image.name for image in data.select("train", ["dna"])] != []
    assert {image.signal.shape for image in data.images} == {(22, 66, 74)}


def test_the_same_seed_gives_the_same_cells_and_another_gives_others():
    first = draw_image("dna", SIZE, VOXEL_UM, (0, 1))
    np.testing.assert_array_equal(first, draw_image("dna", SIZE, VOXEL_UM, (0, 1)))
    for other in (("dna", (0, 2)), ("dna", (1, 1)), ("lamin_b1", (0, 1))):
        light = draw_image(other[0], SIZE, VOXEL_UM, other[1])[0]
        assert abs(np.corrcoef(light.ravel(), first[0].ravel())[0, 1]) < 0.5


def test_the_same_command_again_writes_only_what_is_missing(tmp_path, monkeypatch):
    options = {"size": SIZE, "images": 2, "tasks": ("dna",)}
    simulate(tmp_path / "a", **options)
    (tmp_path / "a" / "images" / "dna_01.ome.tif").unlink()
    drawn, inner = [], module.draw_image
    monkeypatch.setattr(module, "draw_image", lambda *a: drawn.append(a[3]) or inner(*a))
    simulate(tmp_path / "a", **options)
    assert drawn == [(0, 1)]
    simulate(tmp_path / "a", **options)
    assert len(drawn) == 1
    with pytest.raises(ValueError, match="already holds a simulation with another seed, tasks;"):
        simulate(tmp_path / "a", size=SIZE, images=2, tasks=("zo1",), seed=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    with pytest.raises(ValueError, match="already exists and is no simulation"):
        simulate(tmp_path / "b", **options)


@pytest.mark.parametrize("task", STRUCTURES)
def test_every_structure_lies_where_it_belongs(task):
    cells = CellLayer((24, 96, 96), (0.35, 0.3, 0.3), (0,))
    density = DENSITIES[task](cells)
    assert density.shape == cells.shape
    assert density.min() >= 0
    assert density.max() > 0.3
    assert density[cells.inside > 0.1].sum() > 0.8 * density.sum()
    if task in ("dna", "fibrillarin"):
        assert density[cells.nuclei < 0.2].sum() > 0.9 * density.sum()
    elif task != "lamin_b1":
        assert density[cells.nuclei < -0.3].sum() < 0.15 * density.sum()


def test_a_transparent_body_vanishes_in_focus_and_inverts_across_it():
    phase = np.zeros((21, 32, 32), np.float32)
    phase[10, 14:18, 14:18] = 0.1
    contrast = defocused(phase, (0.3, 0.3, 0.3))
    centre = contrast[:, 15, 15]
    assert abs(centre[10]) < 0.2 * abs(centre).max()
    assert centre[7] * centre[13] < 0
    np.testing.assert_allclose(defocused(2 * phase, (0.3, 0.3, 0.3)), 2 * contrast, atol=1e-6)


def features(light):
    """Return the light of a voxel, its planes above and below, blurred in several ways."""
    light = (light - light.mean()) / light.std()
    maps = [gaussian_filter(light, (0, s, s)) for s in (0.7, 1.5, 3, 8)]
    maps += [np.sqrt(gaussian_filter((light - maps[1]) ** 2, (1, s, s))) for s in (1.5, 3, 6, 9)]
    maps += [np.roll(m, shift, axis=0) for m in maps[:4] for shift in (-8, -4, 4, 8)]
    depth = np.linspace(-1, 1, len(light), dtype=np.float32)[:, None, None]
    maps += [depth**power * np.ones_like(light) for power in range(5)]
    maps += [m * depth**p for m in maps[:8] for p in (1, 2)]
    return np.stack([m.ravel() for m in maps], axis=1).astype(np.float32)


def ridge_correlation(task):
    """Return Pearson r of a ridge regression, trained on one image, on another."""
    pairs = [draw_image(task, (24, 96, 96), (0.35, 0.3, 0.3), (0, n)) for n in range(2)]
    (x, y), (unseen, truth) = [(features(p[0].astype(np.float32)), p[1].ravel()) for p in pairs]
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, unseen = (x - mean) / std, (unseen - mean) / std
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return float(np.corrcoef(unseen @ weights, truth)[0, 1])


@pytest.mark.slow
def test_structures_are_predictable_and_some_more_than_others():
    large, small = (
        [ridge_correlation(task) for task in tasks]
        for tasks in (("dna", "membrane_caax_63x"), ("alpha_tubulin", "desmoplakin", "st6gal1"))
    )
    assert min(large) > 0.3
    assert min(small) > 0.05
    assert max(small) < min(large) - 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (4, 64, 64)}, "--size 4 64 64 is too small for cells; use 8 32 32 or more"),
        ({"images": 0}, "--images 0"),
        ({"tasks": ("dna", "nucleus")}, "unknown task nucleus; choose from alpha_tubulin, beta"),
        ({"tasks": ("dna", "dna")}, "must name tasks, each once"),
        ({"voxel_size": (0.29, 0.29, 5)}, r"--voxel-size 0\.29 0\.29 5 is outside"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        simulate(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_an_image_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(path, *args, **options):
        path.write_bytes(b"half")
        raise OSError("disk on fire")

    monkeypatch.setattr(tifffile, "imwrite", fail)
    with pytest.raises(OSError, match="disk on fire"):
        simulate(tmp_path / "a", size=SIZE, images=1, tasks=("dna",))
    assert not list((tmp_path / "a" / "images").iterdir())
    assert not (tmp_path / "a" / "list.csv").exists()
