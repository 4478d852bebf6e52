"""Prediction: the same map from every layout, whole or stopped and continued."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile
import torch
import zarr

from core.checkpoint import TRAINING_STATE, WEIGHTS, load, save
from core.uncertainty import predictor
from vesuvius.fragment import open_fragment
from vesuvius.inkmap import load_model
from vesuvius.predict import choose_window, predict
from vesuvius.prepare import prepare

OPTIONS = {"tile_size": 48, "stride": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def prediction(run, fragments, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions") / "a"
    predict(run, fragments["a"], out=out, **OPTIONS)
    return out


def test_prediction_folder_is_complete(prediction, fragments):
    assert {path.name for path in prediction.iterdir()} == {
        "prob.tif", "preview.png", "provenance.json",
    }  # fmt: skip
    fragment = open_fragment(fragments["a"])
    prob = tifffile.imread(prediction / "prob.tif")
    assert prob.dtype == np.float32
    assert prob.shape == fragment.papyrus_mask.shape
    assert (prob[fragment.papyrus_mask] > 0).all()
    assert (prob[fragment.papyrus_mask] < 1).all()
    assert (prob[~fragment.papyrus_mask] == 0).all()
    provenance = json.loads((prediction / "provenance.json").read_text())
    assert provenance["name"] == "a"
    assert provenance["window"]["z_stop"] - provenance["window"]["z_start"] == 8
    assert provenance["settings"]["stride"] == 32


def test_one_tile_equals_the_gated_network_on_the_whole_fragment(run, fragments, tmp_path):
    predict(run, fragments["a"], out=tmp_path / "whole", tile_size=144, stride=144, device="cpu")
    prob = tifffile.imread(tmp_path / "whole" / "prob.tif")
    model, fragment = load_model(run), open_fragment(fragments["a"])
    window = choose_window(fragment, model, None)
    voxels = fragment.volume.read(window.z_start, window.z_stop, 0, prob.shape[0])
    x = (torch.from_numpy(voxels).float() - window.offset) * window.scale
    with torch.no_grad():
        x = torch.nn.functional.pad(x[None, None], (0, 0, 0, 16, 0, 0), mode="replicate")
        expected = torch.sigmoid(model.network.eval()(x, torch.tensor([0])))[0, 0, :128]
    mask = fragment.papyrus_mask
    np.testing.assert_allclose(prob[mask], expected.numpy()[mask], atol=1e-5)


def test_layers_stored_the_other_way_round_are_read_in_reverse(
    run, fragments, prediction, tmp_path, capsys
):
    flipped = tmp_path / "a"
    shutil.copytree(fragments["a"], flipped)
    layers = sorted((flipped / "surface_volume").iterdir())
    voxels = [tifffile.imread(layer) for layer in layers]
    for layer, values in zip(layers, reversed(voxels), strict=True):
        tifffile.imwrite(layer, values)
    predict(run, flipped, out=tmp_path / "reversed", reverse_layers=True, **OPTIONS)
    assert re.search(r"a: layers \d+\.\.\d+ of 14, reversed, on cpu", capsys.readouterr().err)
    found = (tmp_path / "reversed" / "prob.tif").read_bytes()
    assert found == (prediction / "prob.tif").read_bytes()
    provenance = json.loads((tmp_path / "reversed" / "provenance.json").read_text())
    assert provenance["layer_order"] == "reversed"
    assert provenance["window"]["is_reversed"]
    with pytest.raises(ValueError, match="reverse_layers"):
        predict(run, flipped, out=tmp_path / "reversed", **OPTIONS)


def test_prepared_volume_and_zarr_give_the_same_bits(run, fragments, prediction, tmp_path):
    prepare((fragments["a"],), out=tmp_path)
    predict(run, tmp_path / "a.vol", out=tmp_path / "from_vol", **OPTIONS)
    expected = (prediction / "prob.tif").read_bytes()
    assert (tmp_path / "from_vol" / "prob.tif").read_bytes() == expected
    layers = sorted((fragments["a"] / "surface_volume").iterdir())
    voxels = np.stack([tifffile.imread(layer) for layer in layers])
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="w", zarr_format=2)
    group.create_array("0", data=voxels)
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    predict(
        run, tmp_path / "a.ome.zarr", out=tmp_path / "from_zarr",
        mask=fragments["a"] / "mask.png", **OPTIONS,
    )  # fmt: skip
    assert (tmp_path / "from_zarr" / "prob.tif").read_bytes() == expected


def test_stopped_prediction_continues_to_the_same_bits(
    run, fragments, prediction, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    predicted = []

    def interrupted(members, device):
        inner = predictor(members, device)

        def predict_batch(batch, corners):
            predicted.append(len(batch))
            if len(predicted) == 3:
                raise Killed
            return inner(batch, corners)

        return predict_batch

    monkeypatch.setattr("vesuvius.predict.predictor", interrupted)
    out = tmp_path / "a"
    with pytest.raises(Killed):
        predict(run, fragments["a"], out=out, **OPTIONS)
    assert not (out / "prob.tif").exists()
    predict(run, fragments["a"], out=out, **OPTIONS)
    assert (out / "prob.tif").read_bytes() == (prediction / "prob.tif").read_bytes()
    assert {path.name for path in out.iterdir()} == {
        "prob.tif", "preview.png", "provenance.json",
    }  # fmt: skip


def test_finished_prediction_is_not_repeated_and_another_is_refused(
    run, fragments, prediction, monkeypatch, capsys
):
    monkeypatch.setattr("vesuvius.predict._Job.map_one", lambda *_: pytest.fail("repeated"))
    predict(run, fragments["a"], out=prediction, **OPTIONS)
    said = capsys.readouterr().err
    assert "already finished" in said
    assert f"map in {prediction / 'prob.tif'}, picture in {prediction / 'preview.png'}\n" in said
    with pytest.raises(ValueError, match="holds a prediction with other stride"):
        predict(run, fragments["a"], out=prediction, **OPTIONS | {"stride": 16})


def test_ink_label_is_neither_needed_nor_part_of_the_input(run, fragments, prediction, tmp_path):
    fragment = shutil.copytree(fragments["a"], tmp_path / "a")
    predict(run, fragment, out=tmp_path / "out", **OPTIONS)
    (fragment / "inklabels.png").write_text("being edited")
    finished = (tmp_path / "out" / "prob.tif").stat().st_mtime_ns
    predict(run, fragment, out=tmp_path / "out", **OPTIONS)
    assert (tmp_path / "out" / "prob.tif").stat().st_mtime_ns == finished
    assert (tmp_path / "out" / "prob.tif").read_bytes() == (prediction / "prob.tif").read_bytes()


def test_layer_missing_from_a_prepared_volume_is_noticed_too(run, fragments, tmp_path):
    fragment = shutil.copytree(fragments["a"], tmp_path / "a")
    (fragment / "surface_volume" / "13.tif").unlink()
    prepare((fragment,), out=tmp_path)
    with pytest.raises(ValueError, match="has 13 layers but the model was trained on 14"):
        predict(run, tmp_path / "a.vol", out=tmp_path / "out", **OPTIONS)


def test_half_done_prediction_of_another_model_is_noticed(run, fragments, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr("vesuvius.prediction_folder.write_png", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        predict(run, fragments["a"], out=tmp_path / "a", **OPTIONS)
    with pytest.raises(ValueError, match=r"belongs to a prediction with another model"):
        predict(run, fragments["2"], out=tmp_path / "a", **OPTIONS)


def test_window_follows_the_sheet_or_the_user(run, fragments):
    model, fragment = load_model(run), open_fragment(fragments["a"])
    assert choose_window(fragment, model, None).z_start == 3
    assert choose_window(fragment, model, 5).z_start == 5
    with pytest.raises(ValueError, match="z_start 9 with 8 layers leaves the volume of 14"):
        choose_window(fragment, model, 9)


def test_fragment_with_a_layer_less_is_refused_unless_told_where(run, fragments, tmp_path):
    shutil.copytree(fragments["a"], tmp_path / "a")
    (tmp_path / "a" / "surface_volume" / "13.tif").unlink()
    with pytest.raises(ValueError, match="has 13 layers but the model was trained on 14"):
        predict(run, tmp_path / "a", out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
    predict(run, tmp_path / "a", out=tmp_path / "out", z_start=3, **OPTIONS)
    assert (tmp_path / "out" / "prob.tif").exists()


def test_unknown_task_and_other_checkpoints_are_refused(run, fragments, tmp_path):
    def refuse(source, match):
        with pytest.raises(ValueError, match=match):
            predict(source, fragments["a"], out=tmp_path / "out", **OPTIONS)
        assert not (tmp_path / "out" / "prob.tif").exists()

    with pytest.raises(ValueError, match="no task 'dark'; it has ink, and unknown for"):
        predict(run, fragments["a"], out=tmp_path / "out", task="dark", **OPTIONS)
    refuse(run / "checkpoints" / "last.safetensors", TRAINING_STATE)
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    other = tmp_path / "other.safetensors"
    save(other, WEIGHTS, tensors, meta | {"description": {"model": "ssp.networks.repmode"}})
    refuse(other, "holds a model of 'ssp.networks.repmode'")
    recipe = json.loads(json.dumps(meta["description"]))
    recipe["recipe"]["network"]["base_channels"] = 3
    save(other, WEIGHTS, tensors, meta | {"description": recipe})
    refuse(other, "does not fit the model")
    other.write_bytes(other.read_bytes()[:1000])
    refuse(other, "damaged or no checkpoint")


def test_network_that_gives_nan_is_stopped(run, fragments, tmp_path):
    tensors, meta = load(run / "checkpoints" / "best.safetensors", WEIGHTS)
    broken = {name: tensor * float("nan") if tensor.is_floating_point() else tensor
              for name, tensor in tensors.items()}  # fmt: skip
    save(tmp_path / "nan.safetensors", WEIGHTS, broken, meta)
    with pytest.raises(RuntimeError, match="NaN or infinity in the tile"):
        predict(tmp_path / "nan.safetensors", fragments["a"], out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "prob.tif").exists()


def test_preview_shows_the_map(prediction):
    preview = cv2.imread(str(prediction / "preview.png"), cv2.IMREAD_UNCHANGED)
    prob = tifffile.imread(prediction / "prob.tif")
    np.testing.assert_allclose(preview, prob * 255, atol=1)


def test_real_scroll_gives_the_same_bits_from_layers_and_zarr(run, sample_data, tmp_path):
    crop = sample_data / "scroll1_crop"
    predict(run, crop, out=tmp_path / "layers", **OPTIONS)
    predict(
        run,
        crop / "segment.ome.zarr",
        out=tmp_path / "zarr",
        mask=crop / "mask.png",
        **OPTIONS,
    )
    prob = (tmp_path / "layers" / "prob.tif").read_bytes()
    assert prob == (tmp_path / "zarr" / "prob.tif").read_bytes()
    provenance = json.loads((tmp_path / "layers" / "provenance.json").read_text())
    assert provenance["shape"] == [156, 156]


def test_real_16_bit_slices_are_predicted(run, sample_data, tmp_path):
    predict(run, sample_data / "uint16_layers", out=tmp_path / "out", z_start=8, **OPTIONS)
    prob = tifffile.imread(tmp_path / "out" / "prob.tif")
    assert prob.shape == (384, 384)
    assert (prob > 0).all()
