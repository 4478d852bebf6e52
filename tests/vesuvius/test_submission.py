from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from vesuvius import rle, submission
from vesuvius.ledger import Model, read_manifest
from vesuvius.submission import (
    check_submission,
    ink_mask,
    read_submission,
    submit,
    write_submission,
)

FACTS = {"checkpoint_sha256": "ab" * 32, "recipe": "small", "changes": {}, "cv_score": 0.5}


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"b": rng.random((9, 7)) > 0.5, "a": rng.random((5, 12)) > 0.5}


def write_prediction(
    folder: Path,
    prob: np.ndarray,
    name: str,
    threshold: float | None = 0.5,
    num_predictions: int = 1,
) -> Path:
    folder.mkdir()
    tifffile.imwrite(folder / "prob.tif", prob)
    provenance = {
        "name": name,
        "threshold": threshold,
        "num_predictions": num_predictions,
        "models": [FACTS],
        "settings": {"stride": 64},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def noise(height: int = 300, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def test_rows_are_sorted_and_read_back(tmp_path, masks):
    write_submission(masks, tmp_path / "submission.csv")
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines == ["Id,Predicted", f"a,{rle.encode(masks['a'])}", f"b,{rle.encode(masks['b'])}"]
    assert read_submission(tmp_path / "submission.csv") == {
        k: rle.encode(m) for k, m in masks.items()
    }


def test_an_empty_mask_becomes_one_pixel_and_says_so(tmp_path, masks, capsys):
    masks["a"][:] = False
    write_submission(masks, tmp_path / "s.csv")
    assert read_submission(tmp_path / "s.csv")["a"] == "1 1"
    assert "a: no ink at all" in capsys.readouterr().err


def test_a_row_that_reads_back_wrong_leaves_no_file(tmp_path, masks, monkeypatch):
    monkeypatch.setattr(submission.rle, "encode", lambda mask: "2 1")
    with pytest.raises(RuntimeError, match="row 'b' reads back as another mask"):
        write_submission(masks, tmp_path / "s.csv")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_submission_survives_a_failure(tmp_path, masks, monkeypatch):
    write_submission(masks, tmp_path / "s.csv")
    before = (tmp_path / "s.csv").read_text()
    monkeypatch.setattr(submission.rle, "encode", lambda mask: "2 1")
    with pytest.raises(RuntimeError):
        write_submission(masks, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == before


@pytest.fixture
def default_field_limit():
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


@pytest.mark.usefixtures("default_field_limit")
def test_a_row_of_a_million_characters_is_read_and_the_limit_put_back(tmp_path):
    text = " ".join(["1 1"] * 300_000)
    (tmp_path / "s.csv").write_text(f"Id,Predicted\na,{text}")
    assert read_submission(tmp_path / "s.csv") == {"a": text}
    assert csv.field_size_limit() == 131_072


def test_the_sample_submission_and_the_real_label_are_read(sample_data):
    rows = read_submission(sample_data / "kaggle_test_masks" / "sample_submission.csv")
    assert rows == {"a": "1 1 5 1", "b": "10 20"}
    rows = read_submission(sample_data / "kaggle_fragment_1" / "inklabels_rle.csv")
    assert list(rows) == ["1"]
    assert len(rows["1"]) > 131_072


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with ''"),
        (b"a,1 1\n", "begins with 'a,1 1'; the first line of a submission is 'Id,Predicted'"),
        (b"Id,Predicted\na,1 1\nb,\na,2 2\n", "line 4 repeats the id 'a'"),
        (b"Id,Predicted\na,1 1,2\n", "line 2 has 3 fields"),
        (b"Id,Predicted\n\xff\xfe,1 1\n", "is no CSV text"),
    ],
)
def test_files_that_are_no_submission_are_refused(tmp_path, content, message):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_submission(tmp_path / "s.csv")
    with pytest.raises(FileNotFoundError, match=r"missing\.csv"):
        read_submission(tmp_path / "missing.csv")


def test_the_mask_read_in_bands_equals_the_whole_map(tmp_path):
    prob = noise(2 * submission.BAND_ROWS + 3)
    prob[0, 0] = np.float32(0.3)
    tifffile.imwrite(tmp_path / "prob.tif", prob)
    np.testing.assert_array_equal(ink_mask(tmp_path / "prob.tif", 0.3), prob >= 0.3)


def test_submit_uses_the_threshold_of_each_prediction(tmp_path, capsys):
    probs = {"a": noise(seed=1), "b": noise(seed=2)}
    a = write_prediction(tmp_path / "p1", probs["a"], "a", 0.25)
    b = write_prediction(tmp_path / "p2", probs["b"], "b", 0.75)
    submit((b, a), out=tmp_path / "out" / "s.csv")
    rows = read_submission(tmp_path / "out" / "s.csv")
    assert rows == {"a": rle.encode(probs["a"] >= 0.25), "b": rle.encode(probs["b"] >= 0.75)}
    assert "a: threshold 0.25, ink on 74.38% of the pixels" in capsys.readouterr().err
    submit((a, b), out=tmp_path / "s.csv", threshold=0.5)
    rows = read_submission(tmp_path / "s.csv")
    assert rows == {name: rle.encode(prob >= 0.5) for name, prob in probs.items()}


def test_submit_says_whose_threshold_a_mean_of_predictions_gets(tmp_path, capsys):
    folders = tuple(
        write_prediction(tmp_path / name, noise(), name, num_predictions=number)
        for name, number in (("a", 60), ("b", 1), ("c", 8))
    )

    def notes(**options) -> list[str]:
        submit(folders, out=tmp_path / "s.csv", **options)
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if "fitted on single predictions" in line]

    (line,) = notes()
    assert line.startswith("a, c: mean of several predictions")
    assert line.endswith("--threshold overrides it")
    assert notes(threshold=0.4) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_probability_is_named_with_its_place(tmp_path, bad):
    prob = noise()
    prob[270, 4] = prob[299, 1] = bad
    folder = write_prediction(tmp_path / "p", prob, "a")
    with pytest.raises(ValueError, match=rf"p/prob.tif holds {bad} at row 270, column 4,"):
        submit((folder,), out=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("filename", ["prob.tif", "provenance.json"])
def test_an_unfinished_prediction_is_refused(tmp_path, filename):
    folder = write_prediction(tmp_path / "p", noise(), "a")
    (folder / filename).unlink()
    with pytest.raises(FileNotFoundError, match=f"p/{filename} .*predict did not finish"):
        submit((folder,), out=tmp_path / "s.csv")


def test_two_predictions_of_one_fragment_are_refused(tmp_path):
    folders = (
        write_prediction(tmp_path / "p1", noise(), "a"),
        write_prediction(tmp_path / "p2", noise(), "a"),
    )
    with pytest.raises(ValueError, match=r"p1 and .*p2 both predict 'a'"):
        submit(folders, out=tmp_path / "s.csv")
    with pytest.raises(ValueError, match="no prediction folder given"):
        submit((), out=tmp_path / "s.csv")


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(tmp_path, threshold):
    folder = write_prediction(tmp_path / "p", noise(), "a", threshold=None)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        submit((folder,), out=tmp_path / "s.csv", threshold=threshold)
    with pytest.raises(ValueError, match="no threshold of its own; choose one with --threshold"):
        submit((folder,), out=tmp_path / "s.csv")


def test_damaged_and_foreign_maps_are_refused(tmp_path):
    folder = write_prediction(tmp_path / "p", noise(), "a")
    content = (folder / "prob.tif").read_bytes()
    (folder / "prob.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"prob.tif cannot be read \(.*\); run predict again"):
        submit((folder,), out=tmp_path / "s.csv")
    tifffile.imwrite(folder / "prob.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 4\) and type uint8"):
        submit((folder,), out=tmp_path / "s.csv")
    (folder / "provenance.json").write_text("[]")
    with pytest.raises(ValueError, match="lacks name and threshold"):
        submit((folder,), out=tmp_path / "s.csv")


def test_a_flat_map_is_called_flat(tmp_path, capsys):
    flat = np.zeros((600, 30), np.float32)
    flat[5:] = 0.7
    submit((write_prediction(tmp_path / "p", flat, "a"),), out=tmp_path / "s.csv")
    assert "a: the map is flat" in capsys.readouterr().err
    flat[599] = 0.71
    submit((write_prediction(tmp_path / "q", flat, "a"),), out=tmp_path / "s.csv")
    assert "map is flat" not in capsys.readouterr().err


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The folder of submissions of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "submissions"


def test_without_out_a_submission_is_kept_and_says_what_it_was_made_of(tmp_path, kept):
    prob = noise()
    folder = write_prediction(tmp_path / "p", prob, "a", 0.25)
    submit((folder,))
    (submitted,) = kept.glob("*_small")
    assert read_submission(submitted / "submission.csv") == {"a": rle.encode(prob >= 0.25)}
    manifest = read_manifest(submitted)
    assert manifest.models == (Model(**FACTS),)
    (row,) = manifest.rows
    assert (row.name, row.height, row.width, row.threshold) == ("a", 300, 20, 0.25)
    assert row.ink_share == pytest.approx((prob >= 0.25).mean())
    assert row.settings == {"stride": 64}
    assert f"| {submitted.name} |" in (kept / "LEDGER.md").read_text()


def test_with_out_a_submission_is_that_file_alone(tmp_path, kept):
    submit((write_prediction(tmp_path / "p", noise(), "a"),), out=tmp_path / "s.csv")
    assert not kept.exists()


def test_a_submission_is_either_kept_by_name_or_written_to_a_file(tmp_path, kept):
    folder = write_prediction(tmp_path / "p", noise(), "a")
    with pytest.raises(ValueError, match=r"s\.csv is a CSV alone and name 'x' is for the ledger"):
        submit((folder,), out=tmp_path / "s.csv", name="x")
    assert not (tmp_path / "s.csv").exists()


def test_the_same_submission_again_changes_nothing_and_another_is_refused(tmp_path, kept):
    folder = write_prediction(tmp_path / "p", noise(), "a")
    submit((folder,), name="x")
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    submit((folder,), name="x")
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="holds another submission; choose another --name"):
        submit((folder,), name="x", threshold=0.7)


def test_a_prediction_that_does_not_name_its_models_is_not_kept(tmp_path, kept):
    folder = write_prediction(tmp_path / "p", noise(), "a")
    provenance = json.loads((folder / "provenance.json").read_text())
    del provenance["models"]
    (folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match=r"does not name its models.*--out for a CSV alone"):
        submit((folder,))
    submit((folder,), out=tmp_path / "s.csv")


def test_ids_other_than_those_of_the_sample_are_refused(tmp_path):
    folder = write_prediction(tmp_path / "p", noise(), "c")
    (tmp_path / "sample.csv").write_text("Id,Predicted\na,1 1\nb,1 1\n")
    with pytest.raises(ValueError, match=r"lack \['a', 'b'\] and add \['c'\]; predict the missing"):
        submit((folder,), out=tmp_path / "s.csv", sample=tmp_path / "sample.csv")
    assert not (tmp_path / "s.csv").exists()


SHAPES = {"a": (4, 5), "b": (2, 3)}


def test_what_submit_writes_is_what_kaggle_takes(tmp_path, masks):
    masks["b"][:] = False
    write_submission(masks, tmp_path / "s.csv")
    check_submission(tmp_path / "s.csv", {name: mask.shape for name, mask in masks.items()})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1 1\n", r"lacks \['b'\] and add nothing"),
        ("a,1 1\nb,1 1\nc,1 1\n", r"lacks nothing and add \['c'\]"),
        ("b,1 1\na,1 1\n", "another order than that of the ids"),
        ("a,\nb,1 1\n", "the row of 'a' is empty"),
        ("a, \nb,1 1\n", "the row of 'a' is empty"),
        ("a,5 1 2 1\nb,1 1\n", "the row of 'a' is no mask: RLE pair 2"),
        ("a,1 3 2 2\nb,1 1\n", "the row of 'a' is no mask: RLE pair 2"),
        ("a,1 1\nb,6 2\n", "the row of 'b' is no mask: RLE pair 1.*ends past pixel 6"),
        ("a,1 1\nb,0 2\n", "the row of 'b' is no mask: RLE pair 1.*starts before pixel 1"),
        ("a,1 1\nb,1 0\n", "the row of 'b' is no mask: RLE pair 1.*has no pixel"),
        ("a,1 1\nb,nan\n", "the row of 'b' is no mask: RLE number 1 of 1 is 'nan'"),
    ],
)
def test_what_kaggle_would_refuse_is_refused(tmp_path, rows, message):
    (tmp_path / "s.csv").write_text(f"Id,Predicted\n{rows}")
    with pytest.raises(ValueError, match=message):
        check_submission(tmp_path / "s.csv", SHAPES)
