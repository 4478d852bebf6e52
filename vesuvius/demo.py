"""The demo: every step from simulated fragments to a scored submission, and a page about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from core.files import write_json
from core.lock import holds
from core.metrics import fbeta
from core.steps import Steps
from core.terminal import note
from vesuvius import rle
from vesuvius.baseline import fit_baseline
from vesuvius.fragment import Fragment, open_fragment
from vesuvius.inkmap import load_model
from vesuvius.predict import predict
from vesuvius.prepare import prepare
from vesuvius.recipes import small
from vesuvius.report import MapRow, write_report
from vesuvius.simulate import simulate
from vesuvius.submission import read_submission, submit
from vesuvius.train import train

TRAINING_FRAGMENTS = ("1", "2")
UNSEEN_FRAGMENTS = ("a", "b")
SIZE = (1024, 1024)
STRIDE = 96


@holds("out")
def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Simulate, prepare, train, predict, submit and score; ends with a page of pictures.

    Two simulated fragments are trained on and two others, never looked at before the end, are
    predicted. The scores of simulated papyrus say that the path works, not how well real ink is
    found. The same command again continues where it was stopped.

    Args:
        out: Folder for everything: data, model, predictions, submission.csv, scores.json,
            report.html.
        seed: Decides the fragments and the training.
    """
    steps = Steps(out / "times.json")
    fragments = simulate_fragments(out / "data", seed, steps)
    labelled = tuple(fragments[name] for name in TRAINING_FRAGMENTS)
    steps.run("prepare", lambda: prepare(labelled, out=out / "prepared"))
    recipe = small()
    recipe = replace(recipe, training=replace(recipe.training, seed=seed))
    is_started = (out / "model" / "checkpoints" / "last.safetensors").exists()
    steps.run("train", lambda: train(out / "prepared", out / "model", recipe, resume=is_started))
    predictions = tuple(out / "predictions" / name for name in UNSEEN_FRAGMENTS)
    for folder in predictions:
        steps.run(
            f"predict {folder.name}",
            lambda folder=folder: predict(
                out / "model", fragments[folder.name], out=folder, stride=STRIDE
            ),
        )
    steps.run("submit", lambda: submit(predictions, out=out / "submission.csv"))
    unseen = [open_fragment(fragments[name]) for name in UNSEEN_FRAGMENTS]
    rows = steps.run("score", lambda: score(out, labelled, unseen))
    scores = pooled_scores(rows, load_model(out / "model").threshold)
    write_json(out / "scores.json", scores | {"seconds": steps.seconds})
    write_report(out, rows, scores, steps.seconds)
    note(
        f"F0.5 on unseen fragments {scores['f05']:.3f}, intensity baseline "
        f"{scores['baseline_f05']:.3f}, calling everything ink {scores['all_ink_f05']:.3f}; "
        f"pictures in {out / 'report.html'}"
    )


def simulate_fragments(data: Path, seed: int, steps: Steps) -> dict[str, Path]:
    """Make the fragments in Kaggle's folders and return the folder of each by name."""
    fragments = {name: data / "train" / name for name in TRAINING_FRAGMENTS}
    fragments |= {name: data / "test" / name for name in UNSEEN_FRAGMENTS}
    for number, (name, folder) in enumerate(fragments.items()):
        steps.run(
            f"simulate {name}",
            lambda folder=folder, number=number: simulate(
                folder, size=SIZE, seed=10 * seed + number
            ),
        )
    return fragments


def score(out: Path, labelled: tuple[Path, ...], unseen: list[Fragment]) -> list[MapRow]:
    """Return for each unseen fragment its label, its maps and what the baseline makes of it.

    The submission itself is decoded, so what is scored is what Kaggle would get.
    """
    baseline = fit_baseline([open_fragment(path) for path in labelled])
    submitted = read_submission(out / "submission.csv")
    rows = []
    for fragment in unseen:
        assert fragment.ink_label is not None
        prob = tifffile.imread(out / "predictions" / fragment.name / "prob.tif")
        rows.append(
            MapRow(
                name=fragment.name,
                label=fragment.ink_label & fragment.papyrus_mask,
                papyrus_mask=fragment.papyrus_mask,
                prob=prob,
                ink_mask=rle.decode(submitted[fragment.name], prob.shape),
                baseline_mask=baseline.predict(fragment),
            )
        )
    return rows


def pooled_scores(rows: list[MapRow], threshold: float) -> dict[str, Any]:
    """Return F0.5 over all fragments together, and of each alone.

    Beside the model's stand that of the intensity baseline and that of calling all papyrus ink.
    """
    return {
        **_scores(rows),
        "threshold": threshold,
        "fragments": {row.name: _scores([row]) for row in rows},
    }


def _scores(rows: list[MapRow]) -> dict[str, float]:
    return {
        "f05": f05([(row.ink_mask, row.label) for row in rows]),
        "baseline_f05": f05([(row.baseline_mask, row.label) for row in rows]),
        "all_ink_f05": f05([(row.papyrus_mask, row.label) for row in rows]),
    }


def f05(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return F0.5 over all pixels of pairs of ink mask and label, bool (Y, X)."""
    tp = sum(int((mask & label).sum()) for mask, label in pairs)
    fp = sum(int((mask & ~label).sum()) for mask, label in pairs)
    fn = sum(int((~mask & label).sum()) for mask, label in pairs)
    return float(fbeta(tp, fp, fn))
