"""Comparisons: what is finished is kept, tables tell mean and spread, bad options are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.files import read_json, write_json
from tests.vesuvius.conftest import tiny_recipe
from vesuvius.baseline import fit_baseline
from vesuvius.cli import main
from vesuvius.compare import Entry, _run_missing, compare
from vesuvius.comparison import markdown_of, summarize, text_of
from vesuvius.contest import Contest, Fragments, gather_contest
from vesuvius.fragment import open_fragment
from vesuvius.miniature import Budget
from vesuvius.prepare import prepare
from vesuvius.simulate import simulate

BUDGET = Budget(patches=4, epochs=1, layers=8)


@pytest.fixture
def contest(prepared, fragments, tmp_path, monkeypatch) -> Contest:
    """The tiny fragments: two to train on and one to be scored on; every recipe is the tiny one."""
    monkeypatch.setattr(
        "vesuvius.contest.miniature",
        lambda recipe, budget, seed: replace(
            tiny_recipe(), training=replace(tiny_recipe().training, seed=seed)
        ),
    )
    return gather_contest(tmp_path / "out", Fragments(prepared, (fragments["a"],)), BUDGET)


def test_a_run_is_scored_where_it_never_trained_and_tells_what_it_took(contest):
    found = contest.run("small", 3, False, "small-3")
    assert [one["name"] for one in found["maps"]] == ["a"]
    assert found["maps"][0]["threshold_from"].startswith("fixed value")
    assert 0 <= found["f05"] <= found["best_f05"] <= 1
    assert found["parameters"] > found["plain_parameters"] > 0
    assert found["train_s"] > 0
    assert found["predict_s"] > 0
    assert found["peak_mib"] > 100
    config = read_json(contest.folder("small-3") / "run" / "config.json")
    assert config["training"]["seed"] == 3
    assert found["patches"] == config["samples_per_epoch"] * config["training"]["epochs"]


def test_a_control_trains_on_shifted_labels_and_is_scored_on_the_true_ones(contest, prepared):
    plain = contest.run("small", 0, False, "small-0")
    control = contest.run("small", 0, True, "small-0-control")
    assert plain["ink_share"] == control["ink_share"]
    label = np.load(prepared / "1.vol" / "ink_label.npy")
    shifted = np.load(contest.out / "control" / "0" / "1.vol" / "ink_label.npy")
    assert (label != shifted).any()
    assert plain["maps"][0]["loss"] != control["maps"][0]["loss"]


def test_baselines_are_fitted_where_was_trained_and_scored_where_was_not(contest):
    baselines = contest.baselines()
    assert list(baselines) == ["best threshold on intensity", "all papyrus ink"]
    assert baselines["best threshold on intensity"] > 2 * baselines["all papyrus ink"]


def test_baselines_are_fitted_and_scored_where_fragments_are_labelled(
    contest, fragments, monkeypatch
):
    fragment = open_fragment(fragments["a"])
    columns = np.arange(fragment.papyrus_mask.shape[1])
    has_ink = (fragment.ink_label & fragment.papyrus_mask).any(axis=0)
    stop = int(columns[has_ink].mean())
    partly = replace(fragment, labelled_area=np.tile(columns < stop, (len(fragment.ink_label), 1)))
    monkeypatch.setattr("vesuvius.contest.open_fragment", lambda path: partly)
    valid = fragment.papyrus_mask[:, :stop]
    precision = fragment.ink_label[:, :stop][valid].mean()
    expected = 1.25 * precision / (0.25 * precision + 1)
    assert contest.baselines()["all papyrus ink"] == pytest.approx(expected)
    whole, half = (fit_baseline([one]) for one in (fragment, partly))
    cut = replace(
        fragment,
        labelled_area=partly.labelled_area,
        ink_label=fragment.ink_label & partly.labelled_area,
    )
    assert fit_baseline([cut]) == half != whole  # ink beyond the labelled area has no part


def test_another_budget_or_fragment_needs_another_folder(contest, prepared, fragments):
    same = Fragments(prepared, (fragments["a"],))
    gather_contest(contest.out, same, BUDGET)
    with pytest.raises(ValueError, match=r"another budget; choose another --out"):
        gather_contest(contest.out, same, replace(BUDGET, epochs=2))


def test_a_finished_run_of_a_recipe_that_has_changed_is_refused(contest, monkeypatch):
    contest.run("small", 3, False, "small-3")
    contest.check_finished("small", 3, "small-3")
    path = contest.folder("small-3") / "run" / "config.json"
    config = read_json(path)
    del config["description"]["recipe"]["tasks"]  # an option that was added since
    write_json(path, config)
    contest.check_finished("small", 3, "small-3")
    other = tiny_recipe()
    other = replace(
        other,
        loss=replace(other.loss, smoothing=0.01),
        training=replace(other.training, seed=3),
    )
    monkeypatch.setattr("vesuvius.contest.miniature", lambda *_: other)
    with pytest.raises(ValueError, match=r"small-3 was trained when small .*\(loss.smoothing\)"):
        contest.check_finished("small", 3, "small-3")
    write_json(contest.score_path("small-3"), {})
    with pytest.raises(ValueError, match="delete it to train it anew"):
        _run_missing(contest, [Entry("small", 3)], jobs=1)


def run_record(recipe: str, seed: int, f05: float, is_control: bool = False) -> dict:
    keys = ("best_f05", "average_precision", "roc_auc", "loss", "ssim", "calibration_error")
    return {
        "recipe": recipe, "seed": seed, "is_control": is_control, "parameters": 390_000,
        "train_s": 10.0, "predict_s": 5.0, "peak_mib": 700.0, "f05": f05,
    } | dict.fromkeys(keys, 0.5)  # fmt: skip


def test_the_table_goes_from_best_to_worst_with_controls_last():
    record = {
        "runs": [
            run_record("i3d", 0, 0.4), run_record("stack-2d", 0, 0.7), run_record("i3d", 1, 0.6),
            run_record("stack-2d", 1, 0.9), run_record("stack-2d", 0, 0.95, is_control=True),
        ],
        "baselines": {"all papyrus ink": 0.25},
    }  # fmt: skip
    assert [row["recipe"] for row in summarize(record)] == ["stack-2d", "i3d", "control: stack-2d"]
    text = text_of(record)
    assert "0.800 ± 0.141" in text
    assert "0.500 ± 0.141" in text
    assert "F0.5 of all papyrus ink: 0.250" in text
    lines = markdown_of(record).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[4].startswith("| control: stack-2d | 1 | 0.39 M | 0.950 |")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": ("smal",)}, r"no recipe smal; there are buckets, small"),
        ({"recipes": ("i3d", "i3d")}, r"recipes i3d i3d: name each once"),
        ({"control": "nothing"}, r"no recipe nothing"),
        ({"seeds": 0}, r"seeds is 0; it is at least 1"),
        ({"jobs": 0}, r"jobs is 0; it is at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_fragments_that_do_not_fit_are_refused(prepared, fragments, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"--data and --test go together"):
        Fragments(data=prepared)
    with pytest.raises(ValueError, match=r"1 is both trained on and scored"):
        compare(out=out, fragments=Fragments(prepared, (fragments["1"],)))
    label = fragments["1"] / "inklabels.png"
    with pytest.raises(ValueError, match=r"go together; give both or neither"):
        Fragments(ink_label=label)
    with pytest.raises(ValueError, match=r"--ink-label is 128 x 144 px, Kaggle's fragment 1 is"):
        compare(out=out, fragments=Fragments(ink_label=label, papyrus_mask=label))


@pytest.mark.slow
def test_a_comparison_runs_what_is_missing_and_nothing_else(tmp_path, capsys):
    for seed, name in enumerate(("1", "2", "a")):
        simulate(tmp_path / name, size=(640, 256), seed=seed)
    prepare((tmp_path / "1", tmp_path / "2"), out=tmp_path / "prepared")
    out = tmp_path / "out"
    options = ["--data", str(tmp_path / "prepared"), "--test", str(tmp_path / "a"), "--out"]
    options += [str(out), "--control", "i3d", "--budget.patches", "80", "--budget.epochs", "1"]
    assert main_with(["compare", *options, "--recipes", "i3d", "--seeds", "1"]) == 0
    first = out / "runs" / "i3d-0" / "score.json"
    score, written = read_json(first), first.stat().st_mtime_ns
    assert main_with(["compare", *options, "--recipes", "i3d", "stack-2d", "--seeds", "2"]) == 0
    assert first.stat().st_mtime_ns == written
    record = read_json(out / "results.json")
    names = [Entry(r["recipe"], r["seed"], r["is_control"]).name for r in record["runs"]]
    assert names[:3] == ["i3d-0", "stack-2d-0", "i3d-0-control"]
    assert names[3:] == ["i3d-1", "stack-2d-1", "i3d-1-control"]
    assert record["runs"][0] == score
    assert {"report.html", "table.md", "scores.png", "maps-a.png"} <= {
        p.name for p in out.iterdir()
    }
    assert "control: i3d" in capsys.readouterr().out


def main_with(arguments: list[str]) -> int:
    """Run the program with these arguments and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vesuvius", *arguments])
        return main()
