"""Scores of submissions: listed, and put into the ledger."""

from __future__ import annotations

from pathlib import Path

from core.terminal import note
from vesuvius.kaggle_client import COMPETITION, KaggleClient, Listed
from vesuvius.ledger import ROOT, Scores, read_ledger, set_scores


def scores(ledger: Path = ROOT, competition: str = COMPETITION) -> None:
    """List your submissions to a competition and put their scores into the ledger.

    A submission belongs to the entry whose name is its description, as `vesuvius kaggle submit`
    sees to. Of several of one entry the newest with a score counts.

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
    newest = {
        one.description: Scores(one.public, one.private)
        for one in reversed(listed)
        if one.public is not None or one.private is not None
    }
    for entry, manifest in read_ledger(ledger).items():
        if entry.name in newest and newest[entry.name] != manifest.scores:
            set_scores(entry, newest[entry.name])
            note(f"{entry.name}: scores put into {entry.parent / 'LEDGER.md'}")


def _line(one: Listed) -> str:
    """Return a submission as a line of a table."""
    public, private = ("-" if score is None else f"{score:.4f}"
                       for score in (one.public, one.private))  # fmt: skip
    reason = f" ({one.error})" if one.error else ""
    return (
        f"{one.ref:>10}  {one.time:19}  {one.status:8}  public {public:6}  private {private:6}  "
        f"{one.description}{reason}"
    )
