"""Scores of submissions: listed, and put into the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.terminal import note
from vesuvius.kaggle_client import COMPETITION, KaggleClient, Listed
from vesuvius.ledger import LEDGER, ROOT, Scores, read_ledger, set_scores


def scores(ledger: Path = ROOT, competition: str = COMPETITION) -> None:
    """List your submissions to a competition and put their scores into the ledger.

    Of several submissions of one entry the newest with a score counts.

    Args:
        ledger: Folder of the ledger's entries.
        competition: Name of the competition, as in its address.

    Raises:
        ValueError: If Kaggle refuses, or a manifest is damaged.
        RuntimeError: If Kaggle or the network failed.
    """
    listed = KaggleClient().submissions(competition)
    for one in listed:
        print(_line(one))
    if not listed:
        note(f"no submissions to {competition} yet")
    for entry, manifest in read_ledger(ledger).items():
        found = _newest(one for one in listed if one.is_of(entry.name, manifest.kaggle_ref))
        if found not in (None, manifest.scores):
            set_scores(entry, found)
            note(f"{entry.name}: scores put into {entry.parent / LEDGER}")


def _newest(listed: Iterable[Listed]) -> Scores | None:
    """Return the first scores of a list; None if there are none yet."""
    scored = (Scores(one.public, one.private) for one in listed)
    return next((found for found in scored if found != Scores()), None)


def _line(one: Listed) -> str:
    """Return a submission as a line of a table."""
    public, private = ("-" if score is None else f"{score:.4f}"
                       for score in (one.public, one.private))  # fmt: skip
    reason = f" ({one.error})" if one.error else ""
    return (
        f"{one.ref:>10}  {one.time:19}  {one.status:8}  public {public:6}  private {private:6}  "
        f"{one.description}{reason}"
    )
