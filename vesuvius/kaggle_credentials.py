"""Credentials of a Kaggle account: where a user gets one, and how none is shown or sent away."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

MAKE_TOKEN = (
    "make a token at https://www.kaggle.com/settings/api (Generate New Token) and put it into "
    "~/.kaggle/access_token (then `chmod 600 ~/.kaggle/access_token`) or the variable "
    "KAGGLE_API_TOKEN"
)
VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_KEY")
FILES = ("kaggle.json", "access_token", "access_token.txt", "credentials.json")
FIELDS = ("key", "token", "access_token", "refresh_token")  # of those files that are JSON
SHORTEST = 8  # characters; real ones have 32 and more, and shorter text would match anywhere
LARGEST_TEXT = 2**20  # bytes; a larger file is weights or a wheel
_HEADER = re.compile(r"\b(Bearer|Basic) [^\s'\"]+")
_SIGNED = re.compile(r"(/[^\s?'\"]*)\?[^\s'\")]+")


def redacted(text: str) -> str:
    """Return a text without credentials and without what signs a URL."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1?***", _HEADER.sub(r"\1 ***", text))


def check_holds_none(folder: Path) -> None:
    """Refuse a folder, to be sent to Kaggle, of which a text holds this user's token or key.

    Raises:
        ValueError: Naming the file.
    """
    secrets = [secret.encode() for secret in _secrets()]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_size <= LARGEST_TEXT:
            content = path.read_bytes()
            if any(secret in content for secret in secrets):
                raise ValueError(f"{path} holds your Kaggle token; remove it before the push")


def _secrets() -> set[str]:
    """Return every token and key the client could find."""
    found: list[Any] = []
    for value in (os.environ.get(name, "") for name in VARIABLES):
        found += [value.strip()] if not _is_file(value) else _read(Path(value))
    for folder in _folders():
        for name in FILES:
            found += _read(folder / name)
    return {text for text in found if isinstance(text, str) and len(text) >= SHORTEST}


def _folders() -> list[Path]:
    """Return where the client looks for credentials."""
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    return [home / ".kaggle", config, *([Path(chosen)] if chosen else [])]


def _is_file(value: str) -> bool:
    """Tell whether a variable names a file instead of holding a token."""
    with contextlib.suppress(OSError, ValueError):  # too long, or with a zero byte
        return Path(value).is_file()
    return False


def _read(path: Path) -> list[Any]:
    """Return what a file holds of credentials; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return []
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        return [text]
    return [fields.get(name) for name in FIELDS] if isinstance(fields, dict) else [text]
