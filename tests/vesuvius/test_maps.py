"""Maps on disk: what is written band by band is what any TIFF reader reads."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tifffile

from core.inference import Journal
from vesuvius.maps import MapFile


@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (3, 7, 5), (4, 7, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bands_written_in_any_order_are_read_back(tmp_path, shape, dtype):
    maps = np.random.default_rng(0).random((int(np.prod(shape[:-2])), *shape[-2:])).astype(dtype)
    file = MapFile.create(tmp_path / "new" / "maps.tif", shape, dtype, num_members=3)
    for start, stop in ((4, 7), (0, 2), (2, 4)):
        file.write(start, stop, maps[:, start:stop])
    found = tifffile.imread(file.path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.reshape(maps.shape), maps)
    again = MapFile(file.path)
    assert again.metadata["num_members"] == 3
    np.testing.assert_array_equal(again.read(1, 6), maps[:, 1:6])


def test_rows_are_on_the_disk_when_writing_them_ends(tmp_path, monkeypatch):
    """Else a power cut could leave the journal ahead of the rows."""
    file = MapFile.create(tmp_path / "maps.tif", (2, 4, 5))
    synced, inner = [], os.fsync

    def fsync(descriptor):
        synced.append(file.path.read_bytes())
        inner(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    file.write(1, 2, np.ones((2, 1, 5)))
    assert synced == [file.path.read_bytes()]


def test_rows_not_yet_written_are_zero(tmp_path):
    file = MapFile.create(tmp_path / "maps.tif", (2, 4, 5))
    file.write(1, 2, np.ones((2, 1, 5)))
    assert file.read(0, 4).sum() == 10


def test_an_unfinished_map_is_found_again_and_missed_when_gone(tmp_path):
    journal = Journal(tmp_path / ".journal", "job")
    path = tmp_path / ".prob.partial.tif"
    MapFile.create_or_resume(path, journal, (4, 5)).write(0, 4, np.ones((1, 4, 5)))
    assert not MapFile.create_or_resume(path, journal, (4, 5)).read(0, 4).any()
    MapFile.create_or_resume(path, journal, (4, 5)).write(0, 4, np.ones((1, 4, 5)))
    journal.commit(1, np.zeros((1, 0, 5), np.float32))
    assert MapFile.create_or_resume(path, journal, (4, 5)).read(0, 4).all()
    path.unlink()
    with pytest.raises(ValueError, match=r"\.prob\.partial\.tif is gone but .* delete that folder"):
        MapFile.create_or_resume(path, journal, (4, 5))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "moments.tif"
    no_pages, empty_page = b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0" + bytes(6)
    for content in (b"no TIFF at all", no_pages, empty_page):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"moments\.tif is damaged \(.*\); delete its folder"):
            MapFile(path)
    file = MapFile.create(path, (3, 40, 50), np.float64)
    path.write_bytes(path.read_bytes()[:20000])  # of 48000
    with pytest.raises(ValueError, match=r"moments\.tif is damaged \(cut off\)"):
        file.read(0, 40)
