"""A draft is continued after a kill at any place, and published whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.draft import JOURNAL, Draft

IDENTITY = {"size": [3, 4], "seed": 1}


class Killed(BaseException):
    """What a kill is to the code under test; nothing may catch it."""


def fill(path: Path, steps: range, identity: dict[str, object] = IDENTITY) -> dict[int, int]:
    """Write a file for each of some steps; return what was there and what is there."""
    draft = Draft(path)
    with draft.begin(identity) as done:
        for step in steps:
            (draft.folder / str(step)).write_text(str(step))
            draft.finish(step, 10 * step)
    return done


def fail(path: Path, steps: range, identity: dict[str, object], error: BaseException) -> None:
    """Write some steps and raise."""
    draft = Draft(path)
    with draft.begin(identity):
        for step in steps:
            (draft.folder / str(step)).write_text(str(step))
            draft.finish(step, 10 * step)
        raise error


def stop_after(path: Path, steps: range, identity: dict[str, object] = IDENTITY) -> None:
    """Write some steps and be killed."""
    with pytest.raises(Killed):
        fail(path, steps, identity, Killed())


def test_a_draft_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "new" / "one.vol")
    with draft.begin(IDENTITY) as done:
        assert done == {}
        assert not draft.path.exists()
        assert draft.folder.parent == draft.path.parent
        (draft.folder / "volume.npy").write_text("whole")
    assert os.listdir(tmp_path / "new") == ["one.vol"]
    assert os.listdir(draft.path) == ["volume.npy"]


def test_a_draft_that_was_stopped_tells_which_steps_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(tmp_path / "a", range(2))
    assert not capsys.readouterr().err
    stop_after(tmp_path / "a", range(2, 3))
    assert "a was begun before; it continues after 2 steps" in capsys.readouterr().err
    assert fill(tmp_path / "a", range(3, 4)) == {0: 0, 1: 10, 2: 20}
    assert sorted(os.listdir(tmp_path / "a")) == ["0", "1", "2", "3"]


def test_a_draft_of_something_else_is_thrown_away_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(tmp_path / "a", range(5), {"seed": 2})
    assert fill(tmp_path / "a", range(1)) == {}
    assert os.listdir(tmp_path / "a") == ["0"]
    assert f"{tmp_path / 'a'}: what was begun was of other input" in capsys.readouterr().err


@pytest.mark.parametrize("torn", ["2", "2 2", "\0\0\0\0", "\0\0\0\n", "2 x\n", "2 20 2\n", "\n"])
def test_a_journal_that_ends_in_half_a_line_tells_of_the_others(tmp_path: Path, torn: str) -> None:
    stop_after(tmp_path / "a", range(2))
    with (Draft(tmp_path / "a").folder / JOURNAL).open("a") as file:
        file.write(torn)
    assert fill(tmp_path / "a", range(0)) == {0: 0, 1: 10}


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"abc", b"\xff\xfe\n1 2\n"])
def test_a_draft_whose_journal_is_lost_is_started_again(tmp_path: Path, content: bytes) -> None:
    stop_after(tmp_path / "a", range(2))
    (Draft(tmp_path / "a").folder / JOURNAL).write_bytes(content)
    assert fill(tmp_path / "a", range(3, 4)) == {}
    assert os.listdir(tmp_path / "a") == ["3"]


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", range(3))
def test_a_publication_killed_at_any_place_is_finished(
    tmp_path: Path, call: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renames, removes the journal and renames."""
    calls: list[object] = []

    def dying(method):
        def die(path: Path, *args: object, **kwargs: object) -> object:
            is_last = len(calls) == call
            calls.append(path)
            if is_last and not after:
                raise Killed
            result = method(path, *args, **kwargs)
            if is_last:
                raise Killed
            return result

        return die

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with pytest.raises(Killed):
            fill(tmp_path / "a", range(2))
    assert len(calls) == call + 1
    draft = Draft(tmp_path / "a")
    draft.settle()
    if (call, after) == (0, False):  # nothing was renamed, so the draft is found again
        assert fill(tmp_path / "a", range(0)) == {0: 0, 1: 10}
    assert os.listdir(tmp_path) == ["a"]
    assert sorted(os.listdir(tmp_path / "a")) == ["0", "1"]


def test_a_full_disk_names_the_folder_and_keeps_the_draft(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        fail(tmp_path / "a", range(2), IDENTITY, OSError(28, "No space left on device"))
    assert caught.value.filename == str(tmp_path / "a")
    assert fill(tmp_path / "a", range(0)) == {0: 0, 1: 10}


def test_what_a_draft_takes_of_the_disk_is_known(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a")
    assert draft.held_bytes() == 0
    stop_after(tmp_path / "a", range(1))
    (draft.folder / "sub").mkdir()
    (draft.folder / "sub" / "file").write_bytes(bytes(10**6))
    assert 10**6 <= draft.held_bytes() < 1.1 * 10**6
