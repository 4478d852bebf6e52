"""What looks like a credential is found wherever it hides, and is not shown."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from vesuvius.token_scan import NAMES, check_holds_no_token

HEX = "0123456789abcdef" * 2
# Put together here, so that no file of the project looks as if it held one.
TOKENS = {
    "kaggle.json": '{"username": "me", "' + f'key": "{HEX}"' + "}",
    "kaggle": "KGAT" + f"_{HEX}",
    "github": "ghp" + f"_{HEX}abcd",
    "hugging face": "hf" + f"_{HEX}",
    "amazon": "AK" + "IA0123456789ABCDEF",
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "header": "Authorization: " + f"Bearer {HEX}",
    "variable": "WANDB_API_" + f"KEY={HEX}12345678",
    "field": '"pass' + f'word": "{HEX}"',
}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_a_token_is_found_and_not_shown(tmp_path, kind, is_zipped):
    text = f"first\n  {TOKENS[kind]}\nlast"
    file = tmp_path / "deep" / "provenance.json"
    file.parent.mkdir()
    if is_zipped:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", text)
    else:
        file.write_text(text)
    for path in (tmp_path, file):
        with pytest.raises(
            ValueError, match=r"provenance\.json holds what looks like a tok"
        ) as found:
            check_holds_no_token(path)
        assert HEX[:16] not in str(found.value)


@pytest.mark.parametrize("kind", sorted(TOKENS.keys() - {"variable", "field"}))
def test_a_token_is_found_among_weights(tmp_path, kind):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\x00" * 10_000 + TOKENS[kind].encode() + b"\x00" * 10)
    with pytest.raises(ValueError, match="holds what looks like a token"):
        check_holds_no_token(file)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_named_like_a_credential_is_refused_whatever_it_holds(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="is named like a credential"):
        check_holds_no_token(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", f'{{"sha256": "{HEX}"}}', "num_tokens = 12", "token: str = 'abc'", 'password = ""',
     "api_key=None", "Bearer of news", "secret_santa_of_many_different_names = 1"],
)  # fmt: skip
def test_what_is_no_token_passes(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    check_holds_no_token(tmp_path)


def test_the_project_itself_passes():
    repository = Path(__file__).parents[2]
    for name in ("core", "vesuvius", "kernels", "tests/vesuvius/test_token_scan.py"):
        check_holds_no_token(repository / name)
