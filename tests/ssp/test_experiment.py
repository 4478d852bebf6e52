"""The paper's experiments at the smallest size: shared runs, tables, figures, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import cv2
import pytest
import torch

import ssp.study
from core.files import read_json, write_json
from ssp.budget import BUDGETS, Budget
from ssp.experiment_figures import figure6, figure7
from ssp.experiment_tables import table1, table2, table3
from ssp.model import load_model
from ssp.networks.registry import METHODS
from ssp.recipes import PATCH_SIZE, PatchConfig
from ssp.study import StudyOptions, Trial, open_study
from tests.core.test_lock import held_elsewhere
from tests.ssp.cells import TASKS, prepared, tiny_recipe

SMALLEST = Budget(2, 1, tiny_recipe().patches, tiny_recipe(epochs=1).training, epochs_alone=2)


@pytest.fixture(scope="module", autouse=True)
def here():
    """Let runs be small, and happen in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "tiny", SMALLEST)
        patch.setattr(ssp.study, "run_separately", run_here)
        yield


def run_here(pieces, jobs, advance):
    for piece in pieces:
        piece.work()
        advance(1)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> StudyOptions:
    cells = prepared(tmp_path_factory.mktemp("cells"), tasks=("dna", "fibrillarin", "tom20"))
    return StudyOptions(tmp_path_factory.mktemp("out") / "study", cells, seeds=2)


@pytest.fixture(scope="module")
def first_table(options):
    table1(study=options, methods=("multi-net", "repmode"))
    return options.out


def test_the_table_holds_the_mean_of_what_each_run_scored(first_table, options):
    record = read_json(first_table / "table1.json")
    assert [(run["title"], run["seed"]) for run in record["runs"]] == [
        ("multi-net", 0), ("repmode", 0), ("multi-net", 1), ("repmode", 1),
    ]  # fmt: skip
    with (first_table / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(r["task"], r["metric"], r["seed"]): float(r["value"]) for r in rows
             if r["row"] == "RepMode"}  # fmt: skip
    scores = json.loads((first_table / "runs" / "repmode-1" / "scores" / "scores.json").read_text())
    assert found["dna", "mse", "1"] == scores["tasks"]["dna"]["mse"]
    mean = (found["All", "r2", "0"] + found["All", "r2", "1"]) / 2
    assert f"{mean:.4f} ± " in (first_table / "table1.md").read_text()


def test_the_same_command_again_trains_nothing_and_more_seeds_are_added(
    first_table, options, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr(ssp.study.Study, "run", lambda self, trial: trained.append(trial))
    table1(study=options, methods=("multi-net", "repmode"))
    assert not trained
    assert "Multi-Net" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):  # as the runs are not really done here
        table1(study=replace(options, seeds=3), methods=("repmode",))
    assert [(trial.title, trial.seed) for trial in trained] == [("repmode", 2)]


def test_a_run_that_was_stopped_goes_on(first_table, options, tmp_path):
    study = open_study(options)
    trial = Trial("again", METHODS["condnet"], 0)
    study.run(trial)
    before = load_model(study.run_of(trial)).sha256
    (study.run_of(trial).parent / "result.json").unlink()
    study.results([trial])
    assert load_model(study.run_of(trial)).sha256 == before


def test_variants_share_the_runs_of_the_original(first_table, options):
    at = (first_table / "runs" / "repmode-0" / "result.json").stat().st_mtime_ns
    table2(study=replace(options, seeds=1), variants=("w/o 5x5x5 expert pair",))
    assert (first_table / "runs" / "repmode-0" / "result.json").stat().st_mtime_ns == at
    assert (first_table / "runs" / "w-o-5x5x5-expert-pair-0" / "result.json").exists()
    lines = read_json(first_table / "table2.json")["markdown"].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "w/o 5x5x5 expert pair", "paper", "RepMode", "paper",
    ]  # fmt: skip
    assert ".5017" in lines[3]


def test_a_structure_learned_afterwards_leaves_repmode_as_it_was(first_table, options, capsys):
    table3(study=replace(options, seeds=1), learned=("fibrillarin",))
    runs = first_table / "runs"
    base, more = (
        load_model(runs / f"repmode-0-without-fibrillarin{end}" / "run")
        for end in ("", "-then-fibrillarin")
    )
    assert (base.tasks, more.tasks) == (("dna", "tom20"), ("dna", "tom20", "fibrillarin"))
    assert (base.recipe.training.epochs, more.recipe.training.epochs) == (1, 2)
    assert load_model(runs / "multi-net-0-only-fibrillarin" / "run").tasks == ("fibrillarin",)
    x = torch.randn(1, 1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(*(model.network(x, torch.tensor([1])) for model in (base, more)))
    output = capsys.readouterr().out
    assert "RepMode: MSE of the structures known before was" in output
    kept = read_json(first_table / "table3.json")["lines"]
    assert "to the last digit" in next(line for line in kept if line.startswith("RepMode"))
    assert "to the last digit" not in next(line for line in kept if line.startswith("Multi-Head"))


def test_the_figure_of_experts_has_weights_that_add_up_to_one(first_table, options):
    figure6(study=options, blocks=("encoder 1.1", "decoder 1.2"))
    record = read_json(first_table / "figure6.json")
    assert len(record["gates"]) == 2
    for blocks in record["gates"][0].values():
        assert set(blocks) == set(record["blocks"])
        for weights in blocks.values():
            assert sum(weights.values()) == pytest.approx(1)
    assert cv2.imread(str(first_table / "figure6.png")).shape[1] > 600


def test_the_figure_of_predictions_tells_the_scores_of_its_images(first_table, options):
    figure7(study=options, tasks=("dna",), methods=("repmode", "multi-net"))
    record = read_json(first_table / "figure7.json")
    runs = {run["title"]: run for run in read_json(first_table / "table1.json")["runs"][:2]}
    images = read_json(first_table / "runs" / "repmode-0" / "result.json")["images"]
    row = next(row for row in images if row["name"] == record["images"]["dna"])
    assert record["scores"]["repmode"]["dna"]["mse"] == pytest.approx(row["mse"])
    assert set(record["scores"]) == set(runs)
    assert cv2.imread(str(first_table / "figure7.png")).shape[1] > 800


def test_what_cannot_be_done_is_refused(options, first_table, tmp_path):
    def refused(text: str):
        return pytest.raises(ValueError, match=text)

    with refused("--methods does not know repmod; there are multi-net"):
        table1(study=options, methods=("repmod",))
    with refused("--methods names none"):
        table1(study=options, methods=())
    with refused("--variants does not know none; there are only in Dec"):
        table2(study=options, variants=("none",))
    with refused(r"unknown task golgi; .* has dna"):
        table3(study=options, learned=("golgi",))
    with refused("must name one structure or more and leave out another"):
        table3(study=options, learned=("dna", "fibrillarin", "tom20"))
    with refused("no block encoder 9.9; there are encoder 1.1"):
        figure6(study=options, blocks=("encoder 9.9",))
    with refused("--tasks does not know golgi; there are dna"):
        figure7(study=options, tasks=("golgi",))
    with refused("--seeds 0 must be at least 1"):
        StudyOptions(tmp_path, seeds=0)
    with refused("--methods names none"):
        figure7(study=options, methods=())
    with refused("--budget paper needs images"):
        open_study(StudyOptions(tmp_path, budget="paper"))
    with held_elsewhere(options.out), refused("is being written by process"):
        table1(study=options, methods=("repmode",))
    other = prepared(tmp_path / "other", tasks=TASKS)
    with refused("is a study with another images_sha256"):
        open_study(replace(options, data=other))


def test_a_run_of_a_recipe_that_has_changed_is_refused(options, first_table):
    path = first_table / "runs" / "multi-net-0" / "result.json"
    result = read_json(path)
    changed = {**result, "recipe": result["recipe"] | {"patches": {}}}
    try:
        write_json(path, changed)
        with pytest.raises(
            ValueError, match="trained when multi-net, its base or the budget was another"
        ):
            table1(study=options, methods=("multi-net",))
    finally:
        write_json(path, result)


def test_the_papers_budget_is_the_papers_protocol():
    recipe = BUDGETS["paper"].recipe(METHODS["repmode"], seed=0)
    assert recipe.patches == PatchConfig()
    assert recipe.patches.size == PATCH_SIZE
    assert recipe.network == METHODS["repmode"]
    assert recipe.training.epochs * recipe.patches.passes_per_epoch == 1000
