"""Kaggle as plain questions and orders; the one module that imports its official client.

The client is imported when a command needs it: it signs in, and may end the process, on import.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesuvius.kaggle_errors import AGAIN, Refused, Subject, of_one_line

COMPETITION = "vesuvius-challenge-ink-detection"
PAGE_SIZE = 100
READY = "ready"  # of a dataset
COMPLETE = "complete"  # of a kernel's run, or a submission
FAILED = "error"  # of either
BROKEN = ("failed", "deleted", FAILED, "cancel_requested", "cancel_acknowledged")


@dataclass(frozen=True)
class Bundle:
    """The files of a competition as one zip, of which nothing is read yet.

    Attributes:
        size: Bytes.
        response: Kaggle's answer.
    """

    size: int
    response: Any


@dataclass(frozen=True)
class KernelVersion:
    """A version of a kernel as Kaggle took it: its number, and where to look at it."""

    number: int
    url: str


@dataclass(frozen=True)
class Listed:
    """A submission as Kaggle lists it.

    Attributes:
        ref: Kaggle's number of it.
        time: When it was submitted, ISO 8601.
        description: What its sender called it.
        status: "pending", "complete" or "error".
        public: Public score; None where there is none yet.
        private: Private score, the same.
        error: Why it was not scored; empty if it was or may be.
    """

    ref: int
    time: str
    description: str
    status: str
    public: float | None
    private: float | None
    error: str

    def is_of(self, name: str, ref: int | None) -> bool:
        """Tell whether it is the one of a name or, should Kaggle change names, of a number."""
        return self.description == name or self.ref == ref


class KaggleClient:
    """Kaggle, signed in with the credentials of this user.

    Every method raises as `of_one_line` does.
    """

    def __init__(self) -> None:
        self._api = _signed_in()

    @property
    def user(self) -> str:
        """Return the name of the account."""
        return str(self._api.config_values["username"])

    def bundle(self, competition: str) -> Bundle:
        """Return the zip of a competition's files, for `fetch`."""
        from kagglesdk.competitions.types.competition_api_service import (
            ApiDownloadDataFilesRequest,
        )

        request = ApiDownloadDataFilesRequest()
        request.competition_name = competition
        with of_one_line(_competition(competition)), self._api.build_kaggle_client() as kaggle:
            client = kaggle.competitions.competition_api_client
            response = client.download_data_files(request)
        return Bundle(int(response.headers.get("Content-Length", 0)), response)

    def fetch(self, bundle: Bundle, path: Path) -> None:
        """Write a bundle to a file, going on where a killed command stopped in the same one."""
        with bundle.response, of_one_line(Subject(str(path), AGAIN, AGAIN)):
            if not path.exists() or path.stat().st_size != bundle.size:
                self._api.download_file(bundle.response, str(path), None, resume=True)

    def dataset_status(self, dataset: str) -> str:
        """Return the state of a dataset's newest version, in Kaggle's words, in small letters."""
        with of_one_line(self._owned("dataset", dataset)):
            return str(self._api.dataset_status(dataset))

    def has_dataset(self, dataset: str) -> bool:
        """Tell whether there is a dataset that this user may see."""
        try:
            self.dataset_status(dataset)
        except Refused:  # 404, or for an id nobody has, 403
            return False
        return True

    def create_dataset(self, dataset: str, folder: Path) -> None:
        """Upload the files of a folder as a new dataset that no other account sees.

        The upload of a file that was killed goes on where it stopped, for six days. Folders become
        zips, which Kaggle unpacks.

        Args:
            dataset: Its id, which its `dataset-metadata.json` gives too.
            folder: Its files and `dataset-metadata.json`.
        """
        subject = self._owned("dataset", dataset)
        with of_one_line(subject):
            answer = self._api.dataset_create_new(str(folder), quiet=_is_quiet(), dir_mode="zip")
        _check_taken(answer, subject)

    def update_dataset(self, dataset: str, folder: Path, notes: str) -> None:
        """Upload the files of a folder as a new version of a dataset, as `create_dataset` does.

        Args:
            dataset: As there.
            folder: As there.
            notes: What is said of the version.
        """
        subject = self._owned("dataset", dataset)
        with of_one_line(subject):
            answer = self._api.dataset_create_version(
                str(folder), notes, quiet=_is_quiet(), dir_mode="zip"
            )
        _check_taken(answer, subject)

    def push_kernel(self, kernel: str, folder: Path) -> KernelVersion:
        """Save the kernel of a folder as a new version, which Kaggle then runs.

        Args:
            kernel: Its id, which its `kernel-metadata.json` gives too.
            folder: Its code and `kernel-metadata.json`.
        """
        subject = self._owned("kernel", kernel)
        with of_one_line(subject):
            answer = self._api.kernels_push(str(folder))
        if answer.error or not answer.version_number:
            raise RuntimeError(f"{subject.name}: Kaggle does not take it: {answer.error}")
        unknown = [
            *(answer.invalid_dataset_sources or []),
            *(answer.invalid_competition_sources or []),
            *(answer.invalid_kernel_sources or []),
        ]
        if unknown:
            raise ValueError(
                f"{subject.name}: Kaggle runs version {answer.version_number} without "
                f"{', '.join(unknown)}, which it does not know or show; correct the ids in "
                f"{folder / 'kernel-metadata.json'} and push again"
            )
        return KernelVersion(answer.version_number, answer.url)

    def kernel_status(self, kernel: str, version: int) -> tuple[str, str]:
        """Return how far the run of a kernel's version is and why it failed, empty if it did not.

        The state is "queued", "running", "complete", "error" or another of Kaggle's, in small
        letters.
        """
        with of_one_line(self._owned("kernel", kernel)):
            answer = self._api.kernels_status(f"{kernel}/{version}")
            return answer.status.name.lower(), answer.failure_message or ""

    def kernel_log(self, kernel: str, version: int) -> str:
        """Return what the run of a kernel's version printed, in Kaggle's form."""
        with of_one_line(self._owned("kernel", kernel)):
            return str(self._api.kernels_logs(f"{kernel}/{version}"))

    def submit_kernel(
        self, competition: str, kernel: str, version: int, file_name: str, description: str
    ) -> int:
        """Submit the file that a kernel's version wrote, and return Kaggle's number of it."""
        with of_one_line(_competition(competition)):
            answer = self._api.competition_submit_code(
                file_name, description, competition, kernel, version
            )
        return _accepted(answer)

    def submit_file(self, competition: str, path: Path, description: str) -> int:
        """Submit a file of this machine and return Kaggle's number of it."""
        with of_one_line(_competition(competition)):
            answer = self._api.competition_submit(
                str(path), description, competition, quiet=_is_quiet()
            )
        return _accepted(answer)

    def submissions(self, competition: str) -> list[Listed]:
        """Return all submissions of this user to a competition, the newest first."""
        listed: dict[int, Listed] = {}
        page = 1
        while True:
            with of_one_line(_competition(competition)):
                answer = self._api.competition_submissions(
                    competition, page_number=page, page_size=PAGE_SIZE
                )
                new = {one.ref: _listed(one) for one in answer or [] if one.ref not in listed}
            if not new:
                return list(listed.values())
            listed |= new
            page += 1

    def _owned(self, kind: str, name: str) -> Subject:
        """Return a dataset or kernel as a subject."""
        check = f"check the id against the {kind}s of {self.user}, who is signed in"
        return Subject(f"{kind} {name}", check, check)


def _signed_in() -> Any:
    """Return the official client, signed in."""
    for name in ("VERBOSE", "VERBOSE_OUTPUT"):  # it would print headers, credentials included
        os.environ.pop(name, None)
    with of_one_line(Subject("Kaggle's log-in", "see whether the account is blocked", AGAIN)):
        # Signing in on import hides why it fails.
        with contextlib.redirect_stdout(None):
            from kaggle import api
        # Where it fails it prints a page on its own program.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            api.authenticate()
        print(said.getvalue())
    return api


def _competition(slug: str) -> Subject:
    """Return a competition as a subject."""
    page = f"https://www.kaggle.com/competitions/{slug}"
    return Subject(
        f"competition {slug}",
        f"accept its rules at {page}/rules and run the same command again",
        f"check the name against its page, {page}",
    )


def _is_quiet() -> bool:
    """Tell whether the client shall draw no progress bars, for they would go into a file."""
    return not sys.stderr.isatty()


def _check_taken(answer: Any, subject: Subject) -> None:
    """Raise RuntimeError where Kaggle's answer to a dataset holds an error, if with success."""
    if answer.error or (answer.status or "ok").lower() != "ok":
        raise RuntimeError(
            f"{subject.name}: Kaggle took the files but not the dataset: "
            f"{answer.error or answer.status}"
        )


def _accepted(answer: Any) -> int:
    """Return Kaggle's number of a submission; raise where it gives none."""
    if not answer.ref:
        raise RuntimeError(f"Kaggle took no submission: {answer.message or 'no reason given'}")
    return int(answer.ref)


def _listed(answer: Any) -> Listed:
    """Return a submission of Kaggle's list as plain data."""
    return Listed(
        ref=answer.ref,
        time=answer.date.isoformat(timespec="seconds") if answer.date else "",
        description=answer.description or "",
        status=answer.status.name.lower(),
        public=_score(answer.public_score),
        private=_score(answer.private_score),
        error=answer.error_description or "",
    )


def _score(text: str | None) -> float | None:
    """Return a score as a number; None where there is none."""
    return float(text) if text else None
