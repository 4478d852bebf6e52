"""`vesuvius analyze`: one page and one record that say what the voxels say."""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.files import read_json
from tests.vesuvius.conftest import NUM_LAYERS
from vesuvius.analysis import analyze_fragment, why_no_contrast
from vesuvius.analysis_page import page_section, record
from vesuvius.analyze import analyze
from vesuvius.cli import main
from vesuvius.fragment import open_fragment
from vesuvius.statistics import VolumeStatistics, layer_histograms


def pictures(out: Path) -> list[np.ndarray]:
    """Return the pictures of the page, decoded."""
    page = (out / "index.html").read_text(encoding="utf-8")
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert page.count("<img") == len(found), "a picture lies outside the page"
    return [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 1) for one in found]


@pytest.fixture(scope="module")
def analyzed(fragments, prepared, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("analysis") / "out"
    analyze((fragments["1"], prepared / "1.vol"), out=out, patches=1, patch_size=32)
    return out


@pytest.fixture
def first(analyzed) -> dict:
    return read_json(analyzed / "analysis.json")["fragments"][0]


def test_the_page_stands_alone_with_every_plot_of_every_fragment(analyzed):
    assert sorted(path.name for path in analyzed.iterdir()) == ["analysis.json", "index.html"]
    found = pictures(analyzed)
    assert len(found) == 2 * 6  # ink is everywhere, so there is no patch without
    assert all(picture.std() > 5 for picture in found)


def test_the_record_counts_mask_label_and_histograms_as_they_are(first, fragments):
    fragment = open_fragment(fragments["1"])
    voxels = fragment.volume.read(0, NUM_LAYERS, 0, 128)
    mask, ink = fragment.papyrus_mask, fragment.ink_label & fragment.papyrus_mask
    coverage = first["coverage"]
    assert coverage["papyrus_pixels"] == mask.sum()
    assert coverage["papyrus_share"] == pytest.approx(mask.mean())
    assert coverage["ink_pixels"] == ink.sum()
    assert coverage["ink_share_of_papyrus"] == pytest.approx(ink.sum() / mask.sum())
    assert coverage["ink_pixels_off_papyrus"] == (fragment.ink_label & ~mask).sum()
    for z, layer in enumerate(voxels):
        counts = np.bincount(layer[ink], minlength=256)
        np.testing.assert_array_equal(first["ink"]["histograms_ink"][z], counts)
        np.testing.assert_array_equal(
            first["histograms"][z], np.bincount(layer[mask], minlength=256)
        )
        assert first["z_profile"][z] == pytest.approx(layer[mask].mean())
        assert first["z_std"][z] == pytest.approx(layer[mask].std())
    statistics = VolumeStatistics(layer_histograms(fragment.volume, mask))
    assert first["sheet_depth"] == statistics.sheet_depth


def test_bright_ink_is_told_with_its_layer_its_contrast_and_in_words(first):
    best = first["ink"]["best_layer"]
    assert best["verdict"] == "denied"
    assert best["layer"] in (4, 5, 6)
    assert best["auc"] > 0.9
    contrast = np.array(first["ink"]["layers"]["contrast"])
    assert set(np.argsort(contrast)[-3:]) == {4, 5, 6}
    assert "is denied for this data" in best["words"]
    assert len(best["shifted_jensen_shannon"]) == 23
    depths = np.array(first["depth_map"], float)
    assert depths.shape == (4, 5)
    assert np.nanmin(depths) >= 5
    assert np.nanmax(depths) <= 8


def test_a_prepared_volume_gives_the_same_numbers_as_its_layers(analyzed):
    layers, stored = read_json(analyzed / "analysis.json")["fragments"]
    assert (layers.pop("layout"), stored.pop("layout")) == ("kaggle", "prepared")
    assert layers.pop("path") != stored.pop("path")
    assert layers == stored


def test_without_a_label_the_ink_parts_are_left_out_and_it_is_said(fragments, tmp_path, capsys):
    bare = shutil.copytree(fragments["1"], tmp_path / "bare")
    (bare / "inklabels.png").unlink()
    analyze((bare,), out=tmp_path / "out", patches=1, patch_size=32)
    said = "there is no ink label, so nothing can be said about ink"
    assert f"bare: {said}" in capsys.readouterr().err
    assert said.capitalize() in (tmp_path / "out" / "index.html").read_text()
    found = read_json(tmp_path / "out" / "analysis.json")["fragments"][0]
    assert found["ink"] is None
    assert found["coverage"]["ink_pixels"] is None
    assert list(found["patches"]) == ["without a label"]
    assert len(pictures(tmp_path / "out")) == 4


@pytest.mark.parametrize(("value", "why"), [(0, "shows no ink"), (255, "calls all papyrus ink")])
def test_a_label_that_is_all_one_thing_cannot_be_compared(value, why, fragments):
    fragment = open_fragment(fragments["1"])
    flat = replace(fragment, ink_label=np.full((128, 144), value > 0))
    found = analyze_fragment(flat, 23, 0, 32, 0)
    assert found.contrast is None
    assert why in why_no_contrast(found)
    assert why in page_section(found)


def test_too_few_shifted_labels_on_papyrus_are_said_with_the_remedy(fragments):
    fragment = open_fragment(fragments["1"])
    speck = replace(
        fragment, ink_label=np.zeros((128, 144), bool), papyrus_mask=np.eye(128, 144) > 0
    )
    speck.ink_label[7, 7] = True
    found = analyze_fragment(speck, 23, 0, 32, 0)
    assert found.contrast is None
    assert "fewer than 19 shifted labels lie on papyrus" in why_no_contrast(found)
    assert "give more --shifts" in why_no_contrast(found)


def test_each_option_changes_what_it_says(fragments):
    def found(shifts: int = 23, patches: int = 4, size: int = 32, seed: int = 0) -> dict:
        return record(analyze_fragment(open_fragment(fragments["1"]), shifts, patches, size, seed))

    usual, more, seeded = found(), found(shifts=30), found(seed=1)
    assert len(usual["ink"]["together"]["shifted_jensen_shannon"]) == 23
    assert len(more["ink"]["together"]["shifted_jensen_shannon"]) == 30
    assert more["histograms"] == usual["histograms"] == seeded["histograms"]
    assert seeded["ink"]["layers"] == usual["ink"]["layers"]
    assert seeded["ink"]["shifted_layers"] != usual["ink"]["shifted_layers"]
    assert seeded["patches"] != usual["patches"]
    assert len(usual["patches"]["with ink"]) == 4
    assert found(patches=0)["patches"] == {"with ink": [], "without ink": []}
    wide = found(size=96)["patches"]["with ink"]
    assert {(patch["y"], patch["x"]) for patch in wide} <= {(0, 0), (0, 32), (32, 0), (32, 32)}


def test_options_of_the_command_reach_the_page(analyzed):
    stored = read_json(analyzed / "analysis.json")
    options = {"shifts": 23, "patches": 1, "patch_size": 32, "seed": 0}
    assert stored["provenance"]["options"] == options
    assert len(stored["fragments"][0]["patches"]["with ink"]) == 1


def test_the_same_command_again_replaces_its_own_output_only(analyzed, fragments, tmp_path):
    out = shutil.copytree(analyzed, tmp_path / "out")
    analyze((fragments["1"],), out=out, patches=0)
    first, _ = read_json(analyzed / "analysis.json")["fragments"]
    (again,) = read_json(out / "analysis.json")["fragments"]
    assert again == first | {"patches": {"with ink": [], "without ink": []}}
    assert len(pictures(out)) == 5
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files than an analysis"):
        analyze((fragments["1"],), out=out)
    with pytest.raises(ValueError, match=r"notes\.txt is a file"):
        analyze((fragments["1"],), out=out / "notes.txt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shifts", "18"], "shifts 18 is below 19"),
        (["--patches", "-1"], "patches -1 or seed 0 is negative"),
        (["--seed", "-5"], "seed -5 is negative"),
        (["--patch-size", "50"], "patch_size 50 does not fit a fragment of 128 x 144"),
        (["--patch-size", "160"], "multiple of 32 from 32 to 128"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_read(
    options, says, fragments, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vesuvius", "analyze", str(fragments["1"]), "--out", "out",
                                     *options])  # fmt: skip
    assert main() == 2
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vesuvius: error: ")
    assert says in line
    assert not any("analyze" in text for text in before)
    assert not (tmp_path / "out").exists()


def test_every_fragment_is_opened_before_the_first_is_read(fragments, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        analyze((fragments["1"], tmp_path / "nowhere"), out=tmp_path / "out")
    assert "rows" not in capsys.readouterr().err


def test_no_fragment_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no fragment given"):
        analyze((), out=tmp_path / "out")


def test_the_real_crop_is_analyzed_alike_from_layers_and_zarr(sample_data):
    crop = sample_data / "scroll1_crop"
    paths = crop, crop / "segment.ome.zarr"
    layers, stored = (record(analyze_fragment(open_fragment(path), 23, 4, 64, 0)) for path in paths)
    assert layers["layer_order"]["order"] == stored["layer_order"]["order"] == "unknown"
    assert abs(12 + layers["sheet_depth"] - 33) <= 2  # its first layer is number 12
    assert layers["coverage"]["papyrus_share"] < stored["coverage"]["papyrus_share"] == 1
