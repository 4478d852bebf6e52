"""A packed kernel run here as Kaggle would, and what it wrote held against a direct prediction."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import read_json, write_json
from core.terminal import note
from vesuvius.clean_environment import CleanEnvironment, canonical, make_environment
from vesuvius.ensemble import EnsembleConfig
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import InkModel
from vesuvius.kaggle_build import KERNEL_METADATA
from vesuvius.kaggle_image import HAS, PYTHON_VERSION
from vesuvius.kernel import SAMPLE
from vesuvius.offline import CSV, MARGIN, PLAN, Package, Plan, read_package
from vesuvius.predict import predict
from vesuvius.simulate import simulate
from vesuvius.submission import check_submission, read_submission, submit
from vesuvius.wheels import UNIVERSAL

FOLDER = "dry-run"
REPORT = "report.json"
ROOT = "VESUVIUS_KAGGLE_ROOT"
LIMIT_S = 9 * 3600
# Height and width in tiles of what stands in for test/ until scoring, and of what comes then.
STAND_INS = {"a": (1.5, 2.0), "b": (2.0, 1.5)}
HIDDEN = {"c": (2.25, 1.75), "d": (1.25, 2.5)}


@dataclass(frozen=True)
class DryRun:
    """Whether and how a package is tried.

    Args:
        dry_run: Run the kernel here as Kaggle would, and check what it writes.
        fragment: A fragment in Kaggle layout to stand for a hidden one; repeat the option for
            each. By default two are simulated.
        hidden_mpx: Millions of pixels of papyrus assumed in the hidden fragments, whose sizes are
            not known, to tell how long they would take. The largest known fragment has 141 with
            its surroundings.
    """

    dry_run: bool = False
    fragment: tuple[Path, ...] = ()
    hidden_mpx: float = 150.0

    def check(self, models: Sequence[InkModel]) -> None:
        """Refuse what cannot be tried, before anything is packed.

        Raises:
            FileNotFoundError: If a fragment does not exist.
            ValueError: If fragments are given and not tried, there is no model, or two share a
                name.
        """
        if self.fragment and not self.dry_run:
            raise ValueError("fragments are given but nothing is tried; add --dry-run")
        if self.dry_run and not models:
            raise ValueError("a kernel that trains is not tried; package a run, or leave --dry-run")
        if self.hidden_mpx <= 0:
            raise ValueError(f"hidden_mpx {self.hidden_mpx} is no area; give millions of pixels")
        opened = [open_fragment(path, with_label=False) for path in self.fragment]
        for fragment in opened:
            if fragment.layout != "kaggle":
                raise ValueError(
                    f"{fragment.path} is laid out as {fragment.layout}; give a fragment in Kaggle "
                    "layout, as the hidden ones are"
                )
        names = [fragment.name for fragment in opened]
        if len(set(names)) < len(names):
            raise ValueError(f"fragments share a name ({', '.join(names)}); leave one out")

    def run(self, build: Path, runs: Sequence[Path], num_layers: int) -> None:
        """Try a package, if that is wanted; what is left is in its folder `dry-run`.

        Args:
            build: Folder of the package.
            runs: What it was made of.
            num_layers: Of the fragments to simulate.

        Raises:
            RuntimeError: If the kernel failed, or gave another mask than a direct prediction.
            ValueError: If Kaggle would refuse what it wrote.
        """
        if not self.dry_run:
            return
        folder = build / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        package = read_package(build / "dataset")
        wheels = [path.name for path in (build / "dataset").glob("*.whl")]
        _check_fit(wheels)
        packed = [name.partition("-")[0] for name in wheels]
        environment = make_environment(folder / "python", HAS, without=packed)
        _introduce(environment)
        tile = package.way.tile_size
        stand_ins = _simulated(folder / "fragments", STAND_INS, tile, num_layers)
        _run_kernel(build, folder / "stand-in", stand_ins, stand_ins, environment)
        hidden = {path.name: path for path in map(Path.absolute, self.fragment)}
        hidden = hidden or _simulated(folder / "fragments", HIDDEN, tile, num_layers)
        facts = _run_kernel(build, folder / "hidden", hidden, stand_ins, environment)
        _compare(folder, package, runs, hidden, Plan(**facts["plan"]))
        report = {
            "network": environment.isolation,
            "python": platform.python_version(),
            "base": dict(environment.base),
            "hidden": facts,
            "forecast": self.forecast(package, facts),
        }
        write_json(folder / REPORT, report)
        for name in ("python", "fragments", "stand-in/input", "hidden/input"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def forecast(self, package: Package, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return, and say, how long the hidden fragments would take here.

        Args:
            package: The package.
            facts: What its kernel measured.
        """
        tiles = self.hidden_mpx * 1e6 / package.way.stride**2
        seconds = Plan(**facts["plan"]).seconds(facts["seconds_per_tile"])
        hours = MARGIN * tiles * seconds / facts["num_devices"] / 3600
        is_over = hours * 3600 > LIMIT_S
        note(
            f"{'warning: ' if is_over else ''}{self.hidden_mpx:g} million pixels of papyrus "
            f"(assumed; --hidden-mpx), {tiles:.0f} tiles, would take {hours:.2f} h on "
            f"{facts['num_devices']} x {facts['device']} here, of Kaggle's {LIMIT_S / 3600:g} h"
            + ("; there the kernel would leave out what does not fit" if is_over else "")
        )
        return {"hidden_mpx": self.hidden_mpx, "tiles": tiles, "hours": hours, "is_over": is_over}


def _check_fit(wheels: Sequence[str]) -> None:
    """Raise ValueError if a compiled wheel is for Kaggle's Python and not for this one."""
    here = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    unfit = [
        name
        for name in wheels
        if not name.endswith(UNIVERSAL) and here not in name and "-abi3-" not in name
    ]
    if unfit:
        raise ValueError(
            f"{', '.join(unfit)} cannot be tried with Python {platform.python_version()}; try the "
            f"package with Python {PYTHON_VERSION}"
        )


def _introduce(environment: CleanEnvironment) -> None:
    """Say what the kernel runs in, and in what that is not Kaggle's image."""
    note(
        f"dry run: Python {platform.python_version()} (Kaggle has {PYTHON_VERSION}), network cut "
        f"off by {environment.isolation}; linked from here: "
        + ", ".join(f"{name} {environment.base[canonical(name)]}" for name in HAS)
    )


def _simulated(
    folder: Path, sizes: Mapping[str, tuple[float, float]], tile: int, num_layers: int
) -> dict[str, Path]:
    """Simulate fragments of sizes in tiles and return their folders by name."""
    paths = {name: folder / name for name in sizes}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        size = (int(height * tile), int(width * tile))
        simulate(paths[name], size=size, layers=num_layers, seed=seed)
    return paths


def _run_kernel(
    build: Path,
    root: Path,
    fragments: Mapping[str, Path],
    stand_ins: Mapping[str, Path],
    environment: CleanEnvironment,
) -> dict[str, Any]:
    """Run the kernel on fragments, check what it wrote and return what it says about it.

    Args:
        build: Folder of the package.
        root: Folder to lay out as /kaggle is.
        fragments: The test folder, by id.
        stand_ins: The same as the competition's sample knows them.
        environment: Where it runs.
    """
    metadata = read_json(build / "kernel" / KERNEL_METADATA)
    competition = root / "input" / metadata["competition_sources"][0]
    (competition / "test").mkdir(parents=True)
    (root / "working").mkdir()
    for name, path in fragments.items():
        (competition / "test" / name).symlink_to(path.absolute())
    rows = "".join(f"{name},1 1\n" for name in stand_ins)
    (competition / SAMPLE).write_text(f"Id,Predicted\n{rows}")
    dataset = metadata["dataset_sources"][0].partition("/")[2]
    (root / "input" / dataset).symlink_to((build / "dataset").absolute())
    log = root / "log.txt"
    note(f"dry run: {metadata['code_file']} on {', '.join(fragments)} ... (its log: {log})")
    script = build / "kernel" / metadata["code_file"]
    variables = {ROOT: str(root.absolute())}
    if code := environment.run(script, root / "working", log, variables):
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"the kernel ended with code {code}, saying {last!r}; see {log}")
    shapes = {
        name: open_fragment(path, with_label=False).papyrus_mask.shape
        for name, path in fragments.items()
    }
    check_submission(root / "working" / CSV, shapes)
    return read_json(root / "working" / PLAN)


def _compare(
    folder: Path, package: Package, runs: Sequence[Path], hidden: Mapping[str, Path], plan: Plan
) -> None:
    """Predict directly what the kernel predicted.

    Raises:
        RuntimeError: If that gives another mask.
    """
    way = package.way
    averaged = EnsembleConfig(tta=plan.tta, ensemble=tuple(runs[1 : plan.num_models]))
    for name, path in hidden.items():
        predict(
            runs[0],
            path,
            out=folder / "direct" / name,
            task=package.models[0].task,
            tile_size=way.tile_size,
            stride=way.stride,
            batch_size=way.batch_size,
            averaged=averaged,
        )
    direct = folder / "direct" / CSV
    submit(tuple(folder / "direct" / name for name in hidden), out=direct, threshold=way.threshold)
    expected, found = read_submission(direct), read_submission(folder / "hidden" / "working" / CSV)
    different = [name for name in hidden if expected[name] != found[name]]
    if different:
        raise RuntimeError(
            f"the kernel's masks of {', '.join(different)} differ from those of `vesuvius "
            f"predict`; compare {folder / 'hidden' / 'working' / CSV} and {direct}"
        )
    note(f"dry run: the masks of {', '.join(hidden)} are those of `vesuvius predict`, bit for bit")
