"""Send a build to Kaggle: its dataset, and once that is ready the kernel that uses it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from core.lock import holds
from core.terminal import note
from vesuvius.kaggle_build import DATASET_METADATA, Build, Pushed, folder_hash, open_build
from vesuvius.kaggle_client import BROKEN, READY, KaggleClient
from vesuvius.kaggle_credentials import check_holds_none
from vesuvius.token_scan import check_holds_no_token

PATIENCE_S = 1800.0
LONGEST_PAUSE_S = 15.0


@holds("build")
def push(build: Path, /) -> None:
    """Upload a dataset and then the kernel that uses it, which Kaggle runs at once.

    What Kaggle has already is not sent again; an upload that was killed goes on where it stopped.

    Args:
        build: The --out folder of `vesuvius package`.

    Raises:
        FileNotFoundError: If it is no build.
        ValueError: If it holds a credential, belongs to another account, or Kaggle refuses it.
        RuntimeError: If Kaggle or the network failed, or Kaggle cannot unpack the dataset.
    """
    opened = open_build(build)
    for folder in (opened.dataset_folder, opened.kernel_folder):
        check_holds_no_token(folder)  # what looks like one, as package did
        check_holds_none(folder)  # yours, whatever it looks like
    client = KaggleClient()
    _check_owner(opened, client.user)
    _push_dataset(client, opened)
    _wait_until_ready(client, opened)
    _push_kernel(client, opened)


def _check_owner(build: Build, user: str) -> None:
    """Raise ValueError unless dataset and kernel belong to who is signed in."""
    for name in (build.dataset, build.kernel):
        owner = name.partition("/")[0]
        if owner.lower() != user.lower():
            raise ValueError(
                f"{name} belongs to {owner!r} but the credentials are those of {user!r}; package "
                f"again with --owner {user}"
            )


def _push_dataset(client: KaggleClient, build: Build) -> None:
    """Upload the dataset unless Kaggle has it as it is."""
    sha256 = folder_hash(build.dataset_folder)
    if build.pushed.dataset_sha256 == sha256:
        note(f"dataset {build.dataset} has not changed since it was pushed; not pushed again")
        return
    is_new = not client.has_dataset(build.dataset)
    if not is_new:
        _settled(client, build)  # Kaggle takes no version while it unpacks the first one
    paths = build.dataset_folder.rglob("*")
    files = [path for path in paths if path.is_file() and path.name != DATASET_METADATA]
    size_mib = sum(path.stat().st_size for path in files) / 2**20
    note(f"dataset {build.dataset}: uploading {len(files)} files, {size_mib:.1f} MiB")
    if is_new:
        client.create_dataset(build.dataset, build.dataset_folder)
    else:
        client.update_dataset(build.dataset, build.dataset_folder, notes=f"sha256 {sha256}")
    build.record(Pushed(dataset_sha256=sha256))


def _wait_until_ready(client: KaggleClient, build: Build) -> None:
    """Wait until kernels can use the dataset, for a kernel that starts earlier lacks it."""
    state = _settled(client, build)
    if state != READY:
        build.record(Pushed())  # so that the next push uploads it anew
        raise RuntimeError(
            f"dataset {build.dataset}: Kaggle could not make it of the files ({state}); see "
            f"https://www.kaggle.com/datasets/{build.dataset}, then push again"
        )
    note(f"dataset {build.dataset}: ready")


def _settled(client: KaggleClient, build: Build) -> str:
    """Return the state of the dataset once Kaggle is no longer at work on it."""
    deadline_s = time.monotonic() + PATIENCE_S
    pause_s, told = 1.0, ""
    while (state := client.dataset_status(build.dataset)) not in (READY, *BROKEN):
        if time.monotonic() > deadline_s:
            raise RuntimeError(
                f"dataset {build.dataset} is {state} for {PATIENCE_S / 60:.0f} minutes; run the "
                "same command again, it goes on waiting"
            )
        if state != told:
            note(f"dataset {build.dataset}: {state}, waiting until it is ready")
            told = state
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return state


def _push_kernel(client: KaggleClient, build: Build) -> None:
    """Save and run the kernel unless this very one ran on this very dataset."""
    sha256 = folder_hash(build.kernel_folder)
    pushed = build.pushed
    if pushed.kernel_sha256 == sha256:
        note(
            f"kernel {build.kernel} version {pushed.version} has not changed since it was pushed; "
            "not pushed again"
        )
        return
    version = client.push_kernel(build.kernel, build.kernel_folder)
    build.record(replace(pushed, kernel_sha256=sha256, version=version.number))
    note(
        f"kernel {build.kernel} version {version.number} runs: {version.url}; "
        f"`vesuvius kaggle status {build.folder}` tells how far it is"
    )
