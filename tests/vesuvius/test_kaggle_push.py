"""A build goes to Kaggle once: its dataset first, its kernel when that is ready."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import zipfile

import pytest

from core.files import write_json
from tests.vesuvius.kaggle_program import DATASET, KERNEL, KERNEL_CODE
from tests.vesuvius.kaggle_service import KEY, Dataset


def test_the_kernel_follows_once_the_dataset_is_ready(program, kaggle_build):
    program.kaggle.dataset_states = ["BLOBS_RECEIVED", "READY"]
    said = program.run("push", "build")
    assert "blobs_received, waiting" in said
    assert "version 1 runs: https://www.kaggle.com/code/ann/ink-inference" in said
    asked = [method for method, _ in program.kaggle.calls]
    assert asked.index("CreateDataset") < asked.index("SaveKernel")
    assert asked[asked.index("SaveKernel") - 2 :][:2] == ["GetDatasetStatus"] * 2
    (files,) = program.kaggle.datasets[DATASET].versions
    assert files["weights.safetensors"] == b"weights"
    with zipfile.ZipFile(io.BytesIO(files["wheels.zip"])) as wheels:
        assert wheels.read("repmode.whl") == b"wheel"
    assert program.kaggle.asked("CreateDataset")[0]["isPrivate"]
    (kernel,) = program.kaggle.kernels[KERNEL]
    assert kernel["text"] == KERNEL_CODE
    assert kernel["enableInternet"] is False
    assert kernel["datasetDataSources"] == [DATASET]


def test_nothing_is_pushed_twice_and_what_changed_is(program, kaggle_build):
    program.run("push", "build")
    said = program.run("push", "build")
    assert f"dataset {DATASET} has not changed since it was pushed; not pushed again" in said
    assert (
        f"kernel {KERNEL} version 1 has not changed since it was pushed; not pushed again" in said
    )
    (kaggle_build / "kernel" / "main.py").write_text("print('more')\n")
    program.run("push", "build")
    assert len(program.kaggle.datasets[DATASET].versions) == 1
    assert len(program.kaggle.kernels[KERNEL]) == 2
    (kaggle_build / "dataset" / "weights.safetensors").write_bytes(b"better")
    program.run("push", "build")
    assert program.kaggle.datasets[DATASET].versions[1]["weights.safetensors"] == b"better"
    assert len(program.kaggle.kernels[KERNEL]) == 3  # the same code runs on other weights


def test_a_dataset_that_fails_stops_the_kernel_and_is_pushed_anew(program, kaggle_build):
    program.kaggle.dataset_states = ["BLOBS_RECEIVED", "FAILED"]
    assert "could not make it of the files (failed)" in program.run("push", "build", code=1)
    assert program.kaggle.kernels == {}
    program.kaggle.dataset_states = ["READY"]
    program.run("push", "build")
    assert len(program.kaggle.datasets[DATASET].versions) == 2
    assert len(program.kaggle.kernels[KERNEL]) == 1


def test_a_version_waits_until_kaggle_has_unpacked_the_first_one(program, kaggle_build):
    first = Dataset([{}], ["BLOBS_RECEIVED", "BLOBS_RECEIVED", "READY"])
    program.kaggle.datasets[DATASET] = first
    assert "blobs_received, waiting" in program.run("push", "build")
    asked = [method for method, _ in program.kaggle.calls]
    assert asked.index("StartBlobUpload") == 3  # after three times of GetDatasetStatus
    assert len(first.versions) == 2


def test_a_dataset_that_kaggle_takes_with_an_error_is_an_error(program, kaggle_build):
    answer = json.dumps({"status": "error", "error": "The title is in use"})
    program.kaggle.refusals["CreateDataset"] = (200, answer)
    said = program.run("push", "build", code=1)
    assert f"dataset {DATASET}: Kaggle took the files but not the dataset: The title" in said
    assert program.kaggle.kernels == {}


def test_a_killed_upload_goes_on_where_it_stopped(program, kaggle_build):
    kaggle, weights = program.kaggle, bytes(range(256)) * 2**14
    (kaggle_build / "dataset" / "weights.safetensors").write_bytes(weights)
    kaggle.pace_s = 0.02
    child = program.start("push", "build")
    deadline_s = time.monotonic() + 60
    while not any(len(blob.content) > 2**18 for blob in kaggle.blobs.values()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    kaggle.pace_s = 0
    program.run("push", "build")
    (blob,) = [blob for blob in kaggle.blobs.values() if blob.name == "weights.safetensors"]
    assert kaggle.datasets[DATASET].versions[0]["weights.safetensors"] == weights
    begun, rest = blob.ranges
    assert begun == ""
    assert int(rest.removeprefix("bytes ").partition("-")[0]) > 2**18


def test_an_upload_that_fails_makes_no_dataset(program, kaggle_build):
    program.kaggle.refusals["PUT"] = (500, "{}")
    said = program.run("push", "build", code=1)
    assert "Upload unsuccessful" in said
    assert "CreateDataset" not in [method for method, _ in program.kaggle.calls]


@pytest.mark.parametrize(
    ("answer", "says", "code"),
    [
        ({"error": "Maximum batch GPU session count reached"}, "Maximum batch GPU", 1),
        ({"invalidDatasetSources": [DATASET]}, f"runs version 1 without {DATASET}", 2),
    ],
)
def test_an_answer_that_only_looks_good_is_an_error(program, kaggle_build, answer, says, code):
    program.kaggle.save_answer = answer
    assert says in program.run("push", "build", code=code)
    program.kaggle.save_answer = {}
    assert "version 2 runs" in program.run("push", "build")  # not taken for pushed


def test_a_server_error_on_which_the_client_would_end_with_0_is_an_error(program, kaggle_build):
    program.kaggle.refusals["SaveKernel"] = (500, '{"code": 500, "message": "Internal error"}')
    said = program.run("push", "build", code=1)
    assert f"kernel {KERNEL}: Kaggle answers 500 (Internal error): the fault is Kaggle's" in said


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("dataset/access_token", "text", "is named like a credential"),
        ("kernel/main.py", f"key = {KEY!r}", "main.py holds your Kaggle token"),
        ("kernel/main.py", "KGAT_" + 16 * "0", "main.py holds what looks like a token"),
    ],
)
def test_a_credential_is_not_pushed(program, kaggle_build, name, text, says):
    (kaggle_build / name).write_text(text)
    assert says in program.run("push", "build", code=2)
    assert program.kaggle.calls == []
    (kaggle_build / name).unlink()  # it would be found as a leak


def test_what_belongs_to_another_account_or_is_no_build_is_refused(program, kaggle_build):
    assert "nowhere/dataset/dataset-metadata.json does not exist" in program.run(
        "push", "nowhere", code=2
    )
    metadata = kaggle_build / "kernel" / "kernel-metadata.json"
    mine = metadata.read_text()
    write_json(metadata, {**json.loads(mine), "dataset_sources": ["ann/other"]})
    assert f"without {DATASET} of this build" in program.run("push", "build", code=2)
    metadata.write_text(mine.replace(KERNEL, "bob/ink-inference"))
    said = program.run("push", "build", code=2)
    assert "'bob' but the credentials are those of 'ann'; package again with --owner ann" in said
    assert program.kaggle.calls == []


def test_status_tells_how_far_dataset_and_kernel_are(program, kaggle_build):
    assert "was not pushed" in program.run("status", "build", code=2)
    program.kaggle.kernel_states = ["QUEUED", "RUNNING", "COMPLETE"]
    program.run("push", "build")
    for state in ("queued", "running", "complete"):
        assert program.run("status", "build").splitlines() == [
            f"dataset {DATASET}: ready",
            f"kernel {KERNEL} version 1: {state}",
        ]


def test_status_shows_why_a_kernel_failed(program, kaggle_build):
    program.run("push", "build")
    program.kaggle.kernel_states = ["ERROR"]
    program.kaggle.failure = "Your notebook tried to allocate more memory than is available."
    entries = [{"stream_name": "stderr", "time": n, "data": f"line {n}\n"} for n in range(30)]
    program.kaggle.log = json.dumps(entries)
    said = program.run("status", "build", code=1)
    assert f"kernel {KERNEL} version 1: error" in said
    assert "  line 10\n" in said
    assert "  line 9\n" not in said
    assert "ended with 'error': Your notebook tried to allocate more memory" in said
