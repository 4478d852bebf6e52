"""Official checkpoints are read without running what they pickle."""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch

from core.official import load_official_checkpoint


class Malicious:
    def __reduce__(self):
        return (print, ("arbitrary code ran",))


def test_arbitrary_pickle_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "model.p"
    torch.save({"nn_state": {}, "opts": Malicious()}, path)
    with pytest.raises(ValueError, match=r"model\.p cannot be read as an official"):
        load_official_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="cannot be read"):
        load_official_checkpoint(path)
    assert "arbitrary" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.p cannot be read") as error:
        load_official_checkpoint(path)
    assert "\n" not in str(error.value)


def test_other_checkpoint_is_named(tmp_path):
    path = tmp_path / "other.p"
    torch.save({"nn_state": {"layer.weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="not an official RepMode checkpoint"):
        load_official_checkpoint(path)


def test_missing_file_is_named_in_full(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none.p")):
        load_official_checkpoint(tmp_path / "none.p")


def test_network_of_other_depth_is_refused(sample_data, tmp_path):
    source = sample_data / "repmode_reference" / "repmode_mc2_3tasks.p"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(source, weights_only=True)
    del content["nn_state"]["conv_out.gate.bias"]
    torch.save(content, tmp_path / "cut.p")
    with pytest.raises(ValueError, match="does not fit the RepMode network"):
        load_official_checkpoint(tmp_path / "cut.p")
