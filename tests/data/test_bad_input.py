"""What users give by mistake or by right: names, links, folders, lists. Each has a clear answer."""

import os

import pytest
from made_videos import MadeVideo

from vimpac_ext.build import BuildError, build
from vimpac_ext.data import UCF101, PathLabelList, VideoFolder, open_record
from vimpac_ext.data.annotations import missing_videos
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.data.video_check import check_videos
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return MadeVideo("clip.mp4", times=range(10)).write(tmp_path_factory.mktemp("videos"))


def copies(video, folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(video.read_bytes())


def test_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(BuildError, match=r"'UFC101'.*UCF101"):
        build(DATASETS, {"NAME": "UFC101", "root": str(tmp_path)}, "TRAIN.DATASET")


def test_wrong_folder(video, tmp_path):
    """One level too high, too deep, a file, and a folder that is not there."""
    copies(video, tmp_path / "ucf", "UCF-101/YoYo/a.avi", "ucfTrainTestlist/readme.txt")
    for root in (tmp_path, tmp_path / "ucf/UCF-101", tmp_path / "ucf", video, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match=r"classInd\.txt not found") as error:
            UCF101(str(root))
        assert str(root / "ucfTrainTestlist" / "classInd.txt") in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"clip\.mp4 does not exist"):
        VideoFolder(str(video))


def test_the_home_folder_is_understood(video, tmp_path, monkeypatch):
    copies(video, tmp_path, "v/clip.mp4")
    monkeypatch.setenv("HOME", str(tmp_path))
    (record,) = VideoFolder("~/v").records
    assert open_record(record).num_frames_at(25) == 10


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
def test_a_list_with_two_separators_names_the_line(separator, tmp_path):
    other = "," if separator != "," else " "
    (tmp_path / "train.csv").write_text(f"a b.mp4{separator}0\nc.mp4{other}1\n")
    message = rf"train\.csv, line 2: .*Its separator seems to be '{other}'"
    with pytest.raises(ValueError, match=message):
        PathLabelList(str(tmp_path), "train", separator=separator)


def test_double_ids_and_labels_out_of_range_name_the_lines(tmp_path):
    (tmp_path / "train.csv").write_text("a/x.mp4 0\nb/x.mp4 1\na/x.avi 1\n")
    with pytest.raises(ValueError, match=r"train\.csv: video id 'a/x' .* line 1 and line 3"):
        PathLabelList(str(tmp_path), "train")
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 2\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: label 2 is not one of 0 to 1"):
        PathLabelList(str(tmp_path), "train", num_classes=2)


@pytest.mark.parametrize("content", [b"a.mp4 0\nb\0.mp4 1\n", "é.mp4 0\n".encode("utf-16")])
def test_lists_that_are_not_text(content, tmp_path):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.csv, line \d: .*not UTF-8"):
        PathLabelList(str(tmp_path), "train")


NAMES = [
    "with blanks  .mp4",
    "日本語/видео é.mp4",
    "a'b\"c;$(d)&e.mp4",
    "100%s {0} %d.mp4",
    "#1 [x], 2.mp4",
    "-rf.mp4",
    "file:pipe|x.mp4",
    "UPPER.MP4",
]


def test_names_of_all_kinds_are_read(video, tmp_path):
    copies(video, tmp_path / "v", *NAMES)
    lines = [f"v/{name} {label}" for label, name in enumerate(NAMES)]
    (tmp_path / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    listed = PathLabelList(str(tmp_path), "train").records
    found = VideoFolder(str(tmp_path / "v")).records
    assert {r.path for r in listed} == {r.path for r in found}
    summary = check_videos([*listed, *found], tmp_path / "out", progress=False)
    assert [check.status for check in summary.checks] == ["ok"] * len(NAMES)


def test_a_name_that_is_not_utf8_is_refused_by_name(video, tmp_path):
    copies(video, tmp_path, os.fsdecode(b"caf\xe9.mp4"))
    with pytest.raises(ValueError, match=r"b'caf\\xe9' is not UTF-8 text; rename the file"):
        VideoFolder(str(tmp_path))


def test_links(video, tmp_path):
    """Links to videos and folders are followed; those that lead nowhere are reported as missing."""
    copies(video, tmp_path, "disk/a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.mp4").symlink_to(tmp_path / "disk/a.mp4")
    (root / "folder").symlink_to(tmp_path / "disk")
    (root / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    (root / "circle.mp4").symlink_to(root / "circle.mp4")
    records = {record.video_id: record for record in VideoFolder(str(root)).records}
    assert records.keys() == {"file", "folder/a", "broken", "circle"}
    for name in ("file", "folder/a"):
        assert open_record(records[name]).num_frames_at(25) == 10
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4: .*a link that leads nowhere"):
        open_record(records["broken"])
    with pytest.raises(VideoDecodeError, match=r"circle\.mp4: it cannot be opened: .*symbolic"):
        open_record(records["circle"])
    missing = missing_videos(records.values())
    assert {record.video_id for record in missing} == {"broken", "circle"}


def test_what_is_no_file(tmp_path):
    (tmp_path / "zero.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, reason in {
        tmp_path / "zero.mp4": "the file is empty",
        tmp_path / "pipe.mp4": "it is not a file",
        tmp_path / "zero.mp4" / "below.mp4": "cannot be opened: Not a directory",
        tmp_path / f"{'long' * 100}.mp4": "cannot be opened: File name too long",
        tmp_path / "no.mp4": "does not exist",
    }.items():
        with pytest.raises(VideoDecodeError, match=reason) as error:
            open_record(VideoRecord(str(path), "x"))
        assert str(path) in str(error.value)
