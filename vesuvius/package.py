"""A Kaggle package: a dataset of models and wheels, and the kernel that runs them offline."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core.config import to_dict
from core.files import read_json, write_json
from core.provenance import collect, file_hash
from core.terminal import note
from vesuvius.dry_run import DryRun
from vesuvius.ensemble import EnsembleConfig, load_ensemble
from vesuvius.inkmap import InkModel, save_plain
from vesuvius.kaggle_image import LACKS, PLATFORM, PYTHON_VERSION
from vesuvius.kernel import PACKAGE, SUMS
from vesuvius.offline import Package, Packed, Way
from vesuvius.tasks import INFRARED
from vesuvius.token_scan import check_holds_no_token
from vesuvius.wheels import gather

KERNELS = Path(__file__).parents[1] / "kernels"
KERNEL_METADATA = "kernel-metadata.json"
DATASET_METADATA = "dataset-metadata.json"
DATASET, KERNEL = "dataset", "kernel"  # folders of a package
OF_A_PACKAGE = {DATASET, KERNEL, "dry-run", "pushed.json"}

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Wheelhouse:
    """Which wheels are packed beside this project's.

    Args:
        wheel: A further distribution that Kaggle's image lacks; repeat the option for each.
        python_version: Of Kaggle's Python; compiled wheels are downloaded for it.
        platform: Of Kaggle's machine, as wheels name it; the same.
    """

    wheel: tuple[str, ...] = ()
    python_version: str = PYTHON_VERSION
    platform: str = PLATFORM


@dataclass(frozen=True)
class Names:
    """What Kaggle calls the parts of a package.

    Args:
        owner: Your name on Kaggle; only a push needs the right one.
        dataset: Name of the dataset.
    """

    owner: str = "owner"
    dataset: str = "repmode-ink"


def package(
    runs: tuple[Path, ...],
    /,
    out: Path,
    task: str | None = None,
    way: Annotated[Way, Flat] = Way(),  # noqa: B008 - frozen
    names: Annotated[Names, Flat] = Names(),
    wheelhouse: Annotated[Wheelhouse, Flat, tyro.conf.UseAppendAction] = Wheelhouse(),
    trial: Annotated[DryRun, Flat, tyro.conf.UseAppendAction] = DryRun(),  # noqa: B008
) -> None:
    """Pack runs for Kaggle: a dataset to upload, and the kernel that predicts with it offline.

    Writes OUT/dataset (the plain network of each run, wheels of this project and of what Kaggle's
    image lacks, hashes) and OUT/kernel (a script and its metadata). Without runs the kernel is
    the one that trains. With --dry-run the kernel then runs here as it would on Kaggle.

    An earlier package in OUT is replaced. Needs the project's folder, where the kernels are.

    Args:
        runs: Run folders of `vesuvius train`, or checkpoints; their predictions are averaged.
        out: Folder to write.
        task: Name of the task, "unknown" for the mean gate; by default the only one for ink.
        way: How the kernel predicts.
        names: What Kaggle calls the parts.
        wheelhouse: Which wheels are packed.
        trial: Whether and how to try it.

    Raises:
        FileNotFoundError: If a run or the kernels do not exist.
        ValueError: If runs do not fit each other, hold a token, or `out` holds other files.
        RuntimeError: If a wheel cannot be downloaded, or the kernel failed.
    """
    _check_out(out)
    for run in runs:
        check_holds_no_token(run)
    config = EnsembleConfig(tta=way.tta, ensemble=runs[1:])
    models = load_ensemble(runs[0], config).models if runs else ()
    trial.check(models)
    kernel = KERNELS / ("ink-inference" if runs else "ink-training")
    if not kernel.is_dir():
        raise FileNotFoundError(
            f"{kernel} does not exist: the kernels are in the project's folder and not in its "
            "wheel; install that folder with `pip install -e .` and package from there"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as folder:
        made = Path(folder)
        _write_dataset(made / DATASET, models, task, way, names, wheelhouse)
        _write_kernel(made / KERNEL, kernel, names)
        check_holds_no_token(made)
        for name in (DATASET, KERNEL):
            if (out / name).exists():
                shutil.rmtree(out / name)
            (made / name).rename(out / name)
    size_mib = sum(path.stat().st_size for path in (out / DATASET).iterdir()) / 2**20
    note(f"{out}: {len(models)} models in a dataset of {size_mib:.1f} MiB, kernel {kernel.name}")
    trial.run(out, runs, models[0].num_layers if models else 0)


def _check_out(out: Path) -> None:
    """Raise ValueError if `out` holds anything but an earlier package."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = sorted(name for name in found - OF_A_PACKAGE if not name.startswith("."))
    if others or (found and not (out / DATASET / PACKAGE).exists()):
        raise ValueError(
            f"{out} holds other files ({', '.join(others or sorted(found))}) and no package; "
            "choose another --out"
        )


def _write_dataset(
    folder: Path,
    models: Sequence[InkModel],
    task: str | None,
    way: Way,
    names: Names,
    wheelhouse: Wheelhouse,
) -> None:
    """Write the dataset, flat because Kaggle leaves folders out."""
    folder.mkdir()
    packed = []
    for number, model in enumerate(models):
        chosen = model.tasks.choose(task)
        if chosen == INFRARED:
            raise ValueError(f"task {INFRARED!r} maps no ink; choose another --task")
        file = f"model-{number}.safetensors"
        save_plain(model, chosen, folder / file)
        packed.append(Packed(file, chosen, model.facts()))
    described = Package(collect()["git_commit"], tuple(packed), way)
    write_json(folder / PACKAGE, to_dict(described))
    wanted = (*LACKS, *wheelhouse.wheel)
    gather(wanted, folder, wheelhouse.python_version, wheelhouse.platform)
    hashes = [f"{file_hash(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(hashes), encoding="utf-8")
    metadata = {
        "id": f"{names.owner}/{names.dataset}",
        "title": names.dataset,
        "licenses": [{"name": "other"}],
    }
    write_json(folder / DATASET_METADATA, metadata)


def _write_kernel(folder: Path, kernel: Path, names: Names) -> None:
    """Write a kernel that belongs to the owner and uses the dataset."""
    metadata = read_json(kernel / KERNEL_METADATA)
    folder.mkdir()
    shutil.copyfile(kernel / metadata["code_file"], folder / metadata["code_file"])
    metadata["id"] = f"{names.owner}/{kernel.name}"
    metadata["dataset_sources"] = [f"{names.owner}/{names.dataset}"]
    write_json(folder / KERNEL_METADATA, metadata)
