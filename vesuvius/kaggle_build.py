"""What `vesuvius package` wrote, and what of it Kaggle has.

A build is a folder with `dataset/` and `kernel/`, each with Kaggle's metadata. `pushed.json`
beside them says what was pushed, so that nothing is pushed twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import from_dict, to_dict
from core.files import read_json, write_json
from vesuvius.kernel import PACKAGE

PUSHED = "pushed.json"
DATASET_METADATA = "dataset-metadata.json"
KERNEL_METADATA = "kernel-metadata.json"


@dataclass(frozen=True)
class Pushed:
    """What of a build Kaggle has; None where it has nothing.

    Attributes:
        dataset_sha256: Hash of the dataset folder.
        kernel_sha256: Hash of the kernel folder, which runs on that dataset.
        version: Kaggle's number of the kernel's version.
    """

    dataset_sha256: str | None = None
    kernel_sha256: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Build:
    """A dataset and the kernel that uses it.

    Attributes:
        folder: Of the build.
        dataset: Id of the dataset, "owner/name".
        kernel: Id of the kernel, the same.
    """

    folder: Path
    dataset: str
    kernel: str

    @property
    def dataset_folder(self) -> Path:
        """Return the folder of the dataset."""
        return self.folder / "dataset"

    @property
    def kernel_folder(self) -> Path:
        """Return the folder of the kernel."""
        return self.folder / "kernel"

    @property
    def pushed(self) -> Pushed:
        """Return what of the build Kaggle has.

        Raises:
            ValueError: If the record of it is damaged.
        """
        path = self.folder / PUSHED
        return from_dict(Pushed, read_json(path), where=str(path)) if path.exists() else Pushed()

    @property
    def checkpoints(self) -> set[str]:
        """Return the SHA-256 of each checkpoint that a model of the dataset was made of."""
        models = read_json(self.dataset_folder / PACKAGE)["models"]
        return {model["facts"]["checkpoint_sha256"] for model in models}

    def record(self, pushed: Pushed) -> None:
        """Write down what of the build Kaggle has."""
        write_json(self.folder / PUSHED, to_dict(pushed))

    def check_unchanged(self) -> None:
        """Raise ValueError if the build is not as it was pushed."""
        held = self.pushed.dataset_sha256, self.pushed.kernel_sha256
        if held != (folder_hash(self.dataset_folder), folder_hash(self.kernel_folder)):
            raise ValueError(
                f"{self.folder} was packed anew since it was pushed; run `vesuvius kaggle push "
                f"{self.folder}` first"
            )

    def pushed_version(self) -> int:
        """Return the version of the kernel that was pushed.

        Raises:
            ValueError: If none was.
        """
        version = self.pushed.version
        if version is None:
            raise ValueError(
                f"{self.folder} was not pushed, or its dataset changed since; run `vesuvius kaggle "
                f"push {self.folder}` first"
            )
        return version


def open_build(folder: Path) -> Build:
    """Return the build in a folder.

    Raises:
        FileNotFoundError: If it lacks a part.
        ValueError: If an id is none, or the kernel does not use the dataset.
    """
    dataset, _ = _metadata(folder / "dataset" / DATASET_METADATA)
    kernel, fields = _metadata(folder / "kernel" / KERNEL_METADATA)
    sources = fields.get("dataset_sources", [])
    if dataset not in sources:
        raise ValueError(
            f"{folder / 'kernel' / KERNEL_METADATA} names the datasets {sources}, without "
            f"{dataset} of this build; package again"
        )
    return Build(folder, dataset, kernel)


def folder_hash(folder: Path) -> str:
    """Return the SHA-256, in hex, of the names and contents of all files in a folder."""
    hasher = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        hasher.update(f"{content} {path.relative_to(folder).as_posix()}\n".encode())
    return hasher.hexdigest()


def _metadata(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the id in a file of metadata, and all its fields."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the --out folder of `vesuvius package`"
        )
    fields = read_json(path)
    name = fields.get("id") if isinstance(fields, dict) else None
    if not isinstance(name, str) or len([part for part in name.split("/") if part]) != 2:
        raise ValueError(f'{path} has the id {name!r}; Kaggle takes "owner/name", package again')
    return name, fields
