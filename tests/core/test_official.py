"""Official checkpoints are read without running what they pickle."""

from __future__ import annotations

import argparse
import pickle
import random
import re

import pytest
import torch

from core.official import load_official_checkpoint

KERNEL = "encoder_block1.conv_more.conv1.expert_conv5x5_conv"
GATE = "encoder_block1.conv_more.conv1.gate.weight"


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


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02X\x01."]
)
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


@pytest.fixture
def content(sample_data):
    """What a real checkpoint holds."""
    source = sample_data / "repmode_reference" / "repmode_mc2_3tasks.p"
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(source, weights_only=True)


def refused(path, content, *parts):
    """Check that a checkpoint is refused in one line that names the file and `parts`."""
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_official_checkpoint(path)
    assert "\n" not in str(error.value)
    assert [part for part in parts if part not in str(error.value)] == []


def test_an_unchanged_checkpoint_is_read(content, tmp_path):
    torch.save(content, tmp_path / "model.p")
    model, tasks = load_official_checkpoint(tmp_path / "model.p")
    assert tasks == ["alpha_tubulin", "dna", "tom20"]
    assert not model.training


@pytest.mark.parametrize("alphabet", [bytes(range(256)), b"}](lt.NKMJXUcio012789abesuqhjrRBGQPS"])
def test_no_garbage_ends_otherwise_than_named(tmp_path, alphabet):
    generator = random.Random(0)
    path = tmp_path / "model.p"
    for _ in range(200):
        path.write_bytes(b"\x80\x02" + bytes(generator.choices(alphabet, k=30)) + b".")
        with pytest.raises(ValueError, match=r"model\.p") as error:
            load_official_checkpoint(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("foreign", [[], 3, {"nn_state": [KERNEL, GATE]}])
def test_other_content_is_refused(tmp_path, foreign):
    refused(tmp_path / "model.p", foreign, "is not an official RepMode checkpoint")


def test_a_weight_that_is_no_tensor_is_refused_by_name(content, tmp_path):
    content["nn_state"]["conv_out.gate.bias"] = [0.0]
    refused(tmp_path / "model.p", content, "conv_out.gate.bias", "list")


@pytest.mark.parametrize("name", ["head.weight", "encoder_block1.odd", "encoder_block11.odd", 7])
def test_an_unknown_name_is_refused_by_name(content, tmp_path, name):
    content["nn_state"][name] = torch.zeros(2)
    refused(tmp_path / "model.p", content, str(name))


def test_a_missing_weight_is_refused_by_name(content, tmp_path):
    del content["nn_state"]["conv_out.gate.bias"]
    refused(tmp_path / "model.p", content, "lacks", "conv_out.gate.bias")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (KERNEL, ()),
        (KERNEL, (0, 1, 5, 5, 5)),
        (GATE, (3,)),
        (GATE, (10, 0)),
        ("conv_out.gate.bias", (7,)),
    ],
)
def test_a_weight_of_another_shape_is_refused(content, tmp_path, name, shape):
    content["nn_state"][name] = torch.zeros(shape)
    refused(tmp_path / "model.p", content)


def test_a_network_with_fewer_stages_is_refused(content, tmp_path):
    content["nn_state"] = {
        name: weight for name, weight in content["nn_state"].items() if "coder_block4" not in name
    }
    refused(tmp_path / "model.p", content, "lacks", "coder_block4.")


def test_a_network_with_more_stages_is_refused(content, tmp_path):
    state = content["nn_state"]
    deepest = {name: weight for name, weight in state.items() if "coder_block4" in name}
    state |= {name.replace("block4", "block5"): weight for name, weight in deepest.items()}
    refused(tmp_path / "model.p", content, "unknown", "coder_block5.")


@pytest.mark.parametrize(
    "names",
    [
        None,
        "dna",
        [],
        ["dna"],
        ["a", "b", 3],
        ["a", "b", "b"],
        ["a", "b", "../c"],
        ["a", "b", "c/d"],
        ["a", "b", ".c"],
        ["a", "b", ""],
        ["a", "b", "c\n"],
    ],
)
def test_task_names_that_do_not_fit_or_could_not_name_a_file_are_refused(content, tmp_path, names):
    content["opts"].adopted_datasets = names
    refused(tmp_path / "model.p", content, "task names", "adopted_datasets")


def test_a_checkpoint_without_task_names_is_refused(content, tmp_path):
    del content["opts"]
    refused(tmp_path / "model.p", content, "task names", "adopted_datasets")
