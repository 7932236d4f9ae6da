"""Readers of annotation files: the official formats, and errors that name the place."""

import json
import os
import re
from pathlib import Path

import pytest

from vimpac_ext.data.annotations import (
    HMDB51,
    UCF101,
    Diving48,
    HowTo100M,
    Kinetics400,
    PathLabelList,
    SomethingSomethingV2,
    VideoFolder,
    missing_videos,
)
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import UNLABELLED, VideoRecord

ALL = [HMDB51, UCF101, Diving48, HowTo100M, Kinetics400, PathLabelList, SomethingSomethingV2]


def write(path: Path, content: str | bytes | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (list, dict)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def triples(dataset, root: Path) -> list[tuple[str, str, int]]:
    return [(os.path.relpath(r.path, root), r.video_id, r.label) for r in dataset.records]


# ---------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("dataset", [*ALL, VideoFolder])
def test_registered_under_its_name(dataset):
    assert DATASETS.get(dataset.__name__) is dataset


@pytest.mark.parametrize("dataset", ALL)
def test_missing_files_say_which_where_and_what_to_download(dataset, tmp_path):
    root = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as error:
        dataset(str(root), "train")
    assert str(root) in str(error.value)
    assert "does not exist" in str(error.value)
    root.mkdir()
    with pytest.raises(FileNotFoundError) as error:
        dataset(str(root), "train")
    assert str(root) in str(error.value)
    assert re.search(r"Download .*https?://|Write train\.csv", str(error.value))


@pytest.mark.parametrize("dataset", [d for d in ALL if d is not PathLabelList])
def test_an_unknown_split_lists_the_valid_ones(dataset, tmp_path):
    with pytest.raises(ValueError, match="'valid'.*'train'"):
        dataset(str(tmp_path), "valid")


def test_missing_videos(tmp_path):
    write(tmp_path / "a.mp4", "x")
    (tmp_path / "folder.mp4").mkdir()
    records = [VideoRecord(str(tmp_path / n), n) for n in ("a.mp4", "b.mp4", "folder.mp4")]
    assert missing_videos(records) == records[1:]


# ---------------------------------------------------------------------------- Something-Something


SSV2_LABELS = {"Moving something up": "1", "Holding something": "0", "Tearing something": "2"}
SSV2_ENTRIES = [
    {"id": "78687", "label": "moving a cup up", "template": "Moving [something] up"},
    {"id": "42326", "label": "holding a pen", "template": "Holding [something]"},
]


def make_ssv2(root: Path, entries=SSV2_ENTRIES, labels=SSV2_LABELS, prefix="labels/") -> str:
    write(root / f"{prefix}labels.json", labels)
    write(root / f"{prefix}train.json", entries)
    return str(root)


@pytest.mark.parametrize(
    "prefix", ["labels/", "", "something-something-v2-", "labels/something-something-v2-"]
)
def test_something_something_both_releases(prefix, tmp_path):
    dataset = SomethingSomethingV2(make_ssv2(tmp_path, prefix=prefix), "train")
    assert triples(dataset, tmp_path) == [
        ("20bn-something-something-v2/78687.webm", "78687", 1),
        ("20bn-something-something-v2/42326.webm", "42326", 0),
    ]
    assert dataset.class_names == ["Holding something", "Moving something up", "Tearing something"]


def test_something_something_validation_and_folders(tmp_path):
    write(tmp_path / "json/labels.json", SSV2_LABELS)
    write(tmp_path / "json/validation.json", SSV2_ENTRIES[:1])
    dataset = SomethingSomethingV2(
        str(tmp_path), "validation", annotation_folder="json", video_folder="clips"
    )
    assert triples(dataset, tmp_path) == [("clips/78687.webm", "78687", 1)]


def test_something_something_unknown_label(tmp_path):
    entries = [*SSV2_ENTRIES, {"id": "5", "template": "Tearing [somethin]"}]
    with pytest.raises(
        ValueError, match=r"entry 3 \(video '5'\): label 'Tearing somethin' is not in .*labels.json"
    ) as error:
        SomethingSomethingV2(make_ssv2(tmp_path, entries))
    assert "Did you mean 'Tearing something'?" in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"id": "1", "template": "Holding [something]"}, {"id": "2"}], "entry 2: key 'template'"),
        ([{"template": "Holding [something]"}], "entry 1: key 'id' is missing; it has: template"),
        ([SSV2_ENTRIES[0], 7], "entry 2: expected an object"),
        ({"a": 1}, "expected a list of entries, found an object"),
        ([], "no videos"),
        ([*SSV2_ENTRIES, SSV2_ENTRIES[0]], "'78687' is there twice: entry 1 and entry 3"),
    ],
)
def test_something_something_bad_entries(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        SomethingSomethingV2(make_ssv2(tmp_path, entries))
    assert str(tmp_path / "labels/train.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n  {"id": "1",\n  "template" "x"}\n]', "line 3, column 14: not valid JSON"),
        ("", "line 1, column 1: not valid JSON"),
        (b'[\n"\xff\xfe"]', "line 2: not UTF-8"),
    ],
)
def test_malformed_json_names_file_line_and_column(content, message, tmp_path):
    root = make_ssv2(tmp_path)
    path = write(tmp_path / "labels/train.json", content)
    with pytest.raises(ValueError, match=message) as error:
        SomethingSomethingV2(root)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": "0", "b": "2"}, "not 0 to 1"),
        ({"a": "0", "b": "0"}, "not 0 to 1"),
        ({"a": "zero"}, "label 'a' is 'zero'"),
        (["a"], "object of label: index"),
    ],
)
def test_something_something_bad_labels(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SomethingSomethingV2(make_ssv2(tmp_path, labels=labels))


def test_fingerprint_follows_content_split_and_class(tmp_path):
    first = SomethingSomethingV2(make_ssv2(tmp_path / "a")).fingerprint
    assert SomethingSomethingV2(make_ssv2(tmp_path / "b")).fingerprint == first
    assert SomethingSomethingV2(make_ssv2(tmp_path / "b"), video_folder="x").fingerprint == first
    write(tmp_path / "b/labels/validation.json", SSV2_ENTRIES)
    assert SomethingSomethingV2(str(tmp_path / "b"), "validation").fingerprint != first
    changed = make_ssv2(tmp_path / "c", SSV2_ENTRIES[:1])
    assert SomethingSomethingV2(changed).fingerprint != first


# ---------------------------------------------------------------------------- Kinetics


K400_TRAIN = (
    "label,youtube_id,time_start,time_end,split\r\n"
    'playing guitar,-abc_DEF-12,7,17,train\r\n"abseiling, high",0wR5jVB-WPk,417,427,train\r\n'
)


def test_kinetics(tmp_path):
    write(tmp_path / "annotations/train.csv", K400_TRAIN)
    dataset = Kinetics400(str(tmp_path), "train")
    assert dataset.class_names == ["abseiling, high", "playing guitar"]
    assert triples(dataset, tmp_path) == [
        ("train/-abc_DEF-12_000007_000017.mp4", "-abc_DEF-12_000007_000017", 1),
        ("train/0wR5jVB-WPk_000417_000427.mp4", "0wR5jVB-WPk_000417_000427", 0),
    ]


def test_kinetics_other_splits_use_the_classes_of_train(tmp_path):
    write(tmp_path / "train.csv", K400_TRAIN)
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "validate.csv", f"{header}playing guitar,x,1.0,11.0,validate\n")
    pattern = "{split}/{label}/{youtube_id}.mkv"
    dataset = Kinetics400(str(tmp_path), "val", video_pattern=pattern)
    assert triples(dataset, tmp_path) == [("val/playing guitar/x.mkv", "x_000001_000011", 1)]
    write(tmp_path / "test.csv", f"{header}\nplaying gitar,x,1,11,test\n")
    with pytest.raises(
        ValueError, match="test.csv, line 3: label 'playing gitar'.*'playing guitar'"
    ):
        Kinetics400(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,youtube_id,split\na,b,train\n", "line 1: column 'time_start' is missing"),
        ("", "line 1: column 'label' is missing"),
        ("/data/a.mp4 3\n", "line 1: column 'label' is missing"),
        ("label,youtube_id,time_start,time_end\na,b,1,2\na,c,x,2\n", "line 3: 'time_start' is 'x'"),
        ("label,youtube_id,time_start,time_end\na,b\n", "line 2: 'time_start' is empty"),
        ("label,youtube_id,time_start,time_end\n", "no videos"),
        (
            "label,youtube_id,time_start,time_end\na,b,1,2\n\na,b,1,2\n",
            "'b_000001_000002' is there twice: line 2 and line 4",
        ),
    ],
)
def test_kinetics_bad_csv(content, message, tmp_path):
    path = write(tmp_path / "train.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        Kinetics400(str(tmp_path), "train")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("pattern", ["{id}.mp4", "{start:x_}.mp4", "{youtube_id", "{}.mp4"])
def test_kinetics_bad_pattern(pattern, tmp_path):
    with pytest.raises(ValueError, match="video_pattern .*{youtube_id}"):
        Kinetics400(str(tmp_path), video_pattern=pattern)


# ---------------------------------------------------------------------------- UCF101, HMDB51


def make_ucf(root: Path, train: str, classes="1 ApplyEyeMakeup\r\n2 YoYo\r\n", split_id=1) -> str:
    write(root / "ucfTrainTestlist/classInd.txt", classes)
    write(root / f"ucfTrainTestlist/trainlist{split_id:02d}.txt", train)
    return str(root)


def test_ucf101(tmp_path):
    train = "YoYo/v_YoYo_g08_c01.avi 2\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n\r\n"
    root = make_ucf(tmp_path, train, split_id=3)
    dataset = UCF101(root, "train", split_id=3)
    assert dataset.class_names == ["ApplyEyeMakeup", "YoYo"]
    assert triples(dataset, tmp_path) == [
        ("UCF-101/YoYo/v_YoYo_g08_c01.avi", "YoYo/v_YoYo_g08_c01", 1),
        (
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01",
            0,
        ),
    ]
    write(tmp_path / "ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    test = UCF101(root, "test")
    assert triples(test, tmp_path) == [
        ("UCF-101/YoYo/v_YoYo_g01_c01.avi", "YoYo/v_YoYo_g01_c01", 1)
    ]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("YoYo/a.avi 2\nYoyo/b.avi 2\n", "line 2: class 'Yoyo'.*Did you mean 'YoYo'"),
        ("YoYo/a.avi 1\n", "line 1: index 1 of 'YoYo/a.avi'.*, 2$"),
        ("a.avi 1\n", "line 1: expected"),
        ("YoYo/a.avi 2 3\n", "line 1: expected"),
        ("YoYo/a.avi\nYoYo/a.mp4\n", "'YoYo/a' is there twice: line 1 and line 2"),
        ("\n", "no videos"),
    ],
)
def test_ucf101_bad_lines(train, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        UCF101(make_ucf(tmp_path, train))
    assert "trainlist01.txt" in str(error.value)


def test_ucf101_bad_class_file_and_split_id(tmp_path):
    with pytest.raises(ValueError, match="classInd.txt, line 2: expected `2 <class>`"):
        UCF101(make_ucf(tmp_path, "a/b.avi 1\n", classes="1 a\n3 b\n"))
    with pytest.raises(ValueError, match="split_id of UCF101 is 4.*: 1, 2, 3"):
        UCF101(str(tmp_path), split_id=4)


def make_hmdb(root: Path, **classes: str) -> str:
    for name, content in classes.items():
        write(root / f"testTrainMulti_7030_splits/{name}_test_split2.txt", content)
    return str(root)


def test_hmdb51(tmp_path):
    root = make_hmdb(
        tmp_path,
        wave="b_wave.avi 2 \na [x]#;&_wave.avi 1 \n",
        brush_hair="x_brush_hair.avi 0 \ny_brush_hair.avi 1 \n",
    )
    train, test = (HMDB51(root, split, split_id=2) for split in ("train", "test"))
    assert train.class_names == ["brush_hair", "wave"]
    assert triples(train, tmp_path) == [
        ("hmdb51_org/brush_hair/y_brush_hair.avi", "brush_hair/y_brush_hair", 0),
        ("hmdb51_org/wave/a [x]#;&_wave.avi", "wave/a [x]#;&_wave", 1),
    ]
    assert triples(test, tmp_path) == [("hmdb51_org/wave/b_wave.avi", "wave/b_wave", 1)]
    assert train.fingerprint != test.fingerprint
    with pytest.raises(FileNotFoundError, match="_test_split1.txt"):
        HMDB51(root, "train", split_id=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.avi 1\nb.avi 3\n", "wave_test_split2.txt, line 2: expected"),
        ("a.avi\n", "line 1: expected"),
        ("a.avi 1\na.avi 1\n", "'wave/a' is there twice: .*line 1 and .*line 2"),
        ("a.avi 0\n", "no videos"),
    ],
)
def test_hmdb51_bad_lines(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        HMDB51(make_hmdb(tmp_path, wave=content), split_id=2)


# ---------------------------------------------------------------------------- Diving48, HowTo100M


def make_diving(root: Path, entries: list) -> str:
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "PIKE"]]
    write(root / "Diving48_vocab.json", vocabulary)
    write(root / "Diving48_V2_train.json", entries)
    return str(root)


def test_diving48(tmp_path):
    entry = {"vid_name": "8Vy3d_00", "label": 1, "start_frame": 0, "end_frame": 96}
    dataset = Diving48(make_diving(tmp_path, [entry]))
    assert dataset.class_names == ["Back-15som-05Twis-FREE", "Inward-25som-NoTwis-PIKE"]
    assert triples(dataset, tmp_path) == [("rgb/8Vy3d_00.mp4", "8Vy3d_00", 1)]


@pytest.mark.parametrize("label", [2, -1, "1", True, None])
def test_diving48_bad_label(label, tmp_path):
    entries = [{"vid_name": "a", "label": 0}, {"vid_name": "b", "label": label}]
    with pytest.raises(ValueError, match=r"V2_train.json, entry 2 \(video 'b'\): label .*0 to 1"):
        Diving48(make_diving(tmp_path, entries))


def test_howto100m_ids_find_their_extension(tmp_path):
    header = "video_id,category_1,category_2,rank,task_id\n"
    write(tmp_path / "HowTo100M_v1.csv", f"{header}a-1,Food,x,2,3\nb_2,Food,x,2,3\ngone,,,,\n")
    write(tmp_path / "videos/a-1.webm", "")
    for name in ("b_2.mkv", "b_2.en.vtt", "b_2.json", "a-1.mp4"):
        write(tmp_path / "videos" / name, "")
    dataset = HowTo100M(str(tmp_path))
    assert dataset.class_names == []
    assert triples(dataset, tmp_path) == [
        ("videos/a-1.webm", "a-1", UNLABELLED),
        ("videos/b_2.mkv", "b_2", UNLABELLED),
        ("videos/gone.mp4", "gone", UNLABELLED),
    ]
    assert [record.video_id for record in missing_videos(dataset.records)] == ["gone"]


def test_howto100m_paths(tmp_path):
    (tmp_path / "v").mkdir()
    write(tmp_path / "list.csv", "video_path\n0/a.mp4\n1/b.webm\n")
    dataset = HowTo100M(str(tmp_path), annotation_file="list.csv", video_folder="v")
    assert triples(dataset, tmp_path) == [("v/0/a.mp4", "0/a", -1), ("v/1/b.webm", "1/b", -1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,rank\na,1\n", "line 2: neither 'video_path' nor 'video_id'.*: id, rank"),
        ("video_id,rank\na,1\n,2\n", "line 3: neither"),
        ("video_id\na\nb\na\n", "'a' is there twice: line 2 and line 4"),
        ("video_id\n", "no videos"),
        ("", "no videos"),
    ],
)
def test_howto100m_bad_csv(content, message, tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path / "HowTo100M_v1.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        HowTo100M(str(tmp_path))
    assert "HowTo100M_v1.csv" in str(error.value)


# ---------------------------------------------------------------------------- lists and folders


def test_path_label_list_with_spaces_and_other_letters(tmp_path):
    lines = f"clips/a b 1.mp4 2\r\n\r\nclips/видео.webm 0\r\n/abs/c.avi 1\r\n{tmp_path}/d.avi 1"
    write(tmp_path / "train.csv", "\ufeff" + lines)
    dataset = PathLabelList(str(tmp_path), "train")
    assert [(r.path, r.video_id, r.label) for r in dataset.records] == [
        (f"{tmp_path}/clips/a b 1.mp4", "clips/a b 1", 2),
        (f"{tmp_path}/clips/видео.webm", "clips/видео", 0),
        ("/abs/c.avi", "/abs/c", 1),
        (f"{tmp_path}/d.avi", "d", 1),
    ]
    assert dataset.class_names == []  # there may be more classes than a list has


def test_path_label_list_options(tmp_path):
    write(tmp_path / "val.txt", "a,b.mp4,1\nc.mp4, 0\n")
    write(tmp_path / "classes.txt", "jump high\nrun\nsit\n")
    dataset = PathLabelList(
        str(tmp_path), "val", separator=",", path_prefix="videos", class_file="classes.txt"
    )
    assert triples(dataset, tmp_path) == [("videos/a,b.mp4", "a,b", 1), ("videos/c.mp4", "c", 0)]
    assert dataset.class_names == ["jump high", "run", "sit"]
    five = PathLabelList(str(tmp_path), "val", separator=",", num_classes=5)
    assert five.class_names == ["0", "1", "2", "3", "4"]
    assert five.fingerprint != dataset.fingerprint


def test_path_label_list_unlabelled(tmp_path):
    write(tmp_path / "all.txt", "a 1.mp4\nb.mp4\n")
    dataset = PathLabelList(str(tmp_path), "all", labelled=False)
    assert triples(dataset, tmp_path) == [("a 1.mp4", "a 1", -1), ("b.mp4", "b", -1)]
    assert dataset.class_names == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4 1\nb.mp4\n", r"line 2: expected .*'b.mp4'\. Use labelled"),
        ("a.mp4 1\nb.mp4,1\n", "line 2: .*Its separator seems to be ','"),
        ("a.mp4\t1\n", r"line 1: .*Its separator seems to be '\\t'"),
        ("a.mp4 1\n\nb.mp4 jump\n", "line 3: expected"),
        ("a.mp4 -1\n", "line 1: expected"),
        ("a.mp4 1\nb.mp4 3\n", "line 2: label 3 is not one of 0 to 2"),
        ("a.mp4 1\nx.mp4 1\na.avi 2\n", "'a' is there twice: line 1 and line 3"),
        (" \n", "no videos"),
    ],
)
def test_path_label_list_bad_lines(content, message, tmp_path):
    path = write(tmp_path / "train.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        PathLabelList(str(tmp_path), "train", num_classes=3)
    assert str(path) in str(error.value)


def test_path_label_list_class_file_must_agree(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 1\n")
    write(tmp_path / "classes.txt", "x\ny\n")
    with pytest.raises(ValueError, match=r"num_classes is 3, but .*classes\.txt has 2"):
        PathLabelList(str(tmp_path), "train", num_classes=3, class_file="classes.txt")
    with pytest.raises(FileNotFoundError, match=r"names\.txt"):
        PathLabelList(str(tmp_path), "train", class_file="names.txt")


def test_video_folder_finds_all_depths_sorted(tmp_path):
    for name in ("b.MP4", "a b/c/ü.webm", "a b/d.avi", "notes.txt", ".hidden.mp4", ".cache/e.mp4"):
        write(tmp_path / name, "")
    dataset = VideoFolder(str(tmp_path))
    assert triples(dataset, tmp_path) == [
        ("a b/c/ü.webm", "a b/c/ü", UNLABELLED),
        ("a b/d.avi", "a b/d", UNLABELLED),
        ("b.MP4", "b", UNLABELLED),
    ]
    assert dataset.class_names == []
    write(tmp_path / "new.mp4", "")
    assert VideoFolder(str(tmp_path)).fingerprint != dataset.fingerprint


def test_video_folder_follows_links_but_not_in_circles(tmp_path):
    write(tmp_path / "disk/x.mp4", "")
    root = tmp_path / "root"
    (root / "one").mkdir(parents=True)
    for link, target in (("a", "disk"), ("b", "disk"), ("one/up", "root")):
        (root / link).symlink_to(tmp_path / target)
    assert [r.video_id for r in VideoFolder(str(root)).records] == ["a/x", "b/x"]


def test_video_folder_classes(tmp_path):
    for name in ("train/run/1.mp4", "train/jump/deep/2.mp4", "val/run/3.mp4"):
        write(tmp_path / name, "")
    train, val = (VideoFolder(str(tmp_path), split, labelled=True) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["jump", "run"]
    assert [(r.video_id, r.label) for r in train.records] == [("jump/deep/2", 0), ("run/1", 1)]
    assert [(r.video_id, r.label) for r in val.records] == [("run/3", 1)]
    write(tmp_path / "val/4.mp4", "")
    with pytest.raises(ValueError, match="val/4.mp4 is in none of the 2 class folders"):
        VideoFolder(str(tmp_path), "val", labelled=True)


def test_video_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        VideoFolder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="val does not exist"):
        VideoFolder(str(tmp_path), "val")
    with pytest.raises(ValueError, match="no videos found"):
        VideoFolder(str(tmp_path))
    write(tmp_path / "a.mp4", "")
    write(tmp_path / "a.avi", "")
    with pytest.raises(ValueError, match="'a' is there twice: a.avi and a.mp4"):
        VideoFolder(str(tmp_path))
