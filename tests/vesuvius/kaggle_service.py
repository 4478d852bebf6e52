"""A stand-in for Kaggle on this machine.

Kaggle's client in its `LOCALHOST` environment asks `http://localhost`, and the stand-in is the
proxy of all its requests, so a port of its own choice will do. It remembers what it was asked.

    python -m tests.vesuvius.kaggle_service FOLDER

serves the files of a folder as the competition's data until it is interrupted, and prints the
environment in which `vesuvius kaggle` talks to it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMPETITION = "vesuvius-challenge-ink-detection"
TAKES_FILES = "papyrus-as-a-file"  # a competition that kernels are not needed for
USER = "ann"
KEY = "0123456789abcdef-the-key-of-ann"
SIGNATURE = "X-Goog-Signature=c0ffee5e1f"
CHUNK_BYTES = 2**16
ETAG = '"the-only-version"'


class Refusal(Exception):
    """An answer that is no success: its status and its message."""


@dataclass
class Dataset:
    """A dataset: the files of each version, and the states it will go through."""

    versions: list[dict[str, bytes]]
    states: list[str]


@dataclass
class Blob:
    """An uploaded file: its name, what of it is here, and the `Content-Range` of each upload."""

    name: str
    content: bytes = b""
    ranges: list[str] = field(default_factory=list)


@dataclass
class Kaggle:
    """What the stand-in knows, and what it shall answer.

    Attributes:
        bundle: The zip of the competition's files.
        are_rules_accepted: Whether the user may have them.
        cut_after: Bytes after which one download breaks off; None for none.
        pace_s: Seconds that each 64 KiB of a download or upload take.
        dataset_states: What the next new version of a dataset goes through; the last one stays.
        kernel_states: What the run of a kernel goes through; the last one stays.
        failure: Why the run of a kernel failed.
        log: What it printed.
        save_answer: What `SaveKernel` answers beside the usual.
        refusals: Status and body that a method answers, by its name, in place of the usual.
        submissions: As Kaggle lists them, the newest first.
        score: What submissions get once they were listed without; none if empty.
        calls: What was asked: method and body.
        ranges: The `Range` of each download, empty for all.
    """

    bundle: bytes = b""
    are_rules_accepted: bool = True
    cut_after: int | None = None
    pace_s: float = 0
    dataset_states: list[str] = field(default_factory=lambda: ["READY"])
    kernel_states: list[str] = field(default_factory=lambda: ["COMPLETE"])
    failure: str = ""
    log: str = ""
    save_answer: dict[str, Any] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    score: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)

    def asked(self, method: str) -> list[dict[str, Any]]:
        """Return the bodies of all requests to a method."""
        return [body for name, body in self.calls if name == method]

    def answer(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        self.calls.append((method, body))
        if body.get("competitionName", COMPETITION) not in (COMPETITION, TAKES_FILES):
            raise Refusal(404, "Competition not found")
        respond = getattr(self, f"_{method}", None)
        if respond is None:
            raise Refusal(501, f"the stand-in has no {method}")
        return respond(body)

    def _IntrospectToken(self, body):
        return {"active": body["token"] == KEY, "username": USER}

    def _GetDatasetStatus(self, body):
        dataset = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        if dataset is None:
            raise Refusal(403, "Permission 'datasets.get' was denied")
        return {"status": _next(dataset.states)}

    def _StartBlobUpload(self, body):
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = Blob(body.get("name") or body["fileName"])
        return {"token": token, "createUrl": f"http://uploads.localhost/{token}?{SIGNATURE}"}

    _StartSubmissionUpload = _StartBlobUpload

    def _CreateDataset(self, body):
        return self._add_version(f"{body['ownerSlug']}/{body['slug']}", body["files"])

    def _CreateDatasetVersion(self, body):
        return self._add_version(
            f"{body['ownerSlug']}/{body['datasetSlug']}", body["body"]["files"]
        )

    def _add_version(self, name, files):
        dataset = self.datasets.setdefault(name, Dataset([], []))
        blobs = [self.blobs[file["token"]] for file in files]
        dataset.versions.append({blob.name: blob.content for blob in blobs})
        dataset.states = list(self.dataset_states)
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{name}"}

    def _SaveKernel(self, body):
        versions = self.kernels.setdefault(body["slug"], [])
        versions.append(body)
        url = f"https://www.kaggle.com/code/{body['slug']}"
        return {"ref": body["slug"], "url": url, "versionNumber": len(versions), **self.save_answer}

    def _GetKernelSessionStatus(self, body):
        versions = self.kernels.get(f"{body['userName']}/{body['kernelSlug']}", [])
        if body["versionLabel"] not in [f"v{n}" for n in range(1, len(versions) + 1)]:
            raise Refusal(404, "Kernel not found")
        return {"status": _next(self.kernel_states), "failureMessage": self.failure}

    def _ListKernelSessionOutput(self, body):
        return {"files": [], "log": self.log}

    def _CreateCodeSubmission(self, body):
        return self._add_submission(body["submissionDescription"], body["fileName"])

    def _CreateSubmission(self, body):
        name = self.blobs[body["blobFileTokens"]].name
        return self._add_submission(body["submissionDescription"], name)

    def _add_submission(self, description, file_name):
        ref = 40_000_000 + len(self.submissions)
        self.submissions.insert(
            0,
            {"ref": ref, "date": "2026-01-02T03:04:05.678Z", "description": description,
             "fileName": file_name, "status": "PENDING"},
        )  # fmt: skip
        return {"message": "Successfully submitted", "ref": ref}

    def _ListSubmissions(self, body):
        start = (body.get("page", 1) - 1) * body["pageSize"]
        page = self.submissions[start : start + body["pageSize"]]
        if self.score:
            self.submissions = [one | self.score for one in self.submissions]
        return {"submissions": page}


def _next(states: list[str]) -> str:
    return states.pop(0) if len(states) > 1 else states[0]


class _Handler(BaseHTTPRequestHandler):
    """Requests to the stand-in, which is the proxy of them all."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # of a connection on which nothing comes
    kaggle: Kaggle

    def do_POST(self):
        method = self.path.rpartition("/")[2]
        body = json.loads(self._body() or b"{}")
        if method in self.kaggle.refusals:
            self.kaggle.calls.append((method, body))
            return self._send(*self.kaggle.refusals[method])
        try:
            if not self._is_signed_in() and method != "IntrospectToken":
                raise Refusal(401, "Unauthenticated")
            if method == "DownloadDataFiles":
                return self._redirect(body)
            return self._send(200, json.dumps(self.kaggle.answer(method, body)))
        except Refusal as refusal:
            code, message = refusal.args
            return self._send(code, json.dumps({"code": code, "message": message}))

    def do_PUT(self):
        blob = self.kaggle.blobs[self.path.rpartition("/")[2].partition("?")[0]]
        size = int(self.headers.get("Content-Length", 0))
        wanted = self.headers.get("Content-Range", "")
        if wanted.startswith("bytes */"):  # how much is here?
            if len(blob.content) == int(wanted.removeprefix("bytes */")):
                return self._send(200, "{}")
            return self._send(308, "{}", Range=f"bytes=0-{len(blob.content) - 1}")
        blob.ranges.append(wanted)
        while size:
            time.sleep(self.kaggle.pace_s)
            piece = self.rfile.read1(min(size, CHUNK_BYTES))
            if not piece:  # a client that was killed
                self.close_connection = True
                return None
            blob.content += piece
            size -= len(piece)
        return self._send(*self.kaggle.refusals.get("PUT", (200, "{}")))

    def do_GET(self):
        kaggle, wanted = self.kaggle, self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        kaggle.ranges.append(wanted)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(kaggle.bundle) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", ETAG)
        self.send_header("Last-Modified", "Wed, 15 Mar 2023 12:00:00 GMT")
        self.end_headers()
        stop = len(kaggle.bundle)
        if kaggle.cut_after is not None and start < kaggle.cut_after:
            stop, kaggle.cut_after = kaggle.cut_after, None
            self.close_connection = True
        with contextlib.suppress(ConnectionError):  # a client that was killed
            for begin in range(start, stop, CHUNK_BYTES):
                time.sleep(kaggle.pace_s)
                self.wfile.write(kaggle.bundle[begin : min(begin + CHUNK_BYTES, stop)])

    def do_CONNECT(self):
        self.kaggle.calls.append(("CONNECT", {"path": self.path}))
        self._send(403, "{}")

    def log_message(self, *_):
        pass

    def _redirect(self, body):
        self.kaggle.calls.append(("DownloadDataFiles", body))
        if body["competitionName"] != COMPETITION:
            raise Refusal(404, "Competition not found")
        if not self.kaggle.are_rules_accepted:
            raise Refusal(403, "You must accept this competition's rules before you download")
        self.send_response(302)
        self.send_header("Location", f"http://storage.localhost/files.zip?{SIGNATURE}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _is_signed_in(self):
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return self.headers.get("Authorization") in (f"Basic {basic}", f"Bearer {KEY}")

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, code, text, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        is_json = text.startswith("{")
        self.send_header("Content-Type", "application/json" if is_json else "text/html")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@contextlib.contextmanager
def serving(kaggle: Kaggle) -> Iterator[str]:
    """Serve on a free port of this machine and yield the address; nothing is left in the end."""
    handler = type("Handler", (_Handler,), {"kaggle": kaggle})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def zipped(folder: Path) -> bytes:
    """Return the files of a folder as a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            bundle.write(path, path.relative_to(folder))
    return packed.getvalue()


def environment(address: str) -> dict[str, str]:
    """Return the variables that lead Kaggle's client to a stand-in, and to nothing else."""
    return {
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), address),
        "no_proxy": "",
    }


def main(folder: Path) -> None:
    """Serve a folder as the competition's data until interrupted, with a score for everyone."""
    score = {"status": "COMPLETE", "publicScore": "0.61", "privateScore": "0.55"}
    kaggle = Kaggle(bundle=zipped(folder), kernel_states=["QUEUED", "COMPLETE"], score=score)
    with serving(kaggle) as address, contextlib.suppress(KeyboardInterrupt):
        account = {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
        for name, value in (environment(address) | account).items():
            print(f"export {name}={value}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
