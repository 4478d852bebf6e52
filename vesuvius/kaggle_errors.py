"""What goes wrong between us and Kaggle, as errors of one line without credentials.

Kaggle's client raises errors of three libraries, ends the process where it finds no credentials,
and prints the reason of some failures to stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.terminal import note
from vesuvius.kaggle_credentials import MAKE_TOKEN, redacted

AGAIN = "run the same command again, it goes on where it stopped"


class Refused(ValueError):
    """Kaggle answers that this user may not (403), or that there is no such thing (404)."""


@dataclass(frozen=True)
class Subject:
    """What a request is about.

    Attributes:
        name: In words: "dataset ann/ink-weights".
        if_forbidden: What to do where Kaggle does not allow it (403).
        if_missing: What to do where Kaggle knows none (404).
    """

    name: str
    if_forbidden: str
    if_missing: str


@contextlib.contextmanager
def of_one_line(subject: Subject) -> Iterator[None]:
    """Turn what the client raises, prints or exits with into errors of one line and notes.

    The client's own traceback is kept, without credentials, for `--debug`.

    Raises:
        Refused: If Kaggle does not allow it or does not know the subject.
        ValueError: If the user can mend something else: credentials, what was sent.
        RuntimeError: If Kaggle or the network failed.
    """
    try:
        with contextlib.redirect_stdout(_Notes()):
            yield
    # A border that everything must cross, for any message may hold a credential.
    except (Exception, SystemExit) as error:
        if _is_of_this_machine(error):
            raise error from None
        failure = _failure(error, subject)
        failure.add_note(redacted("".join(traceback.format_exception(error))))
        raise failure from None


class _Notes(io.StringIO):
    """What the client prints, as notes without credentials."""

    def write(self, text: str) -> int:
        """Tell each line of a text."""
        for line in filter(None, map(str.strip, text.splitlines())):
            note(f"kaggle: {redacted(line)}")
        return len(text)


def _is_of_this_machine(error: BaseException) -> bool:
    """Tell whether it is the error of a file or disk, which names what and why itself."""
    from requests import RequestException

    is_network = isinstance(error, RequestException | ConnectionError | TimeoutError)
    return isinstance(error, OSError) and error.errno is not None and not is_network


def _failure(error: BaseException, subject: Subject) -> Exception:
    """Return an error of one line for one of the client's."""
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    if isinstance(error, SystemExit):
        return ValueError(_no_credentials())
    answered = _answered(error)
    if answered is not None and _code(answered.response) >= 400:
        return _refusal(answered, subject)
    text = _text(error)
    if isinstance(error, UnicodeError) or "header value" in text:
        return ValueError(f"the Kaggle token holds blanks or line breaks; {MAKE_TOKEN}")
    if isinstance(error, json.JSONDecodeError | KeyError | TypeError | AttributeError):
        return RuntimeError(
            f"{subject.name}: Kaggle's answer is not understood ({type(error).__name__}: {text}); "
            "see whether a network log-in page answers in its place, or update the client: "
            "pip install --upgrade kaggle"
        )
    if isinstance(error, RequestException | HTTPError | ConnectionError | TimeoutError):
        return RuntimeError(
            f"{subject.name}: the connection to Kaggle failed ({type(error).__name__}); check the "
            f"network, and http_proxy and https_proxy if they are set, then {AGAIN}"
        )
    if text.startswith(("Upload unsuccessful", "Downloaded file size")):
        return RuntimeError(f"{subject.name}: {text}; {AGAIN}")
    if isinstance(error, ValueError):
        return ValueError(f"{subject.name}: {text}")
    return RuntimeError(f"{subject.name}: {type(error).__name__}: {text}; {AGAIN}")


def _refusal(error: Any, subject: Subject) -> Exception:
    """Return what to do about an answer of Kaggle that is no success."""
    code = _code(error.response)
    answer = f"{subject.name}: Kaggle answers {code} ({_text(error).partition(' for url:')[0]})"
    if code == 401:
        return ValueError(f"{answer}: it does not accept the credentials; {MAKE_TOKEN}")
    if code == 403:
        return Refused(f"{answer}; {subject.if_forbidden}")
    if code == 404:
        return Refused(f"{answer}; {subject.if_missing}")
    if code == 429:
        wait = error.response.headers.get("Retry-After", "")
        pause = f"{wait} seconds" if wait.isdigit() else "a few minutes"
        return RuntimeError(f"{answer}: too many requests; wait {pause}, then {AGAIN}")
    if code >= 500:
        return RuntimeError(f"{answer}: the fault is Kaggle's; wait a little, then {AGAIN}")
    return ValueError(answer)


def _text(error: BaseException) -> str:
    """Return what an error says, in one line without credentials."""
    return " ".join(redacted(str(error)).split())


def _answered(error: BaseException | None) -> Any:
    """Return the error that carries Kaggle's answer, itself or a cause; None if none does."""
    while error is not None:
        # Not the truth of the answer: one of 404 counts as false.
        if getattr(error, "response", None) is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _code(response: Any) -> int:
    """Return the status of an answer, which may stand in its body alone."""
    if "json" in response.headers.get("Content-Type", ""):  # and not a file of gigabytes
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return int(response.json()["code"])
    return int(response.status_code)


def _no_credentials() -> str:
    """Return what to do where the client found no credentials that Kaggle knows."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    _, source = get_access_token_from_env()
    if source:
        where = source if source in os.environ else f"~/.kaggle/{source}"
        return f"Kaggle does not know the token in {where}, it may have expired; {MAKE_TOKEN}"
    return (
        f"no Kaggle credentials found; {MAKE_TOKEN}. Without an account `vesuvius simulate` makes "
        "data and `vesuvius package --dry-run` checks everything up to the push"
    )
