"""Shards: a prediction by several jobs has the bits of a single one, whatever happens to them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inference import Journal
from core.tiling import TilePlan
from core.uncertainty import Member
from tests.processes import REPOSITORY
from vesuvius.ensemble import EnsembleConfig
from vesuvius.maps import ZarrMaps
from vesuvius.predict import predict
from vesuvius.shards import Shard

OPTIONS = {"tile_size": 32, "stride": 16, "batch_size": 4, "device": "cpu"}
MANY = EnsembleConfig(tta_z_shift=2)  # five predictions in three passes
MAPS = {EnsembleConfig(): ("prob.tif",), MANY: ("prob.tif", "uncertainty.tif", "moments.tif")}
WAYS = pytest.mark.parametrize("config", list(MAPS), ids=["one", "many"])


@pytest.fixture(autouse=True)
def _short_passes(monkeypatch):
    monkeypatch.setattr("vesuvius.ensemble.MEMBERS_PER_PASS", 2)


@pytest.fixture(scope="module")
def fragment(fragments, tmp_path_factory):
    """A piece of fragment "a" of 7 tile rows, the last of which is shifted back by 7 rows."""
    path = tmp_path_factory.mktemp("piece") / "a"
    (path / "surface_volume").mkdir(parents=True)
    for layer in (fragments["a"] / "surface_volume").iterdir():
        tifffile.imwrite(path / "surface_volume" / layer.name, tifffile.imread(layer)[:121, :40])
    mask = np.full((121, 40), 255, np.uint8)
    mask[:9, :20] = mask[50:60] = mask[:40, 30:] = 0
    cv2.imwrite(str(path / "mask.png"), mask)
    return path


@pytest.fixture(scope="module")
def single(run, fragment, tmp_path_factory):
    """Finished predictions without shards."""
    return predicted(run, fragment, tmp_path_factory.mktemp("single"), [None])


@pytest.fixture(scope="module")
def two_shards(run, fragment, tmp_path_factory):
    """Predictions of two shards, both done, not yet put together."""
    return predicted(run, fragment, tmp_path_factory.mktemp("two"), ["1/2", "2/2"])


def predicted(run, fragment, root, shards):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vesuvius.ensemble.MEMBERS_PER_PASS", 2)
        for number, config in enumerate(MAPS):
            for shard in shards:
                out = root / str(number)
                predict(run, fragment, out=out, averaged=config, shard=shard, **OPTIONS)
    return {config: root / str(number) for number, config in enumerate(MAPS)}


def same_bits(out: Path, expected: Path, config: EnsembleConfig) -> None:
    for name in MAPS[config]:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, np.ndarray, int]:
    tile = draw(st.integers(1, 9))
    plan = TilePlan((draw(st.integers(1, 60)), 6), (tile, 3), (draw(st.integers(1, tile)), 2))
    seed = draw(st.integers(0, 2**32 - 1))
    wanted = np.random.default_rng(seed).random(plan.grid) < draw(st.floats(0, 1))
    return plan, wanted, draw(st.integers(1, 9))


@given(plans())
def test_shards_share_all_tile_rows_and_no_chunk(drawn):
    plan, wanted, count = drawn
    shards = Shard(1, count).all()
    rows = [shard.tile_rows(plan, wanted) for shard in shards]
    assert [row for some in rows for row in some] == list(range(plan.grid[0]))
    chunks = [
        {y // plan.stride[0] for row in some for y in range(*plan.finished(row))} for some in rows
    ]
    assert sum(map(len, chunks)) == len(set().union(*chunks))


@settings(max_examples=30)
@given(plans())
def test_shards_have_about_as_many_tiles_each(drawn):
    plan, wanted, count = drawn
    shards = Shard(1, count).all()
    rows = [shard.tile_rows(plan, wanted) for shard in shards]
    tiles = [int(wanted[some.start : some.stop].sum()) for some in rows]
    # a tile row is not divided, and the last two may have to stay together
    assert max(tiles) <= wanted.sum() / count + 2 * plan.grid[1]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_text_that_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match=r"shard '.*' is none; give 1/8 to 8/8 for eight jobs"):
        Shard.parse(text)


@WAYS
@pytest.mark.parametrize("count", [1, 3, 9])
def test_shards_done_in_any_order_give_the_bits_of_a_single_run(
    run, fragment, single, tmp_path, config, count, capsys
):
    out, options = tmp_path / "out", OPTIONS | {"averaged": config}
    for index in np.random.default_rng(0).permutation(count) + 1:
        assert not (out / "prob.tif").exists()
        predict(run, fragment, out=out, shard=f"{index}/{count}", **options)
    assert f"shard {index}/{count} of {out} is done, as all are" in capsys.readouterr().err
    predict(run, fragment, out=out, **options)
    same_bits(out, single[config], config)
    record, expected = (
        json.loads((path / "provenance.json").read_text()) for path in (out, single[config])
    )
    assert record["settings"] == expected["settings"]
    assert record["computed"] == expected["computed"]
    assert record["num_shards"] == count
    predict(run, fragment, out=out, shard=f"1/{count}", **options)
    assert "already finished" in capsys.readouterr().err


class Killed(Exception):
    """Stands for whatever ends a job."""


@pytest.mark.parametrize(
    ("config", "place", "count", "again"),
    [
        (EnsembleConfig(), "commit", 1, 8), (EnsembleConfig(), "write", 1, 6),
        (EnsembleConfig(), "write", 2, 4), (MANY, "commit", 3, 32), (MANY, "write", 3, 28),
        (MANY, "commit", 9, 8), (MANY, "write", 9, 2),
    ],
)  # fmt: skip
def test_a_killed_shard_continues_to_the_same_bits(
    run, fragment, single, two_shards, tmp_path, monkeypatch, config, place, count, again
):
    """The second shard predicts 4 rows of 2 tiles and writes 3 of them, in each pass."""
    out, options = shutil.copytree(two_shards[config], tmp_path / "out"), OPTIONS
    for journal in (out / ".shards").glob("2-of-2.*"):
        journal.unlink()
    owner = {"write": ZarrMaps, "commit": Journal}[place]
    inner, calls = getattr(owner, place), []

    def dying(self, *arguments):
        calls.append(arguments)
        if len(calls) != count:
            return inner(self, *arguments)
        if place == "write":  # torn
            start, _, values = arguments
            inner(self, start, start + 1, values[:, :1] + 1)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, dying)
        with pytest.raises(Killed):
            predict(run, fragment, out=out, shard="2/2", averaged=config, **options)
    with pytest.raises(ValueError, match=r"out lacks shard 2/2; run it with --shard, or delete"):
        predict(run, fragment, out=out, averaged=config, **options)
    tiles = []
    with monkeypatch.context() as patch:
        inner_forward = Member.forward
        patch.setattr(
            Member, "forward", lambda *a: tiles.append(len(a[1])) or inner_forward(*a)
        )  # fmt: skip
        predict(run, fragment, out=out, shard="2/2", averaged=config, **options)
        assert sum(tiles) == again
        tiles.clear()
        predict(run, fragment, out=out, shard="2/2", averaged=config, **options)
        predict(run, fragment, out=out, averaged=config, **options)
        assert not tiles
    same_bits(out, single[config], config)


@pytest.mark.parametrize("count", range(1, 7))
def test_a_killed_merge_is_repeated(
    run, fragment, single, two_shards, tmp_path, monkeypatch, count
):
    out = shutil.copytree(two_shards[MANY], tmp_path / "out")
    inner, calls = Path.replace, []

    def dying(self, target):
        calls.append(target)
        if len(calls) == count:
            raise Killed
        return inner(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            predict(run, fragment, out=out, averaged=MANY, **OPTIONS)
    predict(run, fragment, out=out, averaged=MANY, **OPTIONS)
    same_bits(out, single[MANY], MANY)


def test_shards_add_samples_to_a_finished_prediction(run, fragment, tmp_path):
    two, three = (EnsembleConfig(mc_samples=n, gate_noise=2.0) for n in (2, 3))
    out, once = tmp_path / "out", tmp_path / "once"
    predict(run, fragment, out=once, averaged=three, **OPTIONS)
    predict(run, fragment, out=out, averaged=two, **OPTIONS)
    for shard in ("1/2", "2/2", None):
        predict(run, fragment, out=out, shard=shard, averaged=three, **OPTIONS)
    same_bits(out, once, MANY)


def test_shards_of_another_prediction_are_refused(run, fragment, tmp_path):
    out = tmp_path / "out"
    predict(run, fragment, out=out, shard="1/2", **OPTIONS)

    def refuse(match, shard="2/2", **options):
        with pytest.raises(ValueError, match=match):
            predict(run, fragment, out=out, shard=shard, **OPTIONS | options)

    other = r"\.shards holds shards of a prediction with other {}; repeat that prediction's, or"
    refuse(other.format("num_shards"), shard="2/3")
    refuse(other.format("tile_size"), tile_size=48)
    refuse(other.format("batch_size"), batch_size=2)
    refuse(other.format("tta_views, num_members"), averaged=EnsembleConfig(tta=True))
    refuse(other.format("stride"), shard=None, stride=32)


def test_a_prediction_half_done_without_shards_is_not_mixed_with_shards(
    run, fragment, tmp_path, monkeypatch
):
    def fail(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("vesuvius.prediction_folder.write_png", fail)
        with pytest.raises(Killed):
            predict(run, fragment, out=tmp_path / "out", **OPTIONS)
    with pytest.raises(ValueError, match=r"half-done prediction without shards; finish it witho"):
        predict(run, fragment, out=tmp_path / "out", shard="1/2", **OPTIONS)


def test_whoever_is_second_takes_the_store_of_the_first(run, fragment, tmp_path, monkeypatch):
    """Both find no store, both make one."""
    out, seen = tmp_path / "out", []
    inner = Path.rename

    def slow(self, target):
        if not seen:
            seen.append(target)
            predict(run, fragment, out=out, shard="1/2", **OPTIONS)
        return inner(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    predict(run, fragment, out=out, shard="2/2", **OPTIONS)
    predict(run, fragment, out=out, **OPTIONS)
    assert (out / "prob.tif").exists()


def test_two_processes_at_once_then_the_same_command_without_shard(run, fragment, single, tmp_path):
    command = [
        sys.executable, "-m", "vesuvius", "predict", run, fragment, "--out", tmp_path / "out",
        "--tile-size", "32", "--stride", "16", "--batch-size", "4", "--device", "cpu",
    ]  # fmt: skip
    jobs = [
        subprocess.Popen([*command, "--shard", f"{index}/2"], cwd=REPOSITORY) for index in (1, 2)
    ]
    assert [job.wait(timeout=600) for job in jobs] == [0, 0]
    assert not (tmp_path / "out" / "prob.tif").exists()
    predict(run, fragment, out=tmp_path / "out", **OPTIONS)
    same_bits(tmp_path / "out", single[EnsembleConfig()], EnsembleConfig())


def test_a_process_of_a_launcher_is_a_shard_with_a_gpu_of_its_own(monkeypatch, capsys):
    taken = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Shard.of_process() is None
    assert not capsys.readouterr().err
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert Shard.of_process() == Shard(4, 4)
    assert "RANK 3 of WORLD_SIZE 4: this is shard 4/4" in capsys.readouterr().err
    assert taken == [1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Shard.of_process() is None
    assert taken == [1]
