"""Submit to Kaggle what the ledger holds."""

from __future__ import annotations

from pathlib import Path

from core.provenance import file_hash
from core.terminal import note
from vesuvius.kaggle_build import Build, open_build
from vesuvius.kaggle_client import COMPETITION, COMPLETE, FAILED, KaggleClient
from vesuvius.ledger import CSV, Manifest, read_manifest, set_kaggle_ref


def submit(entry: Path, /, build: Path | None = None, competition: str = COMPETITION) -> None:
    """Submit to Kaggle under the name of a ledger entry, where `scores` will put its score.

    What is submitted already is not submitted again.

    Args:
        entry: Folder that `vesuvius submit --name` wrote, `submissions/<date>_<name>`.
        build: Folder that `vesuvius kaggle push` pushed: the file that its kernel wrote is
            submitted, and the kernel runs again on the hidden fragments. The ink detection
            competition takes nothing else; without a build the entry's own CSV is uploaded.
        competition: Name of the competition, as in its address.

    Raises:
        FileNotFoundError: If entry or build does not exist.
        ValueError: If the kernel was not pushed, has other models than the entry or has not ended
            well, the CSV is no longer the one of the manifest, or Kaggle refuses.
        RuntimeError: If Kaggle or the network failed.
    """
    manifest = read_manifest(entry)
    name = entry.resolve().name
    if build is None:
        if competition == COMPETITION:
            raise ValueError(
                f"{competition} takes kernels alone; name with --build the folder that `vesuvius "
                "kaggle push` pushed"
            )
        if file_hash(entry / CSV) != manifest.csv_sha256:
            raise ValueError(f"{entry / CSV} is not the one of its manifest; submit another entry")
    opened = None if build is None else open_build(build)
    version = 0 if opened is None else opened.pushed_version()
    if opened is not None:
        opened.check_unchanged()
        _check_same_models(opened, entry, manifest)
    client = KaggleClient()
    for listed in client.submissions(competition):
        if listed.is_of(name, manifest.kaggle_ref) and listed.status != FAILED:
            note(
                f"{name} is submitted already ({listed.ref}, {listed.status}); not submitted again"
            )
            return
    if opened is None:
        ref = client.submit_file(competition, entry / CSV, name)
    else:
        _check_complete(client, opened.kernel, version)
        ref = client.submit_kernel(competition, opened.kernel, version, CSV, name)
    set_kaggle_ref(entry, ref)
    note(f"{name} is submitted ({ref}); `vesuvius kaggle scores` tells its score once there is one")


def _check_same_models(build: Build, entry: Path, manifest: Manifest) -> None:
    """Raise ValueError unless a build packs the models of a ledger entry."""
    packed, named = build.checkpoints, {model.checkpoint_sha256 for model in manifest.models}
    if packed != named:
        raise ValueError(
            f"{build.folder} packs the checkpoints {_short(packed)} but {entry} is of "
            f"{_short(named)}; submit to the ledger what the packed runs predict, and name that"
        )


def _short(hashes: set[str]) -> str:
    """Return hashes as the ledger shows them."""
    return ", ".join(sorted(sha256[:8] for sha256 in hashes)) or "of no model"


def _check_complete(client: KaggleClient, kernel: str, version: int) -> None:
    """Raise ValueError unless the run of a kernel ended well."""
    state, _ = client.kernel_status(kernel, version)
    if state != COMPLETE:
        raise ValueError(
            f"kernel {kernel} version {version} is {state!r}, not {COMPLETE!r}; `vesuvius kaggle "
            "status` tells more"
        )
