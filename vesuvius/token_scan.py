"""Nothing that looks like a credential leaves this machine in a package."""

from __future__ import annotations

import mmap
import re
import zipfile
from pathlib import Path

NAMES = {"kaggle.json", "access_token", "access_token.txt", "credentials.json", ".netrc", ".env"}
# Each begins with letters of its own, which are found fast even in hundreds of MiB of weights.
_TOKENS = tuple(
    map(
        re.compile,
        (
            rb'"key"\s*:\s*"[0-9a-f]{32}"',  # kaggle.json
            rb"KGAT_[0-9A-Za-z]{16}",  # Kaggle
            rb"github_pat_[0-9A-Za-z_]{22}",
            *(rb"gh%c_[0-9A-Za-z]{36}" % kind for kind in b"pousr"),  # GitHub
            rb"hf_[0-9A-Za-z]{30}",  # Hugging Face
            rb"AKIA[0-9A-Z]{16}",  # Amazon
            rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
            rb"earer [0-9A-Za-z._~+/-]{20}",
        ),
    )
)
# In text, also whatever is called so and has letters and digits.
_NAMED = re.compile(
    rb"(?:api[_-]?key|token|secret|password)[\"']?\s*[:=]\s*[\"']?(?=[a-z_-]*[0-9])[0-9a-z_-]{24}"
)
_BEGINNING = 4096  # bytes, of which text holds no zero


def check_holds_no_token(path: Path) -> None:
    """Refuse a file, or a folder with all that is below it, that holds what looks like a token.

    Zip files, which wheels are, are looked into.

    Raises:
        ValueError: Naming the file; not the token.
    """
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in (file for file in paths if file.is_file()):
        if file.name in NAMES:
            raise ValueError(f"{file} is named like a credential; take it out of what is packed")
        if _holds_token(file):
            raise ValueError(
                f"{file} holds what looks like a token or key; take it out, or what it is in"
            )


def _holds_token(file: Path) -> bool:
    """Tell whether a file, or a member of a zip file, holds what looks like a token."""
    if not file.stat().st_size:
        return False
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(_is_found_in(archive.read(name)) for name in archive.namelist())
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        return _is_found_in(mapped)


def _is_found_in(content: bytes | mmap.mmap) -> bool:
    """Tell whether some content holds what looks like a token."""
    if any(token.search(content) for token in _TOKENS):
        return True
    is_text = b"\0" not in content[:_BEGINNING]
    return is_text and _NAMED.search(content[:].lower()) is not None
