"""Tell how far Kaggle is with what was pushed."""

from __future__ import annotations

import json
from pathlib import Path

from core.terminal import note
from vesuvius.kaggle_build import open_build
from vesuvius.kaggle_client import BROKEN, KaggleClient
from vesuvius.kaggle_credentials import redacted

LOG_LINES = 20


def status(build: Path, /) -> None:
    """Tell how far Kaggle is with a dataset and the run of the kernel that uses it.

    Of a run that failed the end of its log is shown.

    Args:
        build: Folder that `vesuvius kaggle push` pushed.

    Raises:
        FileNotFoundError: If it is no build.
        ValueError: If the kernel was not pushed, or Kaggle does not know it.
        RuntimeError: If dataset or kernel failed, or Kaggle or the network did.
    """
    opened = open_build(build)
    version = opened.pushed_version()
    client = KaggleClient()
    dataset_state = client.dataset_status(opened.dataset)
    print(f"dataset {opened.dataset}: {dataset_state}")
    state, reason = client.kernel_status(opened.kernel, version)
    print(f"kernel {opened.kernel} version {version}: {state}")
    if state in BROKEN:
        for line in log_lines(client.kernel_log(opened.kernel, version))[-LOG_LINES:]:
            note(f"  {redacted(line)}")
        raise RuntimeError(
            f"kernel {opened.kernel} version {version} ended with {state!r}: "
            f"{redacted(reason) or 'no reason given'}; mend it, package and push again"
        )
    if dataset_state in BROKEN:
        raise RuntimeError(f"dataset {opened.dataset} is {dataset_state}; push it again")


def log_lines(log: str) -> list[str]:
    """Return the lines of a kernel's log, which Kaggle keeps as JSON, one entry per piece."""
    try:
        text = "".join(entry["data"] for entry in json.loads(log))
    except (json.JSONDecodeError, KeyError, TypeError):
        text = log
    return text.splitlines()
