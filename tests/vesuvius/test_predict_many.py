"""Averaged predictions: as a list of maps, stopped and continued, more samples added later."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from core.checkpoint import WEIGHTS, load, save
from core.inference import stream
from core.pictures import CAPTION_ROWS
from core.provenance import file_hash
from core.tiling import TilePlan
from core.uncertainty import Member, binary_entropy, predictor
from vesuvius.cli import main
from vesuvius.ensemble import EnsembleConfig, load_ensemble
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import load_model, window_reader
from vesuvius.moments import Pass
from vesuvius.predict import choose_window, predict
from vesuvius.submission import submit

OPTIONS = {"tile_size": 40, "stride": 24, "batch_size": 4, "device": "cpu"}
FILES = {
    "prob.tif", "uncertainty.tif", "moments.tif", "preview.png", "uncertainty.png",
    "provenance.json",
}  # fmt: skip
SIX = EnsembleConfig(mc_samples=6, mc_dropout=0.6, gate_noise=2.0, seed=4)
THREE = EnsembleConfig(mc_samples=3, mc_dropout=0.6, gate_noise=2.0, seed=4)


@pytest.fixture(autouse=True)
def _short_passes(monkeypatch):
    monkeypatch.setattr("vesuvius.ensemble.NETWORKS_PER_PASS", 4)


@pytest.fixture(scope="module")
def fragment(fragments, tmp_path_factory):
    """A piece of fragment "a": 6 tiles in 2 rows, with a row of masked ones."""
    path = tmp_path_factory.mktemp("piece") / "a"
    (path / "surface_volume").mkdir(parents=True)
    for layer in (fragments["a"] / "surface_volume").iterdir():
        tifffile.imwrite(path / "surface_volume" / layer.name, tifffile.imread(layer)[20:84, :80])
    mask = np.full((64, 80), 255, np.uint8)
    mask[:9, :20] = 0
    cv2.imwrite(str(path / "mask.png"), mask)
    return path


@pytest.fixture(scope="module")
def six(run, fragment, tmp_path_factory):
    out = tmp_path_factory.mktemp("six") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vesuvius.ensemble.NETWORKS_PER_PASS", 4)
        predict(run, fragment, out=out, **OPTIONS, averaged=SIX)
    return out


@pytest.fixture(scope="module")
def second_run(run, tmp_path_factory):
    """A checkpoint that differs from that of `run`."""
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    changed = {name: tensor * 1.1 if tensor.is_floating_point() else tensor
               for name, tensor in tensors.items()}  # fmt: skip
    path = tmp_path_factory.mktemp("second") / "other.safetensors"
    meta["validation"]["meta"]["threshold"] = 0.9
    save(path, WEIGHTS, changed, meta)
    return path


def listed(run: Path, path: Path, config: EnsembleConfig) -> np.ndarray:
    """The slow twin: every member's whole map (M, Y, X), in a list."""
    ensemble, fragment = load_ensemble(run, config), open_fragment(path)
    window = choose_window(fragment, ensemble.models[0], None)
    mask = fragment.papyrus_mask
    found = []
    for number in range(ensemble.num_members):
        prob = np.empty(mask.shape, np.float32)
        stream(
            TilePlan(mask.shape, (40, 40), (24, 24)),
            window_reader(fragment.volume, window),
            predictor(ensemble.members(number, number + 1, "ink", window), "cpu"),
            lambda start, stop, values, prob=prob: prob.__setitem__(slice(start, stop), values[0]),
            batch_size=4,
            mask=mask,
        )
        found.append(prob)
    return np.stack(found)


def check_against_list(out: Path, maps: np.ndarray) -> None:
    mean, maps = maps.mean(0, dtype=np.float64), maps.astype(np.float64)
    total = binary_entropy(mean)
    expected = [maps.std(0), total, total - binary_entropy(maps).mean(0)]
    np.testing.assert_allclose(tifffile.imread(out / "prob.tif"), mean, atol=1e-7)
    uncertainty = tifffile.imread(out / "uncertainty.tif")
    assert uncertainty.dtype == np.float32
    np.testing.assert_allclose(uncertainty, expected, rtol=1e-6, atol=1e-10)


def same_bits(out: Path, expected: Path) -> None:
    for name in FILES - {"provenance.json"}:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == FILES


def test_samples_are_averaged_as_if_their_maps_were_kept(run, fragment, six):
    maps = listed(run, fragment, SIX)
    assert len({one.tobytes() for one in maps}) == 6
    check_against_list(six, maps)
    assert (tifffile.imread(six / "uncertainty.tif").max(axis=(1, 2)) > 1e-5).all()
    with tifffile.TiffFile(six / "uncertainty.tif") as file:
        assert len(file.pages) == 3
        names = file.shaped_metadata[0]["channel"]["name"]
    assert names == ["standard deviation", "predictive entropy", "mutual information"]
    outside = ~open_fragment(fragment).papyrus_mask
    assert not tifffile.imread(six / "uncertainty.tif")[:, outside].any()


def test_samples_added_later_give_the_bits_of_all_at_once(run, fragment, six, tmp_path, capsys):
    out = tmp_path / "a"
    predict(run, fragment, out=out, **OPTIONS, averaged=THREE)
    check_against_list(out, listed(run, fragment, THREE))
    capsys.readouterr()
    predict(run, fragment, out=out, **OPTIONS, averaged=SIX)
    assert "a: 18/18 tiles" in capsys.readouterr().err  # 6 tiles of 3 missing samples
    same_bits(out, six)
    assert json.loads((out / "provenance.json").read_text())["mc_samples"] == 6


def test_the_number_of_members_a_pass_changes_no_bit(run, fragment, six, tmp_path, monkeypatch):
    monkeypatch.setattr("vesuvius.ensemble.NETWORKS_PER_PASS", 1)
    predict(run, fragment, out=tmp_path / "a", **OPTIONS, averaged=SIX)
    same_bits(tmp_path / "a", six)


class Killed(Exception):
    """Stands for whatever ends a run."""


def die_at(patch: pytest.MonkeyPatch, owner: object, name: str, count: int, after: bool) -> None:
    """Let the `count`-th call of a method end the run, before or after it has done its work."""
    inner, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == count and not after:
            raise Killed
        answer = inner(*arguments, **options)
        if len(calls) == count:
            raise Killed
        return answer

    patch.setattr(owner, name, dying)


@pytest.mark.parametrize("count", range(1, 5))
def test_killed_while_predicting_and_continued(run, fragment, six, tmp_path, count):
    """6 members are 2 passes of 2 tile rows each."""
    out, predicted = tmp_path / "a", []
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, Pass, "write", count, after=count % 2 == 0)
        with pytest.raises(Killed):
            predict(run, fragment, out=out, **OPTIONS, averaged=SIX)
    assert not (out / "prob.tif").exists()
    with pytest.MonkeyPatch.context() as patch:
        inner = Member.forward
        patch.setattr(
            Member, "forward", lambda *a: predicted.append(len(a[1])) or inner(*a)
        )  # fmt: skip
        predict(run, fragment, out=out, **OPTIONS, averaged=SIX)
    same_bits(out, six)
    # 3 tiles a row; the first pass is of 4 members, the second of 2
    assert sum(predicted) == [36, 24, 12, 6][count - 1]


TWO = EnsembleConfig(mc_samples=2, mc_dropout=0.3)
FOUR = EnsembleConfig(mc_samples=4, mc_dropout=0.3)
COARSE = OPTIONS | {"tile_size": 80, "stride": 80}


@pytest.fixture(scope="module")
def two_and_four(run, fragment, tmp_path_factory):
    """Finished predictions of 2 and of 4 samples, in one tile."""
    root = tmp_path_factory.mktemp("growing")
    for name, config in (("two", TWO), ("four", FOUR)):
        predict(run, fragment, out=root / name, **COARSE, averaged=config)
    return root


@pytest.mark.parametrize("count", range(1, 9))
def test_killed_at_any_renaming_while_growing(run, fragment, two_and_four, tmp_path, count):
    """One pass adds both: a journal, 2 renamings; then 2 pictures, 2 maps, the provenance."""
    out = shutil.copytree(two_and_four / "two", tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, Path, "replace", count, after=False)
        with pytest.raises(Killed):
            predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    if (out / "provenance.json").exists():  # then all it tells of is there and nothing else
        for name in FILES - {"moments.tif"}:
            assert (out / name).read_bytes() == (two_and_four / "two" / name).read_bytes()
    assert (out / "provenance.json").exists() == (count <= 3)
    predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    same_bits(out, two_and_four / "four")


def test_finished_is_not_repeated_and_fewer_or_other_samples_are_refused(
    run, fragment, two_and_four, monkeypatch, capsys
):
    out = two_and_four / "four"
    monkeypatch.setattr("vesuvius.predict.stream", lambda *_, **__: pytest.fail("repeated"))
    with monkeypatch.context() as patch:  # it may lie where nothing can be written
        patch.setattr(Path, "unlink", lambda path, **_: pytest.fail(f"{path} is not there"))
        predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    assert "already finished" in capsys.readouterr().err

    def refuse(config, match):
        with pytest.raises(ValueError, match=match):
            predict(run, fragment, out=out, **COARSE, averaged=config)

    refuse(TWO, "holds 4 samples and none can be taken out for mc_samples 2")
    refuse(replace(FOUR, seed=1), "with other seed; delete")
    refuse(replace(FOUR, mc_samples=6, gate_noise=0.2), "with other gate_noise; delete")
    refuse(EnsembleConfig(), "holds Monte Carlo samples, and plain")
    refuse(replace(FOUR, tta=True), "with other tta_views")


def test_what_a_killed_run_left_is_cleared(run, fragment, two_and_four, tmp_path):
    out = shutil.copytree(two_and_four / "four", tmp_path / "a")
    for name in ("prob", "uncertainty", "moments"):
        (out / f".{name}.partial.tif").touch()
    predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    same_bits(out, two_and_four / "four")


def test_samples_are_not_added_to_a_plain_prediction_or_without_moments(
    run, fragment, two_and_four, tmp_path
):
    predict(run, fragment, out=tmp_path / "plain", **COARSE)
    with pytest.raises(ValueError, match="holds a plain prediction, and plain"):
        predict(run, fragment, out=tmp_path / "plain", **COARSE, averaged=TWO)
    out = shutil.copytree(two_and_four / "two", tmp_path / "a")
    (out / "moments.tif").unlink()
    predict(run, fragment, out=out, **COARSE, averaged=TWO)  # still finished
    with pytest.raises(ValueError, match=r"moments.tif is gone, .* to the 2 samples"):
        predict(run, fragment, out=out, **COARSE, averaged=FOUR)


def test_half_done_samples_of_other_settings_or_more_are_noticed(
    run, fragment, two_and_four, tmp_path
):
    for count in (1, 3):  # in the pass, and after it
        out = tmp_path / str(count)
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, Path, "replace", count, after=True)
            with pytest.raises(Killed):
                predict(run, fragment, out=out, **COARSE, averaged=FOUR)
        for other in (EnsembleConfig(), replace(FOUR, seed=9), replace(TWO, seed=9)):
            with pytest.raises(ValueError, match="belongs to a prediction with another model"):
                predict(run, fragment, out=out, **COARSE, averaged=other)
        if count == 1:
            with pytest.raises(ValueError, match=r"on its way to 4 predictions, not 2; .*journal"):
                predict(run, fragment, out=out, **COARSE, averaged=TWO)
    with pytest.raises(ValueError, match="holds 4 predictions and none can be taken out"):
        predict(run, fragment, out=out, **COARSE, averaged=TWO)
    predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    same_bits(out, two_and_four / "four")


def test_a_pass_towards_fewer_samples_goes_on_towards_more(run, fragment, two_and_four, tmp_path):
    out = tmp_path / "a"
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, Path, "replace", 1, after=True)
        with pytest.raises(Killed):
            predict(run, fragment, out=out, **COARSE, averaged=TWO)
    predict(run, fragment, out=out, **COARSE, averaged=FOUR)
    same_bits(out, two_and_four / "four")


def test_views_checkpoints_and_samples_multiply(run, second_run, fragment, tmp_path):
    config = EnsembleConfig(mc_samples=2, tta=True, tta_reversed=True, ensemble=(second_run,))
    assert load_ensemble(run, config).num_members == 2 * 16 * 2
    config = EnsembleConfig(tta=True, ensemble=(second_run,))
    out = tmp_path / "a"
    predict(run, fragment, out=out, **OPTIONS, averaged=config)
    maps = listed(run, fragment, config)
    assert len({one.tobytes() for one in maps}) == 16
    check_against_list(out, maps)
    first = listed(run, fragment, EnsembleConfig())[0]
    second = listed(second_run, fragment, EnsembleConfig())[0]
    np.testing.assert_array_equal(maps[0], first)
    np.testing.assert_array_equal(maps[8], second)
    record = json.loads((out / "provenance.json").read_text())
    assert record["tta"] == "8 views: flips and quarter turns of the plane"
    assert record["num_predictions"] == 16
    assert record["settings"]["ensemble_sha256"] == [file_hash(second_run)]
    own = load_model(run).threshold
    assert record["threshold"] == pytest.approx((own + 0.9) / 2)
    submit((out,), out=tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().startswith("Id,Predicted\na,")


def test_ensembles_see_one_window_and_name_a_model_once(run, second_run, tmp_path):
    def refuse(path, match):
        with pytest.raises(ValueError, match=match):
            load_ensemble(run, EnsembleConfig(ensemble=(second_run, path)))

    refuse(second_run, "is part of the ensemble already")
    refuse(run, "is part of the ensemble already")
    tensors, meta = load(second_run, WEIGHTS)
    meta["description"]["recipe"]["window"]["intensity"] = "raw"
    save(tmp_path / "raw.safetensors", WEIGHTS, tensors, meta)
    refuse(tmp_path / "raw.safetensors", "raw.safetensors sees intensity raw and not zscore as")


def test_samples_are_drawn_with_the_dropout_of_training_or_the_default(run):
    noise = load_ensemble(run, EnsembleConfig(mc_samples=2)).noise()
    assert noise == {"mc_dropout": 0.05, "gate_noise": 0.1, "seed": 0}
    ensemble = load_ensemble(run, EnsembleConfig(mc_samples=2, gate_noise=0.0))
    (model,) = ensemble.models
    network = replace(model.recipe.network, dropout=0.35)
    trained = replace(model, recipe=replace(model.recipe, network=network))
    assert replace(ensemble, models=(trained,)).noise()["mc_dropout"] == 0.35
    assert load_ensemble(run, EnsembleConfig(mc_samples=2, mc_dropout=0.0)).noise() == {
        "mc_dropout": 0.0, "gate_noise": 0.1, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mc-samples", "0"], "mc_samples 0 is below 1"),
        (["--mc-samples", "4", "--mc-dropout", "1.5"], "mc_dropout 1.5 is outside 0..1"),
        (["--mc-samples", "4", "--mc-dropout", "nan"], "mc_dropout nan is outside 0..1"),
        (["--mc-samples", "4", "--gate-noise", "-1"], "gate_noise -1.0 is no standard deviation"),
        (["--mc-samples", "4", "--mc-dropout", "0", "--gate-noise", "0"], "4 samples alike"),
        (["--mc-dropout", "0.3"], "mc_dropout means nothing for 1 sample"),
        (["--seed", "3"], "seed means nothing for 1 sample"),
        (["--tta-z-shift", "-1"], "tta_z_shift -1 is below 0"),
        (["--mc-samples", "many"], "many"),
        (["--ensemble", "nowhere"], "no such checkpoint"),
        (["--ensemble"], "Missing value for argument '--ensemble'"),
        (["--mc-samples", "4", "--tile-size", "2", "--stride", "2"], "tile_size 2 is at most half"),
    ],
)
def test_bad_options(run, fragment, tmp_path, capsys, monkeypatch, options, says):
    arguments = ["predict", str(run), str(fragment), "--out", str(tmp_path / "out"), *options]
    monkeypatch.setattr("sys.argv", ["vesuvius", *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vesuvius: error: ")
    assert says in line
    assert not (tmp_path / "out").exists()


def test_the_command_line_averages(run, fragment, two_and_four, tmp_path, monkeypatch):
    out = tmp_path / "a"
    arguments = [
        "predict", run, fragment, "--out", out, "--mc-samples", 2, "--mc-dropout", 0.3,
        "--tile-size", 80, "--stride", 80, "--batch-size", 4, "--device", "cpu",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["vesuvius", *map(str, arguments)])
    assert main() == 0
    same_bits(out, two_and_four / "two")


def test_each_run_of_an_ensemble_is_named_by_an_option_of_its_own(monkeypatch):
    seen = []

    def load_and_stop(run, config):
        seen.append((run, config.ensemble))
        raise ValueError("seen enough")

    monkeypatch.setattr("vesuvius.predict.load_ensemble", load_and_stop)
    line = "vesuvius predict run --ensemble second fragment --ensemble third --out out"
    monkeypatch.setattr("sys.argv", line.split())
    assert main() == 2
    assert seen == [(Path("run"), (Path("second"), Path("third")))]


def test_the_picture_shows_map_and_uncertainties_side_by_side(fragment, six):
    picture = cv2.imread(str(six / "uncertainty.png"), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (CAPTION_ROWS + 64, 4 * 80 + 3 * 8)
    picture = picture[CAPTION_ROWS:]
    whites = json.loads((six / "provenance.json").read_text())["uncertainty_white"]
    inside = open_fragment(fragment).papyrus_mask
    pages = tifffile.imread(six / "uncertainty.tif")
    for number, (page, white) in enumerate(zip(pages, whites.values(), strict=True), 1):
        assert white == pytest.approx(
            np.quantile(page[inside], 0.995), abs=float(page.max()) / 1000
        )
        shown = picture[:, number * 88 : number * 88 + 80]
        np.testing.assert_allclose(shown / 255 * white, page.clip(max=white), atol=white / 500)
