"""Does augmentation help `repmode-segformer` in a short run?

The recipe at the size of `vesuvius compare`, without augmentation, with flips and quarter turns,
and with shifts along z and dropped layers besides; one seed each, on the comparison's fragments.

    vesuvius compare --out COMPARISON ...                          makes the fragments
    python benchmarks/augmentation_trials.py COMPARISON            fifteen minutes on a quiet core
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

import vesuvius.contest
from core.files import write_json
from vesuvius.contest import TEST_PIECES, Contest
from vesuvius.miniature import Budget
from vesuvius.recipes import NO_AUGMENTATION, InkRecipe, repmode_segformer

RESULT = Path(__file__).parent / "results" / "augmentation_trials.json"
FLIPS = replace(NO_AUGMENTATION, flip=0.5, rotate90=0.5)


def trials() -> dict[str, InkRecipe]:
    """Return the recipe with each augmentation."""
    plain = replace(repmode_segformer(), augment=NO_AUGMENTATION)
    return {
        "none": plain,
        "flips and quarter turns": replace(plain, augment=FLIPS),
        "these, layers shifted by 2 and 2 dropped": replace(
            plain,
            augment=replace(FLIPS, layer_dropout=2),
            window=replace(plain.window, z_shift=2),
        ),
    }


def main(comparison: Path) -> None:
    """Train, score and store."""
    torch.set_num_threads(1)
    test = {name: comparison / "data" / name for name in TEST_PIECES}
    contest = Contest(comparison / "trials", comparison / "prepared", test, Budget())
    rows = {}
    for number, (name, recipe) in enumerate(trials().items()):
        vesuvius.contest.RECIPES = {name: lambda recipe=recipe: recipe}
        found = contest.run(name, 0, False, str(number))
        rows[name] = {key: round(found[key], 4) for key in ("f05", "best_f05", "roc_auc")}
        rows[name]["git_commit"] = found["git_commit"]
        print(name, rows[name])
    write_json(RESULT, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
