"""Splits as the official code draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssp.lists import SPLITS, Row, Source, read_lists
from ssp.split import draw_split, split_rows, split_tasks
from ssp.tasks import STRUCTURES

FRACTIONS = {"test": 0.25, "val": 0.1, "seed": 42}


def sizes(members):
    return tuple(len(members[split]) for split in SPLITS)


def official_lists():
    """Return images shaped like the official lists: 11 sets, and DNA of most of their images."""
    images = {
        task: [f"{task}/{i}" for i in range(51 if task == "membrane_caax_63x" else 80)]
        for task in STRUCTURES
        if task != "dna"
    }
    every = [image for members in images.values() for image in members]
    images["dna"] = [image for i, image in enumerate(every) if i % 6]
    return images


def test_sets_of_the_official_sizes_give_the_official_numbers():
    assert sizes(draw_split(range(80), **FRACTIONS)) == (54, 6, 20)
    assert sizes(draw_split(range(51), **FRACTIONS)) == (34, 4, 13)


@pytest.mark.parametrize(
    ("number", "val", "expected"),
    [(4, 0.1, (2, 1, 1)), (6, 0.1, (3, 1, 2)), (2, 0.1, (1, 1, 0)), (1, 0.1, (1, 0, 0)),
     (4, 0.0, (3, 0, 1))],
)  # fmt: skip
def test_few_images_leave_one_for_validation(number, val, expected):
    assert sizes(draw_split(range(number), test=0.25, val=val, seed=42)) == expected


def test_the_official_lists_give_628_70_and_233_images():
    members = split_tasks(official_lists(), {}, ["dna"])
    assert list(members) == [task for task in STRUCTURES if task != "dna"] + ["dna"]
    assert {sizes(members[task]) for task in members} == {(54, 6, 20), (34, 4, 13)}
    totals = np.sum([sizes(m) for m in members.values()], axis=0)
    assert totals.tolist() == [628, 70, 233]


def test_lists_of_the_official_form_give_the_same(tmp_path):
    lists = []
    for task, images in official_lists().items():
        lines = ["path_czi,channel_signal,channel_target"]
        for image in images:
            path = tmp_path / f"{image.replace('/', '-')}.czi"
            path.touch()
            lines.append(f"{path.name},0,{len(lists)}")
        lists.append(tmp_path / f"{task}.csv")
        lists[-1].write_text("\n".join(lines))
    rows = split_rows(read_lists(lists), 0.25, 0.1, 42, ("dna",))
    splits = [row.split for row in rows]
    assert [splits.count(name) for name in ("train", "val", "test")] == [628, 70, 233]
    of_dna = [row.split for row in rows if row.task == "dna"]
    assert [of_dna.count(name) for name in ("train", "val", "test")] == [54, 6, 20]


def test_no_image_trains_one_task_and_tests_another():
    members = split_tasks(official_lists(), {}, ["dna"])
    sides = {}
    for task in members:
        for split in SPLITS:
            for image in members[task][split]:
                assert sides.setdefault(image, split) == split
    assert set(members["dna"]["test"]) <= {
        i for t in members if t != "dna" for i in members[t]["test"]
    }


def test_each_shuffle_is_that_of_the_official_code():
    # The official code shuffles the rows of a table with RandomState(42), which permutes their
    # numbers, keeps the first three quarters and shuffles them again from the same seed.
    first = np.random.RandomState(42).permutation(80)
    again = first[:60][np.random.RandomState(42).permutation(60)]
    members = draw_split(range(80), **FRACTIONS)
    assert members["train"] == again[:54].tolist()
    assert members["val"] == again[54:].tolist()
    assert members["test"] == first[60:].tolist()
    assert first[:5].tolist() == [30, 0, 22, 31, 18]  # of numpy 1 and 2 alike


def test_every_image_is_on_one_side_and_seeds_differ():
    members = draw_split(range(37), 0.3, 0.2, 0)
    assert sorted(i for split in SPLITS for i in members[split]) == list(range(37))
    assert members != draw_split(range(37), 0.3, 0.2, 1)


def test_tasks_that_share_images_share_their_splits():
    images = {"a": list(range(40)), "b": list(range(20, 60)), "c": list(range(40))}
    members = split_tasks(images, {})
    assert members["a"] == draw_split(range(40), **FRACTIONS)
    assert members["c"] == {s: sorted(members["a"][s]) for s in SPLITS}
    for split in SPLITS:
        assert not {*members["b"][split]} & {
            i for s in SPLITS if s != split for i in members["a"][s]
        }
    assert sorted(i for s in SPLITS for i in members["b"][s]) == list(range(20, 60))


def row(task, number, split=None):
    source = Source(Path(f"/images/{number}.czi"))
    return Row(task, source, 0, source, 1, split)


def test_given_splits_are_kept(capsys):
    rows = [row("a", 0, "test"), row("a", 1, "train"), row("b", 1), row("b", 2)]
    done = split_rows(rows, 0.25, 0.1, 42)
    assert [(r.task, r.signal.path.stem, r.split) for r in done] == [
        ("a", "1", "train"),
        ("a", "0", "test"),
        ("b", "1", "train"),
        ("b", "2", "train"),
    ]
    assert "a: 1 train, 0 val, 1 test\n" in capsys.readouterr().err


def test_drawn_tasks_take_as_many_as_the_largest_other_and_say_what_is_left_out(capsys):
    rows = [row("a", i) for i in range(8)] + [row("b", i) for i in range(8, 20)]
    rows += [row("dna", i) for i in range(30)]
    done = split_rows(rows, 0.25, 0.1, 42, ["dna"])
    counts = {(t, s): sum(r.task == t and r.split == s for r in done) for t in "ab" for s in SPLITS}
    for split in SPLITS:
        number = sum(r.task == "dna" and r.split == split for r in done)
        assert number == max(counts["a", split], counts["b", split])
    assert "dna: 8 train, 1 val, 3 test, 18 left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "drawn", "said"),
    [
        (
            [row("a", 0, "test"), row("b", 0, "train")],
            (),
            "is test in one row and train in another",
        ),
        ([row("a", 0, "test"), row("a", 1)], (), "some rows of a have a split that others lack"),
        ([row("a", 0)], ["dna"], "no task dna to draw; there are a"),
        ([row("a", 0), row("b", 0, "val")], ["b"], "or it is to be drawn"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(rows, drawn, said):
    with pytest.raises(ValueError, match=said):
        split_rows(rows, 0.25, 0.1, 42, drawn)
