"""Which images train, validate and test, as the official code draws them.

Of each task a quarter is for testing and a tenth of the rest for validation: 80 images give 54 for
training, 6 for validation and 20 for testing, and 51 give 34, 4 and 13. An image that several tasks
share is on the same side in all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from core.terminal import note
from ssp.lists import SPLITS, Row

Members = dict[str, list[Hashable]]  # images of each split, in the order they were drawn


def draw_split(images: Sequence[Hashable], test: float, val: float, seed: int) -> Members:
    """Split images that have nothing to do with others.

    The images are shuffled and the last ones are for testing; the others are shuffled once more,
    from the same seed, and the last ones are for validation.

    Args:
        images: What is split, in the order of the list.
        test: Part of all images.
        val: Part of the others; one of two or more at least, unless the part is 0.
        seed: Of both shuffles.
    """
    order = np.random.RandomState(seed).permutation(len(images))
    kept = round(len(images) * (1 - test))
    rest = order[:kept][np.random.RandomState(seed).permutation(kept)]
    trained = round(kept * (1 - val))
    if val > 0 and trained == kept > 1:
        trained = kept - 1
    parts = rest[:trained], rest[trained:], order[kept:]
    return {
        split: [images[i] for i in part.tolist()] for split, part in zip(SPLITS, parts, strict=True)
    }


def split_tasks(
    images: dict[str, Sequence[Hashable]],
    given: dict[Hashable, str],
    drawn: Sequence[str] = (),
    test: float = 0.25,
    val: float = 0.1,
    seed: int = 42,
) -> dict[str, Members]:
    """Return the split of the images of each task.

    Args:
        images: Images of each task, each once, in the order of the list; tasks may share some.
        given: Splits that are already decided, by image.
        drawn: Tasks whose images are drawn from those of the other tasks, on the side where these
            have them, as many as the largest of these has. All images of a drawn task that no
            other task has, and those above that number, are left out.
        test: Part of the images of a task that is for testing.
        val: Part of the others that is for validation.
        seed: Of all shuffles.

    Returns:
        The images of each split of each task. Splits that are neither given nor drawn are those
        of `draw_split`, but for images that an earlier task placed already.
    """
    placed = dict(given)
    members: dict[str, Members] = {}
    for task in sorted(set(images) - {*drawn}):
        free = [image for image in images[task] if image not in placed]
        new = draw_split(free, test, val, seed)
        members[task] = {
            split: [i for i in images[task] if placed.get(i) == split] + new[split]
            for split in SPLITS
        }
        placed |= {image: split for split in SPLITS for image in new[split]}
    others = [members[task] for task in sorted(members)]
    for task in sorted(drawn):
        members[task] = _draw(set(images[task]), others, seed)
    return members


def _draw(images: set[Hashable], others: list[Members], seed: int) -> Members:
    """Return those of `images` that are drawn from the splits of other tasks."""
    drawn: Members = {}
    for split in SPLITS:
        pool = list(dict.fromkeys(image for other in others for image in other[split]))
        number = max((len(other[split]) for other in others), default=0)
        rng = np.random.RandomState(seed)
        order = rng.permutation(len(pool))[rng.permutation(len(pool))]
        found = [pool[i] for i in order.tolist() if pool[i] in images]
        drawn[split] = found[:number]
    return drawn


def split_rows(
    rows: Sequence[Row], test: float, val: float, seed: int, drawn: Sequence[str] = ()
) -> list[Row]:
    """Return the rows with their splits, sorted by task and split and then as drawn.

    Says how many images each task has on which side, and how many are left out.

    Args:
        rows: Rows of all tasks; all rows of a task have a split already, or none has.
        test: See `split_tasks`.
        val: See `split_tasks`.
        seed: See `split_tasks`.
        drawn: See `split_tasks`.

    Raises:
        ValueError: If a task to be drawn is unknown or has a split, only some rows of a task have
            a split, or one image is given two splits.
    """
    images: dict[str, list[Hashable]] = {}
    for row in rows:
        images.setdefault(row.task, []).append(_image(row))
    given = _given(rows, images, drawn)
    images = {task: list(dict.fromkeys(members)) for task, members in images.items()}
    members = split_tasks(images, given, drawn, test, val, seed)
    by_image: dict[tuple[str, Hashable], list[Row]] = {}
    for row in rows:
        by_image.setdefault((row.task, _image(row)), []).append(row)
    done = []
    for task in sorted(members):
        _tell(task, len(images[task]), members[task])
        for split in SPLITS:
            for image in members[task][split]:
                done += [replace(row, split=split) for row in by_image[task, image]]
    return done


def _image(row: Row) -> Hashable:
    """Return which image the signal of a row is, whatever its path is called."""
    return row.signal.path.resolve(), row.signal.scene, row.signal.time


def _given(
    rows: Sequence[Row], images: dict[str, list[Hashable]], drawn: Sequence[str]
) -> dict[Hashable, str]:
    """Return the splits that the rows give, by image; raises what `split_rows` says."""
    if unknown := sorted({*drawn} - {*images}):
        raise ValueError(
            f"no task {', '.join(unknown)} to draw; there are {', '.join(sorted(images))}"
        )
    given: dict[Hashable, str] = {}
    for row in rows:
        if row.split and given.setdefault(_image(row), row.split) != row.split:
            raise ValueError(
                f"{row.signal.path} is {given[_image(row)]} in one row and {row.split} in another; "
                "an image is on one side of the split only"
            )
    for task in images:
        has_split = {row.split is not None for row in rows if row.task == task}
        if len(has_split) > 1 or (True in has_split and task in drawn):
            raise ValueError(
                f"some rows of {task} have a split that others lack, or it is to be drawn; give "
                "a split in all of its rows or in none"
            )
    return given


def _tell(task: str, number: int, members: Members) -> None:
    """Say how many images of a task are on which side."""
    counts = {split: len(members[split]) for split in SPLITS}
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    left_out = number - sum(counts.values())
    note(f"{task}: {text}" + (f", {left_out} left out" if left_out else ""))
