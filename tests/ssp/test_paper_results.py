"""The paper's numbers agree with each other."""

from __future__ import annotations

import pytest

from ssp.ablations import TABLE2 as VARIANTS
from ssp.networks.registry import METHODS
from ssp.paper_results import METRICS, TABLE1, TABLE2, TABLE3, TASKS
from ssp.scores import ALL, improvement
from ssp.tasks import STRUCTURES

TEST_IMAGES = {task: 13 if task == "membrane_caax_63x" else 20 for task in TASKS}  # 233
# gains over Multi-Net in MSE, MAE and R2, as printed in Table 1
GAINS = {"multi-head-dec": (2.149, 0.272, 2.752), "tsns": (4.263, 1.804, 5.437),
         "repmode": (7.209, 4.482, 9.176)}  # fmt: skip


def test_every_method_structure_and_variant_has_its_numbers():
    assert list(TABLE1) == list(METHODS)
    assert set(TASKS) == set(STRUCTURES)
    assert set(TABLE2) == {*VARIANTS, "repmode"}
    assert all(set(row) == {*TASKS, ALL} for row in TABLE1.values())


@pytest.mark.parametrize("method", list(TABLE1))
def test_all_is_the_mean_over_the_test_images(method):
    row = TABLE1[method]
    for metric in METRICS:
        total = sum(row[task][metric] * number for task, number in TEST_IMAGES.items())
        assert total / sum(TEST_IMAGES.values()) == pytest.approx(row[ALL][metric], abs=1.2e-4)


@pytest.mark.parametrize("method", list(GAINS))
def test_the_gains_are_those_that_the_paper_prints(method):
    gains = improvement(TABLE1[method][ALL], TABLE1["multi-net"][ALL])
    assert tuple(gains.values()) == pytest.approx(GAINS[method], abs=0.02)


def test_the_tables_agree_where_they_tell_the_same():
    assert TABLE2["repmode"][ALL] == TABLE1["repmode"][ALL]
    for task, scores in TABLE3["multi-net"].items():
        assert scores == TABLE1["multi-net"][task]
