"""A fragment of another voxel size is shown to the model at its own, and mapped where it is."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from core.uncertainty import predictor
from vesuvius.ensemble import EnsembleConfig
from vesuvius.evaluate import evaluate
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import load_model
from vesuvius.predict import predict
from vesuvius.prepare import prepare
from vesuvius.submission import submit
from vesuvius.voxel_size import Resampling

OPTIONS = {"tile_size": 48, "stride": 32, "device": "cpu"}
FINER = Resampling(resample=True, input_voxel_size=2.5)  # the model's volumes are of 4 um
COARSER = Resampling(resample=True, input_voxel_size=6.0)


def prob_of(folder: Path) -> np.ndarray:
    return tifffile.imread(folder / "prob.tif")


def mean_of_layers(members, device):
    """Stand in for a network that has learned something."""
    return lambda batch, corners: batch.mean(axis=1, keepdims=True, dtype=np.float32) / 255


@pytest.fixture(scope="module")
def finer(run, fragments, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("resampled") / "a"
    predict(run, fragments["a"], out=out, sized=FINER, **OPTIONS)
    return out


def test_a_checkpoint_keeps_the_voxel_size_of_its_volumes(run):
    model = load_model(run)
    assert {tuple(seen["voxel_size_um"]) for seen in model.windows.values()} == {(4, 4, 4)}
    assert model.voxel_size_um == (4, 4, 4)
    del model.windows["1"]["voxel_size_um"]  # as in older checkpoints
    assert model.voxel_size_um == (4, 4, 4)
    del model.windows["2"]["voxel_size_um"]
    assert model.voxel_size_um is None


def test_the_map_has_the_pixels_of_the_fragment_and_tells_how_it_was_made(finer, fragments):
    mask, prob = open_fragment(fragments["a"]).papyrus_mask, prob_of(finer)
    assert prob.dtype == np.float32
    assert prob.shape == mask.shape
    assert (prob[mask] > 0).all()
    assert (prob <= 1).all()
    assert (prob[~mask] == 0).all()
    assert {path.name for path in finer.iterdir()} == {
        "prob.tif", "preview.png", "provenance.json",
    }  # fmt: skip
    provenance = json.loads((finer / "provenance.json").read_text())
    assert provenance["shape"] == [128, 144]
    assert provenance["predicted_shape"] == [80, 90]
    assert provenance["voxel_size_um"] == [4, 4, 4]
    assert provenance["resampled_from_um"] == [2.5, 2.5, 2.5]
    assert provenance["settings"]["resampled_to_um"] == [4, 4, 4]


@pytest.mark.parametrize("sized", [FINER, COARSER], ids=["finer", "coarser"])
def test_the_model_sees_what_prepare_makes_of_the_fragment(
    run, fragments, tmp_path, sized, monkeypatch
):
    monkeypatch.setattr("vesuvius.predict.predictor", mean_of_layers)
    size = sized.input_voxel_size
    prepare((fragments["a"],), out=tmp_path, voxel_size=4, input_voxel_size=size)
    predict(run, tmp_path / "a.vol", out=tmp_path / "stored", **OPTIONS)
    predict(run, fragments["a"], out=tmp_path / "streamed", sized=sized, **OPTIONS)
    stored, streamed = prob_of(tmp_path / "stored"), prob_of(tmp_path / "streamed")
    assert stored.shape == tuple(-(-n * int(2 * size) // 8) for n in (128, 144))
    way = cv2.INTER_LINEAR if size < 4 else cv2.INTER_AREA
    expected = cv2.resize(stored, (144, 128), interpolation=way)
    inner = slice(16, 120), slice(16, 136)  # away from the rim, which the stored mask cuts off
    np.testing.assert_allclose(streamed[inner], expected[inner], atol=1e-5)
    assert streamed[inner].std() > 0.01


def test_a_stopped_prediction_continues_to_the_same_bits(
    run, fragments, finer, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def interrupted(members, device):
        inner, batches = predictor(members, device), iter(range(3))

        def predict_batch(batch, corners):
            if next(batches) == 2:
                raise Killed
            return inner(batch, corners)

        return predict_batch

    def killed(*_):
        raise Killed

    out, options = tmp_path / "a", OPTIONS | {"batch_size": 2}
    predict(run, fragments["a"], out=tmp_path / "whole", sized=FINER, **options)
    for place, stop in (
        ("vesuvius.predict.predictor", interrupted),
        ("vesuvius.voxel_size.mix_plane", killed),
        ("vesuvius.prediction_folder.write_png", killed),
    ):
        with monkeypatch.context() as context:
            context.setattr(place, stop)
            with pytest.raises(Killed):
                predict(run, fragments["a"], out=out, sized=FINER, **options)
        assert not (out / "prob.tif").exists()
    predict(run, fragments["a"], out=out, sized=FINER, **options)
    assert (out / "prob.tif").read_bytes() == (tmp_path / "whole" / "prob.tif").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in finer.iterdir()}


def test_a_finished_prediction_is_recognised_and_others_are_refused(run, fragments, finer, capsys):
    predict(run, fragments["a"], out=finer, sized=FINER, **OPTIONS)
    assert "is already finished" in capsys.readouterr().err
    for sized in (Resampling(), COARSER):
        with pytest.raises(ValueError, match=r"holds a prediction with other .*input_fingerprint"):
            predict(run, fragments["a"], out=finer, sized=sized, **OPTIONS)
    with pytest.raises(ValueError, match=r"with other .*resampled_to_um"):
        predict(run, fragments["a"], out=finer, **OPTIONS)


def test_mean_and_spread_of_samples_come_back_too(run, fragments, tmp_path):
    out, mask = tmp_path / "a", open_fragment(fragments["a"]).papyrus_mask
    for samples in (2, 3):  # added to
        predict(
            run, fragments["a"], out=out, sized=FINER,
            averaged=EnsembleConfig(mc_samples=samples), **OPTIONS,
        )  # fmt: skip
    spread = tifffile.imread(out / "uncertainty.tif")
    assert spread.shape == (3, *mask.shape)
    assert (spread[:, ~mask] == 0).all()
    assert (spread[0, mask] > 0).mean() > 0.9
    assert (prob_of(out)[mask] > 0).all()


def test_another_voxel_size_is_pointed_out_unless_it_is_resampled(run, fragments, tmp_path, capsys):
    def said(number: int, **sized: object) -> str:
        out = tmp_path / str(number)
        predict(run, fragments["a"], out=out, sized=Resampling(**sized), **OPTIONS)
        return capsys.readouterr().err

    told = "a: voxels of 5 um, but the model was trained on 4 um; --resample shows it at that size"
    assert told in said(0, input_voxel_size=5.0)
    assert "voxels of" not in said(1, input_voxel_size=4.05)
    assert "voxels of" not in said(2)
    resampled = said(3, resample=True, input_voxel_size=5.0)
    assert "a: resampled from 5 um to 4 um, 18 x 160 x 180 (Z, Y, X)" in resampled
    assert "voxels of" not in resampled
    assert "a: has the model's voxel size of 4 um already" in said(2, resample=True)


def test_a_missing_voxel_size_is_refused_with_a_remedy(run, fragments, tmp_path, monkeypatch):
    layers = tmp_path / "a"
    layers.mkdir()
    for layer in (fragments["a"] / "surface_volume").iterdir():
        (layers / layer.name).symlink_to(layer)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="does not tell its voxel size"):
        predict(run, layers, out=out, sized=Resampling(resample=True), **OPTIONS)
    with pytest.raises(ValueError, match="voxel size 0 is no size"):
        predict(run, layers, out=out, sized=Resampling(input_voxel_size=0.0), **OPTIONS)
    with pytest.raises(ValueError, match=r"cannot be resampled to 4 um: 16 times"):
        predict(run, layers, out=out, sized=Resampling(True, 4000.0), **OPTIONS)
    monkeypatch.setattr("vesuvius.inkmap.InkModel.voxel_size_um", None)
    with pytest.raises(ValueError, match=r"told no voxel size, or several.*leave out --resample"):
        predict(run, layers, out=out, sized=FINER, **OPTIONS)
    assert not out.exists()


def test_submit_and_evaluate_take_the_map_as_any_other(finer, tmp_path):
    submit((finer,), out=tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_text().startswith("Id,Predicted\na,")
    evaluate((finer,), out=tmp_path / "scores")
    assert (tmp_path / "scores").is_dir()
