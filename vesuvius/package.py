"""A Kaggle package: a dataset of models and wheels, and the kernel that runs them offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from core.config import to_dict
from core.files import read_json, write_json
from core.lock import holds, names_in
from core.provenance import collect, file_hash
from core.terminal import note
from vesuvius.dry_run import DryRun
from vesuvius.ensemble import EnsembleConfig, load_ensemble
from vesuvius.inkmap import InkModel, save_plain
from vesuvius.kaggle_build import DATASET_METADATA, KERNEL_METADATA
from vesuvius.kaggle_image import LACKS, PLATFORM, PYTHON_VERSION
from vesuvius.kernel import PACKAGE, SUMS
from vesuvius.offline import Package, Packed, Way
from vesuvius.tasks import INFRARED
from vesuvius.token_scan import check_holds_no_token
from vesuvius.wheels import gather

KERNELS = Path(__file__).parents[1] / "kernels"
DATASET, KERNEL = "dataset", "kernel"  # folders of a package
PARTIAL = ".package.partial"
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
        dataset: Name of the dataset; by default repmode-ink, and repmode-wheels without runs.
    """

    owner: str = "owner"
    dataset: str | None = None

    def of(self, kernel: Path) -> tuple[str, dict[str, Any]]:
        """Return what Kaggle calls the dataset of a kernel, and the metadata of that kernel."""
        metadata = read_json(kernel / KERNEL_METADATA)
        (source,) = metadata["dataset_sources"]
        dataset = f"{self.owner}/{self.dataset or source.partition('/')[2]}"
        names = {"id": f"{self.owner}/{kernel.name}", "dataset_sources": [dataset]}
        return dataset, metadata | names


@holds("out")
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
    with _replacing(out) as made:
        dataset, metadata = names.of(kernel)
        _write_dataset(made / DATASET, models, task, way, wheelhouse)
        write_json(
            made / DATASET / DATASET_METADATA,
            {"id": dataset, "title": dataset.partition("/")[2], "licenses": [{"name": "other"}]},
        )
        (made / KERNEL).mkdir()
        write_json(made / KERNEL / KERNEL_METADATA, metadata)
        shutil.copyfile(kernel / metadata["code_file"], made / KERNEL / metadata["code_file"])
        check_holds_no_token(made)
    size_mib = sum(path.stat().st_size for path in (out / DATASET).iterdir()) / 2**20
    note(f"{out}: {len(models)} models in a dataset of {size_mib:.1f} MiB, kernel {kernel.name}")
    trial.run(out, runs, models[0].num_layers if models else 0)


def _check_out(out: Path) -> None:
    """Raise ValueError if `out` holds anything but an earlier package, finished or not."""
    found = names_in(out)
    others = {name for name in found - OF_A_PACKAGE if name != PARTIAL}
    for name, proof in ((DATASET, PACKAGE), (KERNEL, KERNEL_METADATA)):
        if name in found and not (out / name / proof).exists():
            others.add(name)
    if others:
        raise ValueError(
            f"{out} holds other files ({', '.join(sorted(others))}) than a package has; choose "
            "another --out"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a folder whose dataset and kernel take the place of those in `out` at the end.

    Those that were there are moved away whole, so a package that was killed can be repeated.
    """
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in (DATASET, KERNEL):
            if (out / name).exists():
                (out / name).rename(partial / f"old-{name}")
            (partial / name).rename(out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_dataset(
    folder: Path,
    models: Sequence[InkModel],
    task: str | None,
    way: Way,
    wheelhouse: Wheelhouse,
) -> None:
    """Write the dataset but for its metadata, flat because Kaggle leaves folders out."""
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
