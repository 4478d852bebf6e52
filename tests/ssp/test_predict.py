"""Prediction with runs and official checkpoints, on the grid of any image."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from core.official import save_official_checkpoint
from core.samples import MemberConfig
from core.terminal import run as run_command
from core.unet3d import RepModeUNet
from ssp import ensemble, mapping
from ssp.cli import COMMANDS
from ssp.ensemble import Ensemble, load_ensemble
from ssp.model import load_model
from ssp.networks.registry import for_task
from ssp.predict import predict
from ssp.prepare import prepare
from ssp.readers import open_stack
from ssp.source import InputConfig
from ssp.train import train
from tests.ssp.cells import prepared, tiny_recipe

AS_IT_IS = InputConfig(factor=(1.0, 1.0, 1.0))


@pytest.fixture
def stack(tmp_path):
    """A small smooth stack that says its voxel size, 0.29 um."""
    return write_stack(tmp_path / "stack.tif", (6, 20, 24))


def write_stack(path, shape, size_um=0.29, seed=0):
    voxels = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    voxels = (1000 + 300 * voxels / voxels.std()).clip(0).astype(np.uint16)
    sizes = {} if size_um is None else {f"PhysicalSize{axis}": size_um for axis in "ZYX"}
    tifffile.imwrite(path, voxels, ome=True, metadata={"axes": "ZYX", **sizes})
    return path


def z_scored(path) -> np.ndarray:
    voxels = tifffile.imread(path).astype(np.float64)
    return (voxels - voxels.mean()) / voxels.std()


def written(out, task="dna"):
    return tifffile.imread(out / f"{task}.ome.tif")


@pytest.fixture
def identity(monkeypatch):
    """Let every network return what it is given."""
    monkeypatch.setattr(ensemble, "for_task", lambda model, task: nn.Identity())


def test_an_image_of_one_tile_is_predicted_as_by_the_network(run, tmp_path):
    path = write_stack(tmp_path / "stack.tif", (4, 16, 16))
    predict(run, path, out=tmp_path / "out", device="cpu")
    model = load_model(run)
    x = torch.from_numpy(z_scored(path)).float()[None, None]
    for index, task in enumerate(model.tasks):
        with torch.no_grad():
            expected = model.network(x, torch.tensor([index]))[0, 0]
        np.testing.assert_allclose(written(tmp_path / "out", task), expected, atol=1e-5)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "dna.ome.tif", "dna.png", "dna.provenance.json",
        "tom20.ome.tif", "tom20.png", "tom20.provenance.json",
    ]  # fmt: skip
    picture = cv2.imread(str(tmp_path / "out" / "dna.png"))
    assert picture.shape == (16, 16 + 8 + 16, 3)  # signal and prediction
    assert np.ptp(picture[:, :16]) > 200


def test_an_official_checkpoint_predicts_an_image_smaller_than_a_tile(tmp_path):
    torch.manual_seed(0)
    save_official_checkpoint(RepModeUNet(2, base_channels=1), ["dna", "zo1"], tmp_path / "rep.p")
    path = write_stack(tmp_path / "stack.tif", (5, 20, 24))
    predict(tmp_path / "rep.p", path, out=tmp_path / "out", task=("zo1",), device="cpu")
    assert written(tmp_path / "out", "zo1").shape == (5, 20, 24)
    with pytest.raises(ValueError, match=r"does not tell the intensities of dna, zo1"):
        predict(tmp_path / "rep.p", path, out=tmp_path / "2", original_scale=True, device="cpu")


def test_a_prediction_lies_on_the_voxels_of_the_image(run, tmp_path, identity):
    path = write_stack(tmp_path / "fine.tif", (12, 50, 60), size_um=0.145)
    predict(run, path, out=tmp_path / "out", task=("dna",), device="cpu")
    record = json.loads((tmp_path / "out" / "dna.provenance.json").read_text())
    assert record["predicted_shape"] == [6, 25, 30]
    found = written(tmp_path / "out")
    assert found.shape == (12, 50, 60)
    assert np.corrcoef(found.ravel(), z_scored(path).ravel())[0, 1] > 0.97
    assert np.abs(found - z_scored(path)).max() < 1.2


def test_the_chosen_channel_and_time_of_a_file_are_predicted(run, tmp_path, identity):
    voxels = np.random.default_rng(0).integers(0, 4000, (2, 6, 3, 16, 20), dtype=np.uint16)
    options = {"ome": True, "metadata": {"axes": "TZCYX", "Channel": {"Name": ["a", "b", "c"]}}}
    tifffile.imwrite(tmp_path / "many.tif", voxels, **options)
    tifffile.imwrite(tmp_path / "one.tif", voxels[1, :, 2])
    usual = {"task": ("dna",), "device": "cpu"}
    chosen = replace(AS_IT_IS, channel="c", time=1)
    predict(run, tmp_path / "many.tif", tmp_path / "1", image=chosen, **usual)
    predict(run, tmp_path / "one.tif", tmp_path / "2", image=AS_IT_IS, **usual)
    np.testing.assert_array_equal(written(tmp_path / "1"), written(tmp_path / "2"))


def test_nothing_is_resampled_at_the_voxel_size_of_training(run, stack, tmp_path, identity):
    predict(run, stack, out=tmp_path / "out", task=("dna",), device="cpu")
    np.testing.assert_allclose(written(tmp_path / "out"), z_scored(stack), atol=1e-5)


def test_the_voxel_size_may_be_given_or_resampling_left_out(run, tmp_path, identity):
    path = write_stack(tmp_path / "stack.tif", (6, 20, 24), size_um=None)
    with pytest.raises(ValueError, match=r"--source-voxel-size Z Y X, or --factor 1 1 1"):
        predict(run, path, out=tmp_path / "out", device="cpu")
    usual = {"task": ("dna",), "device": "cpu"}
    predict(run, path, out=tmp_path / "1", image=AS_IT_IS, **usual)
    given = InputConfig(source_voxel_size=(0.29, 0.29, 0.145))
    predict(run, path, out=tmp_path / "2", image=given, **usual)
    shapes = [
        json.loads((tmp_path / name / "dna.provenance.json").read_text())["predicted_shape"]
        for name in "12"
    ]
    assert shapes == [[6, 20, 24], [6, 20, 12]]


def test_the_original_scale_is_that_of_the_training_targets(run, stack, tmp_path):
    usual = {"task": ("dna",), "device": "cpu"}
    predict(run, stack, out=tmp_path / "scored", **usual)
    predict(run, stack, out=tmp_path / "original", original_scale=True, **usual)
    facts = load_model(run).facts["dna"]
    expected = written(tmp_path / "scored") * facts.std + facts.mean
    np.testing.assert_allclose(written(tmp_path / "original"), expected, rtol=1e-5)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_ome_zarr_is_predicted_as_the_same_tiff(zarr_format, run, stack, files, tmp_path):
    voxels = tifffile.imread(stack)
    path = tmp_path / "stack.ome.zarr"
    files.write_ome_zarr(path, voxels, "zyx", (0.29,) * 3, zarr_format=zarr_format)
    for image in (stack, path):
        predict(run, image, out=tmp_path / image.suffix, task=("dna",), device="cpu")
    np.testing.assert_array_equal(written(tmp_path / ".tif"), written(tmp_path / ".zarr"))


def test_ome_zarr_holds_what_ome_tiff_does(run, stack, tmp_path):
    usual = {"task": ("dna",), "device": "cpu"}
    predict(run, stack, out=tmp_path / "tiff", **usual)
    predict(run, stack, out=tmp_path / "zarr", format="ome-zarr", **usual)
    tiff = open_stack(tmp_path / "tiff" / "dna.ome.tif")
    zarr = open_stack(tmp_path / "zarr" / "dna.ome.zarr")
    np.testing.assert_array_equal(tiff.read(0), zarr.read(0))
    for image in (tiff, zarr):
        assert image.voxel_size_um == pytest.approx((0.29, 0.29, 0.29))
        assert image.shape == (1, 6, 20, 24)
    assert tiff.channel_names == ("dna",)


@pytest.fixture
def tiles(monkeypatch):
    """The number of tiles of each batch that is computed while a test runs."""
    numbers = []
    inner = mapping.OneChannel.forward

    def spy(self, tiles):
        numbers.append(len(tiles))
        return inner(self, tiles)

    monkeypatch.setattr(mapping.OneChannel, "forward", spy)
    return numbers


def test_the_same_command_again_predicts_only_what_is_missing(run, stack, tmp_path, tiles):
    out = tmp_path / "out"
    predict(run, stack, out=out, task=("dna", "dna"), device="cpu")
    of_one_task = len(tiles)
    predict(run, stack, out=out, device="cpu")
    assert len(tiles) == 2 * of_one_task
    predict(run, stack, out=out, device="cpu")
    assert len(tiles) == 2 * of_one_task


def test_a_folder_of_another_prediction_is_refused(run, stack, tmp_path, tiles):
    out = tmp_path / "out"
    predict(run, stack, out=out, task=("dna",), device="cpu")
    number = len(tiles)
    write_stack(stack, (6, 20, 24), seed=1)
    for task in ("dna", "tom20"):
        with pytest.raises(ValueError, match=r"dna\.ome\.tif was .* other input_sha256; .* --out"):
            predict(run, stack, out=out, task=(task,), device="cpu")
    (out / "dna.provenance.json").unlink()
    with pytest.raises(ValueError, match=r"dna\.ome\.tif is of unknown origin"):
        predict(run, stack, out=out, task=("dna",), device="cpu")
    assert len(tiles) == number


@pytest.mark.parametrize("stopped_at", [5, 9])
def test_a_killed_prediction_continues_to_the_same_bits(
    stopped_at, run, tmp_path, tiles, monkeypatch
):
    path = write_stack(tmp_path / "stack.tif", (9, 16, 20))
    options = {
        "task": ("dna",), "device": "cpu",
        "averaged": MemberConfig(mc_samples=6, mc_dropout=0.3, gate_noise=1.0),
    }  # fmt: skip
    predict(run, path, out=tmp_path / "whole", **options)
    num_calls, inner = len(tiles), mapping.OneChannel.forward

    def fail(self, tiles_NZYX):
        if len(tiles) - num_calls == stopped_at * 4:
            raise KeyboardInterrupt
        return inner(self, tiles_NZYX)

    with monkeypatch.context() as patch:
        patch.setattr(mapping.OneChannel, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            predict(run, path, out=tmp_path / "out", **options)
    predict(run, path, out=tmp_path / "out", **options)
    for name in ("dna", "dna-uncertainty"):
        np.testing.assert_array_equal(
            written(tmp_path / "out", name), written(tmp_path / "whole", name)
        )
    # 4 members in one pass and 2 in the next; at most a row of 2 tiles is repeated
    assert len(tiles) <= 2 * num_calls + 2 * 4
    assert not list((tmp_path / "out").glob(".*"))


def test_samples_give_the_mean_and_spread_of_what_each_would_give(run, stack, tmp_path):
    samples = MemberConfig(mc_samples=5, mc_dropout=0.3, gate_noise=1.0, seed=3)
    predict(run, stack, out=tmp_path / "out", task=("tom20",), device="cpu", averaged=samples)
    maps = []
    for number, member in enumerate(load_ensemble(run, samples).members("tom20", 0, 5)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ensemble, "members", lambda *_, one=member: [one])
            predict(run, stack, out=tmp_path / str(number), task=("tom20",), device="cpu")
        maps.append(written(tmp_path / str(number), "tom20"))
    np.testing.assert_allclose(written(tmp_path / "out", "tom20"), np.mean(maps, 0), atol=1e-6)
    spread = written(tmp_path / "out", "tom20-uncertainty")
    np.testing.assert_allclose(spread, np.std(maps, 0), atol=1e-6)
    assert spread.mean() > 1e-3


def test_one_map_is_predicted_of_a_stack(tmp_path):
    data = prepared(tmp_path / "maps", tasks=("dna",), is_map=True)
    recipe = tiny_recipe(epochs=1)
    backbone = replace(recipe.network.backbone, target="projection")
    network = replace(recipe.network, backbone=backbone)
    patches = replace(recipe.patches, size=(6, 16, 16), passes_per_epoch=1)
    train(data, tmp_path / "run", replace(recipe, network=network, patches=patches))
    path = write_stack(tmp_path / "stack.tif", (6, 30, 24))
    predict(tmp_path / "run", path, out=tmp_path / "out", device="cpu")
    assert written(tmp_path / "out").shape == (30, 24)
    whole = for_task(load_model(tmp_path / "run").network, 0)
    with torch.no_grad():
        x = torch.from_numpy(z_scored(path)).float()[None, None, :, :16, :16]
        corner = whole(x)[0, 0, :6, :6]
    np.testing.assert_allclose(written(tmp_path / "out")[:6, :6], corner, atol=0.05)
    other = write_stack(tmp_path / "other.tif", (5, 30, 24))
    with pytest.raises(ValueError, match="image has 5 planes; this network makes one map of 6"):
        predict(tmp_path / "run", other, out=tmp_path / "2", device="cpu")


def test_a_real_czi_is_prepared_trained_on_and_predicted_on_its_own_grid(sample_data, tmp_path):
    path = next((sample_data / "two_channel_czi").glob("*.czi"))
    lines = ["path_czi,channel_signal,channel_target,time,split"]
    lines += [f"{path},LED555,LED470,{t},{s}" for t, s in enumerate(("train", "val", "test"))]
    (tmp_path / "partner.csv").write_text("\n".join(lines))
    prepare((tmp_path / "partner.csv",), out=tmp_path / "data")
    train(tmp_path / "data", tmp_path / "run", tiny_recipe(epochs=1, seed=1))
    image = InputConfig(channel="LED555", time=2)
    predict(tmp_path / "run", path, out=tmp_path / "out", device="cpu", image=image)
    found, source = open_stack(tmp_path / "out" / "partner.ome.tif"), open_stack(path, time=2)
    assert found.shape[1:] == source.shape[1:] == (5, 170, 240)
    assert found.voxel_size_um == pytest.approx(source.voxel_size_um)
    assert np.isfinite(found.read(0)).all()
    assert found.read(0).std() > 0


def test_samples_of_a_network_without_mixtures_are_refused(data, stack, tmp_path):
    train(data, tmp_path / "run", tiny_recipe("multi-head-las", epochs=1))
    with pytest.raises(ValueError, match="mc_samples 3 would all be alike"):
        predict(tmp_path / "run", stack, out=tmp_path / "out", averaged=MemberConfig(mc_samples=3))
    predict(tmp_path / "run", stack, out=tmp_path / "out", device="cpu")
    assert written(tmp_path / "out", "tom20").shape == (6, 20, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "golgi"], "unknown task golgi"),
        (["--batch-size", "0"], "batch_size 0 is below 1"),
        (["--factor", "1", "0", "1"], "factor 1.0 0.0 1.0 must be above 0"),
        (["--factor", "1", "1", "1", "--source-voxel-size", "1", "1", "1"], "give one"),
        (["--channel", "3"], "there is no 3; give an index or name"),
        (["--mc-dropout", "0.5"], "mc_dropout means nothing for 1 sample"),
    ],
)
def test_bad_options_are_one_line(options, message, run, stack, tmp_path, capsys):
    arguments = ["predict", str(run), str(stack), "--out", str(tmp_path / "out"), *options]
    assert run_command("ssp", "", COMMANDS, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_image_without_contrast_is_refused(run, tmp_path):
    tifffile.imwrite(tmp_path / "flat.tif", np.ones((5, 20, 24), np.uint8))
    with pytest.raises(ValueError, match="cannot be z-scored"):
        predict(run, tmp_path / "flat.tif", out=tmp_path / "out", image=AS_IT_IS, device="cpu")


def test_what_is_no_run_is_named(stack, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        predict(tmp_path, stack, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no run or checkpoint at .*none\.p; give"):
        predict(tmp_path / "none.p", stack, out=tmp_path / "out")
