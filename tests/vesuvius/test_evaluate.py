"""Evaluation: what each piece is told comes from the others, and what is written says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.files import read_json, write_json
from core.metrics import ProbabilityHistogram
from core.pictures import CAPTION_ROWS
from vesuvius.cli import main
from vesuvius.evaluate import evaluate
from vesuvius.evaluation_report import COLUMNS
from vesuvius.fragment import open_fragment
from vesuvius.held_out import scored_held_out
from vesuvius.inkmap import load_model
from vesuvius.maps import MapFile
from vesuvius.scored import Truths, scored_predictions


@pytest.fixture(autouse=True)
def _no_report(request, monkeypatch):
    """Leave out the page and its pictures, save where they are looked at: they take seconds."""
    if "_pictures" not in request.fixturenames:
        monkeypatch.setattr("vesuvius.evaluate.write_evaluation", lambda *_: None)


@pytest.fixture
def _pictures():
    """Ask for the page and its pictures."""


def write_prediction(
    folder: Path, fragment: Path, brightness: float = 0.0, samples: int = 1, threshold: float = 0.5
) -> Path:
    """Write what `predict` would: a noisy map of a fragment's label."""
    opened = open_fragment(fragment)
    rng = np.random.default_rng(len(fragment.name) + samples)
    noise = rng.normal(0, 0.2 / samples**0.5, opened.papyrus_mask.shape)
    prob = np.clip(0.3 + 0.25 * opened.ink_label + brightness + noise, 0, 1)
    prob = np.where(opened.papyrus_mask, prob, 0).astype(np.float32)
    MapFile.create(folder / "prob.tif", prob.shape).write(0, len(prob), prob[None])
    if samples > 1:
        spread = np.stack([np.abs(prob - 0.5), prob, prob / 2]).astype(np.float32)
        MapFile.create(folder / "uncertainty.tif", spread.shape).write(0, len(prob), spread)
    settings = {"checkpoint_sha256": "abcdef0123", "input_fingerprint": fragment.name}
    provenance = {"name": fragment.name, "input": str(fragment), "threshold": threshold,
                  "num_predictions": samples, "settings": settings}  # fmt: skip
    write_json(folder / "provenance.json", provenance)
    return folder


@pytest.fixture
def two(fragments, tmp_path) -> tuple[Path, Path]:
    """Predictions of the fragments "1" and "2", that of "2" brighter."""
    return (
        write_prediction(tmp_path / "pred" / "1", fragments["1"]),
        write_prediction(tmp_path / "pred" / "2", fragments["2"], brightness=0.1),
    )


def evaluated(sources: tuple[Path, ...], out: Path, **options) -> list[dict]:
    evaluate(sources, out=out, **options)
    return read_json(out / "evaluation.json")["maps"]


def best_threshold(prediction: Path, fragment: Path) -> float:
    opened, prob = open_fragment(fragment), MapFile(prediction / "prob.tif")
    histogram = ProbabilityHistogram()
    values = prob.read(0, prob.shape[0])[0]
    histogram.add(values, opened.ink_label, opened.papyrus_mask)
    return histogram.best_threshold()[0]


def test_each_piece_is_scored_at_the_threshold_of_the_others(fragments, two, tmp_path, capsys):
    first, second = evaluated(two, tmp_path / "out")
    own = [best_threshold(two[0], fragments["1"]), best_threshold(two[1], fragments["2"])]
    assert abs(own[0] - own[1]) > 0.05
    assert [first["threshold"], second["threshold"]] == own[::-1]
    assert [first["best_threshold"], second["best_threshold"]] == own
    assert first["threshold_from"] == "value from 1 other"
    for one in (first, second):
        assert one["regret"] == pytest.approx(one["best_f05"] - one["f05"])
        assert one["regret"] > 0.02
        assert one["temperature"] is not None
    table = capsys.readouterr().out
    for text in ("average", f"{first['f05']:.3f}", *COLUMNS.values(), "threshold: value from 1"):
        assert text in table


def test_percentiles_regret_less_where_one_map_is_brighter(two, tmp_path):
    by_value = evaluated(two, tmp_path / "value")
    by_percentile = evaluated(two, tmp_path / "percentile", rule="percentile")
    for value, percentile in zip(by_value, by_percentile, strict=True):
        assert percentile["regret"] < value["regret"] - 0.01
        assert percentile["threshold_from"] == "percentile from 1 other"
        assert value["rules"] == percentile["rules"]
        assert value["rules"]["percentile"]["f05"] == pytest.approx(percentile["f05"], abs=1e-9)
        assert value["rules"]["value"]["f05"] == pytest.approx(value["f05"], abs=1e-9)


def test_a_fixed_number_is_used_for_every_piece(two, tmp_path):
    fixed = evaluated(two, tmp_path / "value", threshold=0.4)
    assert [one["threshold"] for one in fixed] == [0.4, 0.4]
    assert fixed[0]["threshold_from"] == "fixed value 0.4"
    cut = evaluated(two, tmp_path / "percentile", rule="percentile", threshold=80)
    assert cut[1]["threshold"] - cut[0]["threshold"] == pytest.approx(0.1, abs=0.03)
    with pytest.raises(ValueError, match="threshold 80 is outside the range of rule 'value'"):
        evaluate(two, out=tmp_path / "no", threshold=80)


def test_a_piece_alone_has_the_models_threshold_and_no_temperature(fragments, tmp_path, capsys):
    alone = (write_prediction(tmp_path / "1", fragments["1"], threshold=0.37),)
    (one,) = evaluated(alone, tmp_path / "out")
    assert (one["threshold"], one["threshold_from"]) == (0.37, "the model's own")
    assert (one["temperature"], one["calibration_error_tempered"], one["rules"]) == (None, None, {})
    assert "average" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="only map of its way, so no percentile"):
        evaluate(alone, out=tmp_path / "no", rule="percentile")


def in_two_ways(fragments: dict[str, Path], folder: Path, *names: str) -> tuple[Path, ...]:
    """Write predictions of one and of 60 samples."""
    return tuple(
        write_prediction(folder / f"{name}-{samples}", fragments[name], samples=samples)
        for name in names
        for samples in (1, 60)
    )


def test_a_fragment_is_opened_once_for_all_its_predictions(fragments, tmp_path, monkeypatch):
    sources, opened = in_two_ways(fragments, tmp_path, "1"), []
    monkeypatch.setattr(
        "vesuvius.scored.open_fragment", lambda path: opened.append(path) or open_fragment(path)
    )
    evaluated(sources, tmp_path / "out")
    assert opened == [str(fragments["1"])]


def test_ways_do_not_exchange_thresholds_and_have_their_own_average(fragments, tmp_path):
    maps = evaluated(in_two_ways(fragments, tmp_path, "1", "2"), tmp_path / "out")
    record = read_json(tmp_path / "out" / "evaluation.json")
    ways = ["model abcdef, one prediction", "model abcdef, mean of 60 predictions"]
    assert list(record["averages"]) == ways
    assert maps[0]["threshold"] == maps[2]["best_threshold"]
    assert maps[1]["threshold"] == maps[3]["best_threshold"] != maps[2]["best_threshold"]
    for way in ways:
        rows = [one for one in maps if one["way"] == way]
        for key in ("f05", "loss", "ssim", "calibration_error_tempered"):
            mean = np.mean([one[key] for one in rows])
            assert record["averages"][way][key] == pytest.approx(mean)
    assert [len(one["uncertainty"]) for one in maps] == [1, 4, 1, 4]


def test_ways_of_one_title_are_told_apart(fragments, tmp_path):
    sources = tuple(
        write_prediction(tmp_path / f"{name}-{stride}", fragments[name])
        for name in ("1", "2")
        for stride in (64, 96)
    )
    for folder in sources:
        provenance = read_json(folder / "provenance.json")
        provenance["settings"]["stride"] = folder.name[-2:]
        write_json(folder / "provenance.json", provenance)
    evaluate(sources, out=tmp_path / "out")
    ways = list(read_json(tmp_path / "out" / "evaluation.json")["averages"])
    assert ways == [f"model abcdef, one prediction, as {source}" for source in sources[:2]]


@pytest.mark.usefixtures("_pictures")
def test_one_piece_in_several_ways_is_shown_beside_its_label(fragments, tmp_path):
    maps = evaluated(in_two_ways(fragments, tmp_path, "1"), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    page = (tmp_path / "out" / "report.html").read_text()
    assert names == {"compare-0.png"} | {
        f"{number}-{name}.png" for number in (0, 1) for name in ("strip", "found", "curves")
    }
    assert page.count("<img") == len(names)
    for text in ("mutual information", "mean of 60 predictions", "the model&#x27;s own", "SSIM"):
        assert text in page
    assert f"<td>{maps[1]['f05']:.3f}</td>" in page


def test_the_same_piece_twice_in_one_way_is_refused(fragments, tmp_path):
    twice = tuple(write_prediction(tmp_path / name, fragments["1"]) for name in ("x", "y"))
    with pytest.raises(ValueError, match=r"x and .*y map 1 in the same way; leave one out"):
        evaluate(twice, out=tmp_path / "out")


def test_effects_of_cleaning_are_reported(two, tmp_path):
    plain = evaluated(two, tmp_path / "plain")
    both = evaluated(two, tmp_path / "both", hysteresis=0.9, min_component=5)
    assert plain[0]["cleaned_f05"] == {}
    for one, other in zip(both, plain, strict=True):
        assert one["f05"] == other["f05"]
        cleaned = one["cleaned_f05"]
        assert cleaned.keys() == {"hysteresis", "min_component", "both"}
        assert len({one["f05"], *cleaned.values()}) == 4


def test_a_label_given_takes_the_place_of_the_predicted_fragments(fragments, tmp_path):
    unlabelled = tmp_path / "blind" / "1"
    unlabelled.mkdir(parents=True)
    for entry in fragments["1"].iterdir():
        if entry.name != "inklabels.png":
            (unlabelled / entry.name).symlink_to(entry)
    folder = write_prediction(tmp_path / "pred", fragments["1"])
    provenance = read_json(folder / "provenance.json")
    expected = evaluated((folder,), tmp_path / "expected")
    write_json(folder / "provenance.json", provenance | {"input": str(unlabelled)})
    with pytest.raises(ValueError, match=r"blind/1 has no ink label, .*'1'.*--truth"):
        evaluate((folder,), out=tmp_path / "out")
    given = {"truth": (fragments["1"],)}
    assert evaluated((folder,), tmp_path / "out", **given) == expected
    write_json(folder / "provenance.json", provenance | {"input": str(tmp_path / "gone")})
    with pytest.raises(FileNotFoundError, match=r"gone, which .* predicts, is gone; .*--truth"):
        evaluate((folder,), out=tmp_path / "out")
    with pytest.raises(ValueError, match="--truth names 2, which no prediction is of"):
        evaluate((folder,), out=tmp_path / "out", truth=(fragments["1"], fragments["2"]))


def test_another_size_of_label_is_refused(fragments, tmp_path):
    folder = write_prediction(tmp_path / "pred", fragments["1"])
    MapFile.create(folder / "prob.tif", (40, 30))
    with pytest.raises(
        ValueError, match=r"prob\.tif is \(40, 30\) and the label of .*\(128, 144\)"
    ):
        evaluate((folder,), out=tmp_path / "out")


def test_a_run_is_evaluated_and_its_maps_are_kept(run, prepared, tmp_path, monkeypatch):
    first = evaluated((run,), tmp_path / "out", data=prepared)
    assert [one["piece"]["fragment"] for one in first] == ["1", "2"]
    assert first[0]["threshold_from"] == "value from 1 other"
    monkeypatch.setattr("vesuvius.held_out.stream", lambda *_, **__: pytest.fail("repeated"))
    assert evaluated((run,), tmp_path / "out", data=prepared) == first


def test_a_killed_mapping_of_a_run_continues(run, prepared, tmp_path, monkeypatch):
    whole = [one.prob.path.read_bytes() for one in scored_held_out(run, prepared, tmp_path / "a")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _Dying(Path.replace, 2))
        with pytest.raises(KeyboardInterrupt):
            scored_held_out(run, prepared, tmp_path / "b")
    again = scored_held_out(run, prepared, tmp_path / "b")
    assert [one.prob.path.read_bytes() for one in again] == whole
    assert not [path for path in (tmp_path / "b").rglob(".*")]


class _Dying:
    """A method that is interrupted when it is called for the `count`-th time."""

    def __init__(self, inner, count: int) -> None:
        self.inner, self.count = inner, count

    def __get__(self, instance, owner):
        def call(*arguments):
            self.count -= 1
            if not self.count:
                raise KeyboardInterrupt
            return self.inner(instance, *arguments)

        return call


def test_only_held_out_pieces_of_trained_fragments_are_scored(run, fragments, tmp_path):
    sources = tuple(
        write_prediction(tmp_path / name, fragments[name], brightness)
        for name, brightness in (("1", 0.0), ("a", 0.1))
    )
    with pytest.raises(ValueError, match="was predicted by none of the checkpoints of"):
        evaluate(sources, out=tmp_path / "out", held_out=run)
    for folder in sources:
        provenance = read_json(folder / "provenance.json")
        provenance["settings"]["checkpoint_sha256"] = load_model(run).sha256
        write_json(folder / "provenance.json", provenance)
    whole = evaluated(sources, tmp_path / "out")
    trained, unseen = evaluated(sources, tmp_path / "out", held_out=run)
    assert trained["pixels"] < whole[0]["pixels"] / 2
    pieces = read_json(run / "config.json")["description"]["pieces"]
    assert trained["piece"] in [piece for piece in pieces if piece["role"] == "validation"]
    assert (unseen["piece"], unseen["pixels"]) == (None, whole[1]["pixels"])
    (alone,) = evaluated(sources[:1], tmp_path / "out", held_out=run)
    assert alone["threshold_from"] == "the model's own, chosen on this very piece"


def test_a_fragment_that_was_trained_on_whole_is_refused(run, fragments, tmp_path):
    folder = write_prediction(tmp_path / "1", fragments["1"])
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    best = run / "checkpoints" / "best.safetensors"
    (other / "checkpoints" / best.name).symlink_to(best)
    config = read_json(run / "config.json")
    config["description"]["pieces"] = [
        piece for piece in config["description"]["pieces"] if piece["role"] == "train"
    ]
    write_json(other / "config.json", config)
    provenance = read_json(folder / "provenance.json")
    provenance["settings"]["checkpoint_sha256"] = load_model(run).sha256
    write_json(folder / "provenance.json", provenance)
    with pytest.raises(ValueError, match=r"trained on all of 1, so nothing of .* honestly"):
        evaluate((folder,), out=tmp_path / "out", held_out=other)


def test_foreign_files_stay(two, tmp_path):
    out = tmp_path / "out"
    evaluated(two, out)
    evaluated(two, out)  # an evaluation is replaced
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out holds 'thesis\.txt', which is of no evaluation"):
        evaluate(two, out=out)
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        evaluate(two, out=out / "thesis.txt")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["{run}"], "is a run, whose held-out pieces are mapped from its volumes; name their"),
        (["{pred}", "--data", "{data}"], "is for runs and none is given"),
        (["{run}", "--data", "{data}", "--held-out", "{run}"], "are for predictions and none"),
        ([], "nothing to score"),
        (["{data}"], "is no finished prediction; give the --out of `vesuvius predict`"),
        (["{run}", "--data", "{run}"], "1.vol not found; give the --data of the training"),
        (["{pred}", "--min-component", "0"], "min_component 0 is below 1"),
        (["{pred}", "--rule", "mean"], "rule"),
    ],
)
def test_wrong_use_is_one_line(
    options, text, run, prepared, fragments, tmp_path, capsys, monkeypatch
):
    pred = write_prediction(tmp_path / "pred", fragments["1"])
    values = {"run": run, "pred": pred, "data": prepared}
    filled = [option.format(**values) for option in options]
    monkeypatch.setattr("sys.argv", ["vesuvius", "evaluate", *filled, "--out", str(tmp_path / "o")])
    assert main() == 2
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("_pictures")
def test_pictures_show_the_label_above_the_map(fragments, tmp_path):
    folder = write_prediction(tmp_path / "1", fragments["1"])
    evaluated((folder,), tmp_path / "out")
    strip = cv2.imread(str(tmp_path / "out" / "pictures" / "0-strip.png"), cv2.IMREAD_UNCHANGED)
    opened = open_fragment(fragments["1"])
    height = len(opened.ink_label)
    label = strip[CAPTION_ROWS : CAPTION_ROWS + height]
    np.testing.assert_array_equal(label > 0, opened.ink_label & opened.papyrus_mask)
    prob = MapFile(folder / "prob.tif").read(0, height)[0]
    np.testing.assert_array_equal(strip[-height:], np.round(prob * 255))


@pytest.mark.usefixtures("_pictures")
def test_a_high_piece_is_shown_beside_its_label(run, prepared, tmp_path):
    first, _ = evaluated((run,), tmp_path / "out", data=prepared, min_component=3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "after cleaning the mask" in page
    assert "how the threshold is chosen" in page
    height, width = (
        first["piece"][f"{axis}_stop"] - first["piece"][f"{axis}_start"] for axis in "yx"
    )
    assert height > width
    strip = cv2.imread(str(tmp_path / "out" / "pictures" / "0-strip.png"), cv2.IMREAD_UNCHANGED)
    assert strip.shape == (height + CAPTION_ROWS, 2 * width + 8)


def test_only_labelled_papyrus_of_a_prediction_is_scored(fragments, tmp_path):
    """What is wrong in the label outside of its area changes no score."""
    found = []
    for name, wrong in (("kept", 0), ("wrong", 255)):
        fragment = tmp_path / name / "1"
        shutil.copytree(fragments["1"], fragment)
        label = cv2.imread(str(fragment / "inklabels.png"), cv2.IMREAD_GRAYSCALE)
        prediction = write_prediction(tmp_path / name / "pred", fragments["1"])
        area = np.full_like(label, 255)
        area[40:70], label[40:70, 20:140] = 0, wrong
        cv2.imwrite(str(fragment / "inklabels.png"), label)
        cv2.imwrite(str(fragment / "labelled_area.png"), area)
        (scored,) = scored_predictions(prediction, Truths([fragment]))
        np.testing.assert_array_equal(
            scored.valid, open_fragment(fragment).papyrus_mask & (area > 0)
        )
        found.append(evaluated((prediction,), tmp_path / name / "out", truth=(fragment,)))
    for one in (found[0][0], found[1][0]):
        del one["source"]
    assert found[0] == found[1]
