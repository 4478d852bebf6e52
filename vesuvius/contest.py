"""What the runs of a comparison have in common: fragments, budget, and how one is scored."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.config import to_dict
from core.deploy import specialize
from core.files import atomic_path, read_json, write_json
from core.metrics import fbeta
from core.provenance import collect
from core.separate import peak_mib
from vesuvius.baseline import fit_baseline
from vesuvius.control import shift_labels
from vesuvius.evaluate import averages, score
from vesuvius.fragment import fingerprint, open_fragment, read_binary_png
from vesuvius.inkmap import load_model
from vesuvius.miniature import STRIDE, Budget, miniature
from vesuvius.predict import predict
from vesuvius.prepare import prepare
from vesuvius.recipes import RECIPES, InkRecipe
from vesuvius.scored import ScoredMap, Truths, scored_predictions
from vesuvius.simulate import simulate
from vesuvius.tasks import INK
from vesuvius.train import open_volumes, train

RECORD = "comparison.json"
FRAGMENT_1 = (8181, 6330)  # px, Kaggle's fragment 1
# rows and columns of it: first, first, number, number; two lines of text to train on, and the
# rectangle that the project this one grows from held out
TRAINING_PIECES = {"1": (1500, 1200, 1024, 1536), "2": (4650, 700, 1024, 1536)}
TEST_PIECES = {"strip": (3500, 1000, 960, 2560)}


@dataclass(frozen=True)
class Fragments:
    """Which fragments a comparison is on; they are simulated unless given.

    Args:
        data: Folder of prepared volumes to train on, instead of simulated ones.
        test: Labelled fragments to be scored on; not among those trained on.
        ink_label: inklabels.png of Kaggle's fragment 1, whose shapes the simulated ink then has.
        papyrus_mask: mask.png of the same fragment.
        difficulty: Of the simulated ink, as in `vesuvius simulate`; easier than the default there,
            so that short runs learn something.
    """

    data: Path | None = None
    test: tuple[Path, ...] = ()
    ink_label: Path | None = None
    papyrus_mask: Path | None = None
    difficulty: float = 0.45

    def __post_init__(self) -> None:
        if (self.data is None) != (not self.test):
            raise ValueError(
                "--data and --test go together: volumes to train on, fragments to score"
            )
        if (self.ink_label is None) != (self.papyrus_mask is None):
            raise ValueError("--ink-label and --papyrus-mask go together; give both or neither")
        if self.data and self.ink_label:
            raise ValueError("--ink-label is for simulated fragments; leave it out, or --data")


@dataclass(frozen=True)
class Contest:
    """Where a comparison takes place.

    Attributes:
        out: Its folder.
        data: Folder of the prepared volumes to train on.
        test: Labelled fragments to be scored on, by name.
        budget: What each run may spend.
    """

    out: Path
    data: Path
    test: Mapping[str, Path]
    budget: Budget

    def folder(self, name: str) -> Path:
        """Return the folder of a run with its predictions."""
        return self.out / "runs" / name

    def score_path(self, name: str) -> Path:
        """Return the file that a finished run has."""
        return self.folder(name) / "score.json"

    def recipe(self, name: str, seed: int) -> InkRecipe:
        """Return a recipe as its run with a seed trains it."""
        return miniature(RECIPES[name](), self.budget, seed)

    def check_finished(self, recipe_name: str, seed: int, name: str) -> None:
        """Refuse a finished run whose recipe was another one then; options added since may differ.

        Args:
            recipe_name: Of the recipe.
            seed: Of the training.
            name: Of its folder.

        Raises:
            ValueError: If it is of another recipe.
        """
        trained = read_json(self.folder(name) / "run" / "config.json")["description"]["recipe"]
        wanted = json.loads(json.dumps(to_dict(self.recipe(recipe_name, seed))))
        changed = [
            f"{group}.{option}"
            for group, options in wanted.items()
            for option, value in options.items()
            if trained.get(group, {}).get(option, value) != value
        ]
        if changed:
            raise ValueError(
                f"{self.folder(name)} was trained when {recipe_name} was another recipe "
                f"({', '.join(changed)}); delete it to train it anew, or choose another --out"
            )

    def run(self, recipe_name: str, seed: int, is_control: bool, name: str) -> dict[str, Any]:
        """Train, predict and score one run, and return what was found and what it took.

        Args:
            recipe_name: Of the recipe.
            seed: Of the training.
            is_control: Whether to train on shifted labels.
            name: Of its folder.
        """
        recipe = self.recipe(recipe_name, seed)
        data = self.data
        if is_control:
            data = shift_labels(open_volumes(data), self.out / "control" / str(seed), seed)
        run = self.folder(name) / "run"
        is_started = (run / "checkpoints" / "last.safetensors").exists()
        train(data, run, recipe, resume=is_started)
        started_s = time.monotonic()
        maps = self._predict(run, name)
        predict_s = time.monotonic() - started_s
        model = load_model(run)
        evaluated = score(maps, fixed=model.threshold)
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        plain = specialize(model.network, model.tasks.gates(INK))
        return {
            "git_commit": collect()["git_commit"],
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "plain_parameters": sum(p.numel() for p in plain.parameters()),
            "patches": epochs[-1]["step"] * recipe.training.batch_size,
            "patch_size": recipe.sampling.patch_size,
            "validation_f05": max(epoch["score"] for epoch in epochs),
            "train_s": sum(epoch["seconds"] for epoch in epochs),
            "predict_s": predict_s,
            "peak_mib": peak_mib(),
            "maps": [one.describe() for one in evaluated],
            **next(iter(averages(evaluated).values())),
        }

    def _predict(self, run: Path, name: str) -> list[ScoredMap]:
        """Return the maps of the test fragments, predicted anew so that their time is whole."""
        truths, maps = Truths(()), []
        for fragment, path in self.test.items():
            folder = self.folder(name) / fragment
            shutil.rmtree(folder, ignore_errors=True)
            predict(run, path, out=folder, stride=STRIDE)
            maps += scored_predictions(folder, truths)
        return maps

    def baselines(self) -> dict[str, float]:
        """Return F0.5 of what needs no network, the mean over the test fragments."""
        fragments = [open_fragment(path) for path in self.test.values()]
        fitted = fit_baseline([open_fragment(v.path) for v in open_volumes(self.data).values()])
        found: dict[str, list[float]] = {"best threshold on intensity": [], "all papyrus ink": []}
        for fragment in fragments:
            assert fragment.ink_label is not None
            valid = fragment.labelled_papyrus
            label = fragment.ink_label & valid
            for ink, values in zip(
                (fitted.predict(fragment) & valid, valid), found.values(), strict=True
            ):
                tp = int((ink & label).sum())
                values.append(float(fbeta(tp, int(ink.sum()) - tp, int(label.sum()) - tp)))
        return {name: float(np.mean(values)) for name, values in found.items()}


def gather_contest(out: Path, fragments: Fragments, budget: Budget) -> Contest:
    """Return the contest of a folder, its fragments simulated unless given.

    Raises:
        ValueError: If a fragment cannot be used, or the folder holds another comparison.
    """
    data, test = fragments.data, fragments.test
    if data is None:
        data, test = _simulate_all(out, fragments)
    unseen = {fragment.name: fragment for fragment in map(open_fragment, test)}
    volumes = open_volumes(data)
    for name, fragment in unseen.items():
        if fragment.ink_label is None:
            raise ValueError(f"{fragment.path} has no ink label and cannot be scored; leave it out")
        if name in volumes:
            raise ValueError(f"{name} is both trained on and scored; leave it out of one of them")
    identity = {
        "budget": asdict(budget),
        "data": {name: volume.info["fingerprint"] for name, volume in volumes.items()},
        "test": {name: fingerprint(fragment) for name, fragment in unseen.items()},
    }
    path = out / RECORD
    if path.exists() and read_json(path) != identity:
        raise ValueError(
            f"{out} compares on other fragments or with another budget; choose another --out"
        )
    write_json(path, identity)
    return Contest(out, data, {name: found.path for name, found in unseen.items()}, budget)


def _simulate_all(out: Path, fragments: Fragments) -> tuple[Path, tuple[Path, ...]]:
    """Simulate the fragments; return the prepared volumes and the fragments to be scored on."""
    images = {"--ink-label": fragments.ink_label, "--papyrus-mask": fragments.papyrus_mask}
    maps = {option: read_binary_png(path) for option, path in images.items() if path}
    for option, image in maps.items():
        if image.shape != FRAGMENT_1:
            raise ValueError(
                f"{option} is {image.shape[0]} x {image.shape[1]} px, Kaggle's fragment 1 is "
                f"{FRAGMENT_1[0]} x {FRAGMENT_1[1]}; give its image, or neither for drawn text"
            )
    folders = {}
    for seed, (name, piece) in enumerate((TRAINING_PIECES | TEST_PIECES).items()):
        y, x, height, width = piece
        cut = {}
        for option, image in maps.items():
            cut[option] = out / "shapes" / f"{name}{option}.png"
            with atomic_path(cut[option]) as partial:
                Image.fromarray(image[y : y + height, x : x + width]).save(partial)
        folders[name] = out / "data" / name
        simulate(
            folders[name],
            size=(height, width),
            seed=seed,
            ink_label=cut.get("--ink-label"),
            papyrus_mask=cut.get("--papyrus-mask"),
            difficulty=fragments.difficulty,
        )
    prepare(tuple(folders[name] for name in TRAINING_PIECES), out=out / "prepared")
    return out / "prepared", tuple(folders[name] for name in TEST_PIECES)
