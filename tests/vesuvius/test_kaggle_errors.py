"""Whatever Kaggle or its client does, a user reads one line, and never a credential."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.vesuvius.kaggle_program import GUARD, REPOSITORY
from tests.vesuvius.kaggle_service import COMPETITION, KEY, SIGNATURE, USER
from vesuvius.kaggle_credentials import redacted

RULES = f"accept its rules at https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_PAGE = "https://www.kaggle.com/settings/api"
ANSWERS = {
    "401": (401, '{"code": 401, "message": "Unauthenticated"}', TOKEN_PAGE, 2),
    "403": (403, '{"code": 403, "message": "Forbidden"}', RULES, 2),
    "404": (404, '{"code": 404, "message": "Not found"}', "check the name against its page", 2),
    "400": (400, '{"code": 400, "message": "Too many columns"}', "answers 400 (Too many col", 2),
    "429": (429, '{"code": 429, "message": "Slow down"}', "wait a few minutes", 1),
    "500": (500, '{"code": 500, "message": "Oh no"}', "the fault is Kaggle's", 1),
    "500 that is no JSON": (500, "<html>", "the fault is Kaggle's", 1),
    "403 said in a body of 200": (200, '{"code": 403, "message": "Forbidden"}', RULES, 2),
    "log-in page of a network": (200, "<html>Welcome to our hotel", "network log-in page", 1),
    "state that is new": (
        200, '{"submissions": [{"ref": 1, "status": "FROZEN"}]}', "is not understood", 1,
    ),
}  # fmt: skip


def sign_out(program):
    (program.home / ".kaggle" / "kaggle.json").unlink()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_no_success_becomes_one_line(program, name):
    status, body, says, code = ANSWERS[name]
    program.kaggle.refusals["ListSubmissions"] = (status, body)
    said = program.run("scores", code=code)
    assert f"competition {COMPETITION}: " in said
    assert says in said
    assert len(said.splitlines()) == 1


def test_rules_that_are_not_accepted_name_their_page(program):
    program.kaggle.are_rules_accepted = False
    said = program.run("download", code=2)
    assert "You must accept this competition's rules" in said
    assert RULES in said
    assert not (program.home / "kaggle").exists()


def test_a_competition_that_does_not_exist_is_said(program):
    said = program.run("download", "--competition", "vesuvius-chalenge", code=2)
    assert "https://www.kaggle.com/competitions/vesuvius-chalenge" in said


def test_a_key_that_kaggle_does_not_know_is_said(program):
    (program.home / ".kaggle" / "kaggle.json").write_text(
        json.dumps({"username": USER, "key": "the-key-of-somebody-else"})
    )
    said = program.run("download", code=2)
    assert "Kaggle answers 401 (Unauthenticated): it does not accept the credentials" in said
    assert "somebody" not in said


def test_no_connection_is_said(program):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = program.run("scores", code=1, http_proxy=address)
    assert "the connection to Kaggle failed (ProxyError); check the network" in said


@pytest.mark.parametrize("command", ["download", "scores"])
def test_without_an_account_it_is_said_how_to_get_one(program, command):
    sign_out(program)
    said = program.run(command, code=2)
    for remedy in (TOKEN_PAGE, "~/.kaggle/access_token", "KAGGLE_API_TOKEN", "vesuvius simulate"):
        assert remedy in said
    assert said.startswith("vesuvius: error: no Kaggle credentials found; make a token at")
    assert len(said.splitlines()) == 1
    assert program.kaggle.calls == []


def test_a_token_signs_in_from_a_variable_and_one_that_expired_is_named(program):
    sign_out(program)
    program.run("scores", KAGGLE_API_TOKEN=KEY)
    said = program.run("scores", code=2, KAGGLE_API_TOKEN="a-token-that-has-expired")
    assert "Kaggle does not know the token in KAGGLE_API_TOKEN" in said
    assert "has-expired" not in said


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_a_key_that_comes_back_in_an_answer_is_not_shown(program, debug):
    body = json.dumps({"code": 400, "message": f"bad key {KEY} at http://a/b?{SIGNATURE}"})
    program.kaggle.refusals["ListSubmissions"] = (400, body)
    said = program.run("scores", *debug, code=2)
    assert "bad key *** at http://a/b?***" in said
    assert ("kaggle_http_client.py" in said) == bool(debug)  # where it happened


def test_a_token_with_a_line_break_is_not_shown(program):
    sign_out(program)
    said = program.run("scores", "--debug", code=2, KAGGLE_API_TOKEN=f"{KEY}\nand more")
    assert "the Kaggle token holds blanks or line breaks" in said


def test_the_client_stays_silent_where_it_is_asked_to_print_its_headers(program):
    said = program.run("scores", "--debug", VERBOSE="true")
    assert "Authorization" not in said


def test_a_key_that_others_may_read_is_pointed_out(program):
    (program.home / ".kaggle" / "kaggle.json").chmod(0o644)
    assert "kaggle: Warning: Your Kaggle API key is readable by other users" in program.run(
        "scores"
    )


def test_what_signs_is_taken_out_of_any_text(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token-of-the-environment")
    monkeypatch.setenv("KAGGLE_KEY", "short")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "credentials.json").write_text('{"refresh_token": "refresh-token"}')
    (tmp_path / ".kaggle" / "access_token").write_text("token-of-the-file\n")
    text = "token-of-the-environment token-of-the-file refresh-token short"
    assert redacted(text) == "*** *** *** short"
    assert redacted("'Authorization': 'Basic YW5uOmtleQ=='") == "'Authorization': 'Basic ***'"
    assert redacted("url: /files.zip?Expires=1&Sig=2 (Caused") == "url: /files.zip?*** (Caused"


def test_tests_reach_this_machine_alone():
    code = GUARD + "import socket; socket.create_connection(('localhost', 80))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tests talk to 127.0.0.1 alone" in result.stderr


def test_the_commands_start_without_torch():
    modules = ", ".join(
        f"vesuvius.kaggle_{name}" for name in ("download", "push", "status", "submit", "scores")
    )
    code = f"import sys, {modules}; print({{'torch', 'numpy', 'kaggle'}} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
