from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from core import provenance


def test_a_record_names_code_libraries_device_time_command_and_facts() -> None:
    record = provenance.collect("cpu", threshold=0.5)
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert record["numpy"] == np.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["argv"] == sys.argv
    assert record["threshold"] == 0.5
    age = datetime.now(UTC) - datetime.fromisoformat(record["time_utc"])
    assert 0 <= age.total_seconds() < 60


def test_the_device_is_the_one_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert provenance.collect()["device"] is None
    assert provenance.collect("cuda:1")["device"] == "cuda:1 (GPU of cuda:1)"
    assert provenance.collect(torch.device("cuda"))["device"] == "cuda (GPU of cuda)"
    on_cpu = provenance.collect(device=torch.device("cpu"))["device"]
    assert on_cpu.startswith("cpu (")
    assert "GPU" not in on_cpu


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert provenance._git_commit(tmp_path) is None
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-a", "v1", "-m", "tag")
    commit = git("rev-parse", "HEAD")
    assert provenance._git_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("a = 2\n")
    assert provenance._git_commit(tmp_path) == f"{commit}-dirty"


def test_a_folder_inside_another_checkout_is_not_taken_for_one(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert provenance._git_commit(inside) is None


def test_a_missing_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance._git_commit(tmp_path) is None


def test_code_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DISTRIBUTION", "no-such-distribution")
    assert provenance.collect()["project_version"] is None


def test_a_file_hash_is_its_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert provenance.file_hash(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError, match="nothing"):
        provenance.file_hash(tmp_path / "nothing")
