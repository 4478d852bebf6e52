"""Lists and folders of images."""

from __future__ import annotations

import pytest

from ssp.lists import Row, Source, read_lists


@pytest.fixture
def folder(tmp_path):
    """A folder with empty files that rows may name."""
    for name in ("a.tif", "b.tif", "c.czi", "d.czi"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, *lines, name="list.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_a_list_names_files_channels_and_task(folder):
    path = write(
        folder,
        "path_signal,path_target,channel_signal,channel_target,task,split,time,time_target",
        "a.tif,b.tif,0,DNA,dna,test,2,3",
        "c.czi,c.czi,3.0,,tom20,,1,",
    )
    signal, target = Source(folder / "a.tif", time=2), Source(folder / "b.tif", time=3)
    both = Source(folder / "c.czi", time=1)
    assert read_lists([path]) == [
        Row("dna", signal, 0, target, "DNA", "test"),
        Row("tom20", both, 3, both, None),
    ]


def test_the_official_form_has_one_list_for_each_task(folder):
    lines = ["path_czi,channel_signal,channel_target,colony_position", "sets/x.czi,6,5,r"]
    (folder / "sets").mkdir()
    (folder / "sets" / "x.czi").touch()
    (folder / "lists").mkdir()
    paths = [write(folder / "lists", *lines, name=f"{task}.csv") for task in ("dna", "tom20")]
    rows = read_lists(paths, root=folder)
    source = Source(folder / "sets" / "x.czi")
    assert rows == [Row(task, source, 6, source, 5) for task in ("dna", "tom20")]
    assert [row.task for row in read_lists(paths[:1], task="other", root=folder)] == ["other"]


def test_a_folder_pairs_signals_and_targets_of_one_name(tmp_path):
    for task, name in (("dna", "1"), ("dna", "2"), ("tom20", "1")):
        for kind, suffix in (("signal", ".czi"), ("target", ".ome.tif")):
            (tmp_path / task / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / task / kind / f"{name}{suffix}").touch()
    rows = read_lists([tmp_path])
    assert [(row.task, row.signal.path.name, row.target.path.name) for row in rows] == [
        ("dna", "1.czi", "1.ome.tif"),
        ("dna", "2.czi", "2.ome.tif"),
        ("tom20", "1.czi", "1.ome.tif"),
    ]
    (tmp_path / "dna" / "signal" / "3.tif").touch()
    (tmp_path / "tom20" / "target" / "4.tif").touch()
    with pytest.raises(ValueError, match=r"2 images of .* lack .*: .*3\.tif, .*4\.tif; every"):
        read_lists([tmp_path])


def test_all_missing_files_are_named_at_once(folder):
    path = write(
        folder,
        "path_signal,path_target,task",
        "a.tif,gone1.tif,dna",
        "gone2.tif,b.tif,dna",
        "gone2.tif,b.tif,tom20",
    )
    with pytest.raises(
        FileNotFoundError, match=r"2 of 4 images are missing: .*gone1\.tif, .*gone2\.tif; check"
    ):
        read_lists([path])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,task", "a.tif,dna"], "has columns path, task; expected path_signal, path_target"),
        (["path_signal,path_target,task"], "holds no image"),
        ([""], "has columns none; expected"),
        (["path_signal,path_target,task", "a.tif,,dna"], r"list\.csv line 2 has no path_target"),
        (["path_czi,task,time", "c.czi,dna,x"], "line 2 has time 'x'; expected a number from 0"),
        (["path_czi,task,split", "c.czi,dna,testing"], "has split 'testing'; expected train, val"),
        (["path_czi,task", "c.czi,a/b"], "has task 'a/b'; use letters"),
        (["path_czi,task", "c.czi,dna", "c.czi,dna"], "is listed twice for dna; remove one"),
    ],
)
def test_a_malformed_list_is_one_line_with_a_remedy(folder, lines, said):
    with pytest.raises(ValueError, match=said):
        read_lists([write(folder, *lines)])


def test_what_is_no_list_is_refused(folder):
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"binary\.csv is no CSV list"):
        read_lists([folder / "binary.csv"])
    with pytest.raises(FileNotFoundError, match=r"no list or folder at .*gone\.csv"):
        read_lists([folder / "gone.csv"])
    with pytest.raises(ValueError, match=r"holds neither list\.csv nor TASK/signal/NAME"):
        read_lists([folder])
    with pytest.raises(ValueError, match="no list given"):
        read_lists([])
