"""What prediction reads of a fragment: each layer byte about once, and only where papyrus is."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile

from vesuvius.ensemble import EnsembleConfig
from vesuvius.layers import TiffLayer, open_layers
from vesuvius.orientation import estimate_layer_order
from vesuvius.predict import predict
from vesuvius.statistics import layer_histograms

HEIGHT, WIDTH, NUM_LAYERS = 640, 32, 14
OPTIONS = {"tile_size": 32, "stride": 16, "batch_size": 8, "device": "cpu"}
PAPYRUS = slice(100, 140)  # tiles of 32 every 16 that touch it begin at 80, 96, 112 and 128


@pytest.fixture(scope="module", params=[None, "zlib"], ids=["plain", "compressed"])
def fragment(request, tmp_path_factory):
    """A tall fragment."""
    path = tmp_path_factory.mktemp("tall") / "a"
    (path / "surface_volume").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for z in range(NUM_LAYERS):
        layer = (rng.normal(60 + 60 * (5 <= z < 10), 8, (HEIGHT, WIDTH)) * 256).astype(np.uint16)
        where = path / "surface_volume" / f"{z:02}.tif"
        tifffile.imwrite(where, layer, compression=request.param, rowsperstrip=8)
    cv2.imwrite(str(path / "mask.png"), np.full((HEIGHT, WIDTH), 255, np.uint8))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[PAPYRUS] = 255
    cv2.imwrite(str(path.parent / "few.png"), mask)
    return path


def rows_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[tuple[str, int]]]:
    """Count which rows of which layer are read, for the statistics and for the network."""
    reads: dict[str, Counter[tuple[str, int]]] = {"statistics": Counter(), "network": Counter()}
    purpose = ["network"]
    inner = TiffLayer.read

    def read(self, y_start, y_stop):
        reads[purpose[-1]].update((self.path.name, y) for y in range(y_start, y_stop))
        return inner(self, y_start, y_stop)

    def counted(function):
        def call(*arguments):
            purpose.append("statistics")
            try:
                return function(*arguments)
            finally:
                purpose.pop()

        return call

    monkeypatch.setattr(TiffLayer, "read", read)
    for function in (layer_histograms, estimate_layer_order):
        monkeypatch.setattr(f"vesuvius.predict.{function.__name__}", counted(function))
    return reads


@pytest.mark.parametrize("shard", [None, "2/2"])
@pytest.mark.parametrize(
    ("config", "reach"),
    [(EnsembleConfig(), 0), (EnsembleConfig(tta_reversed=True, tta_z_shift=1), 1)],
    ids=["one", "6 views"],
)
def test_each_row_of_the_window_is_read_once_however_many_predictions_there_are(
    run, fragment, tmp_path, monkeypatch, config, reach, shard
):
    few = fragment.parent / "few.png"
    reads = rows_read(monkeypatch)
    predict(run, fragment, out=tmp_path / "out", mask=few, averaged=config, shard=shard, **OPTIONS)
    layers = [f"{z:02}.tif" for z in range(3 - reach, 11 + reach)]
    # the second of two shards completes the tile rows of 112 and 128 and needs that of 96 too
    rows = range(96 if shard else 80, 160)
    assert reads["network"] == Counter({(name, y): 1 for name in layers for y in rows})
    statistics = Counter(name for name, _ in reads["statistics"].elements())
    assert len(statistics) == NUM_LAYERS
    assert max(statistics.values()) <= 2 * (PAPYRUS.stop - PAPYRUS.start)


def test_statistics_read_at_most_512_rows_of_a_layer(run, fragment, tmp_path, monkeypatch):
    reads = rows_read(monkeypatch)
    predict(run, fragment, out=tmp_path / "out", **OPTIONS | {"stride": 32})
    statistics = Counter(name for name, _ in reads["statistics"].elements())
    assert len(statistics) == NUM_LAYERS
    assert max(statistics.values()) <= 512
    assert set(reads["network"].values()) == {1}


def test_a_band_of_compressed_layers_takes_the_memory_of_the_band(tmp_path):
    for z in range(3):
        layer = np.random.default_rng(z).integers(0, 2**16, (4000, 500), np.uint16)
        tifffile.imwrite(tmp_path / f"{z}.tif", layer, compression="zlib", rowsperstrip=8)
    volume, peaks = open_layers(tmp_path), []
    for num_rows in (16, 16, 4000):  # at first modules are imported
        tracemalloc.start()
        volume.read(0, 3, 1000, 1000 + min(num_rows, 3000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[2] / 10
