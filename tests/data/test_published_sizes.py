"""A data set that is smaller or larger than the published one is warned of, once."""

import csv
import json
import logging
import re

import pytest

from vimpac_ext.data.annotations import (
    HMDB51,
    UCF101,
    Diving48,
    HowTo100M,
    Kinetics400,
    PathLabelList,
    SomethingSomethingV2,
)

# Table 13 of the paper: training videos, validation videos, classes.
TABLE_13 = {
    HowTo100M: (1238791, None, 0),
    SomethingSomethingV2: (168913, 24777, 174),
    Diving48: (15027, 1970, 48),
    UCF101: (9537, 3783, 101),
    HMDB51: (3570, 1530, 51),
    Kinetics400: (205418, 17686, 400),
}
SECOND_SPLIT = {
    SomethingSomethingV2: "validation",
    Diving48: "test",
    UCF101: "test",
    HMDB51: "test",
    Kinetics400: "val",
}


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_kinetics(path, labels):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([label, f"v{i}", 0, 10, "x"] for i, label in enumerate(labels))


def make(dataset, root, split, num_videos, num_classes):
    """Writes annotations of so many videos and classes; every class occurs."""
    labels = [index % max(num_classes, 1) for index in range(num_videos)]
    if dataset is HowTo100M:
        (root / "videos").mkdir()
        ids = "\n".join(map(str, range(num_videos)))
        (root / "HowTo100M_v1.csv").write_text(f"video_id\n{ids}\n")
    elif dataset is SomethingSomethingV2:
        write_json(root / "labels/labels.json", {f"c{i}": str(i) for i in range(num_classes)})
        entries = [{"id": str(i), "template": f"c{label}"} for i, label in enumerate(labels)]
        write_json(root / f"labels/{split}.json", entries)
    elif dataset is Diving48:
        write_json(root / "Diving48_vocab.json", [[f"c{i}"] for i in range(num_classes)])
        entries = [{"vid_name": f"v{i}", "label": label} for i, label in enumerate(labels)]
        write_json(root / f"Diving48_V2_{split}.json", entries)
    elif dataset is UCF101:
        folder = root / "ucfTrainTestlist"
        folder.mkdir()
        names = "".join(f"{i + 1} c{i}\n" for i in range(num_classes))
        (folder / "classInd.txt").write_text(names)
        lines = "".join(f"c{label}/v{i}.avi\n" for i, label in enumerate(labels))
        for split_id in (1, 2, 3):
            (folder / f"{split}list{split_id:02}.txt").write_text(lines)
    elif dataset is HMDB51:
        folder = root / "testTrainMulti_7030_splits"
        folder.mkdir()
        flag = ("train", "test").index(split) + 1
        for label in range(num_classes):
            mine = [i for i, other in enumerate(labels) if other == label]
            lines = "".join(f"v{i}.avi {flag}\n" for i in mine)
            (folder / f"c{label}_test_split1.txt").write_text(lines)
    else:
        write_kinetics(root / f"{split}.csv", [f"c{label}" for label in labels])
        if split != "train":
            write_kinetics(root / "train.csv", [f"c{i}" for i in range(num_classes)])
    return str(root)


CASES = [
    (dataset, split, number, sizes[2])
    for dataset, sizes in TABLE_13.items()
    for split, number in (("train", sizes[0]), (SECOND_SPLIT.get(dataset), sizes[1]))
    if number and number < 30_000  # the larger ones are tried below, by their warning
]


@pytest.mark.parametrize(("dataset", "split", "number", "num_classes"), CASES)
def test_the_published_size_is_silent(dataset, split, number, num_classes, tmp_path, caplog):
    root = make(dataset, tmp_path, split, number, num_classes)
    assert len(dataset(root, split).records) == number
    assert caplog.records == []


@pytest.mark.parametrize("dataset", TABLE_13)
def test_another_size_is_warned_of_with_both_numbers(dataset, tmp_path, caplog):
    published, _, num_classes = TABLE_13[dataset]
    root = make(dataset, tmp_path, "train", 60, num_classes and 7)
    dataset(root, "train")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    numbers = f"60 videos{' of 7 classes' if num_classes else ''} in {re.escape(str(tmp_path))}"
    expected = f"but {published}{f' of {num_classes} classes' if num_classes else ''} in Table 13"
    assert re.search(rf"{dataset.__name__} train.* has {numbers}.*, {expected}", record.message)
    caplog.clear()
    dataset(root, "train", check_size=False)
    assert caplog.records == []


def test_classes_alone_are_warned_of(tmp_path, caplog):
    Diving48(make(Diving48, tmp_path, "test", 1970, 47), "test")
    (record,) = caplog.records
    assert "1970 videos of 47 classes" in record.message
    assert "1970 of 48 classes" in record.message


@pytest.mark.parametrize(("split_id", "train", "test"), [(2, 9586, 3734), (3, 9624, 3696)])
def test_the_other_splits_of_ucf101_have_their_official_sizes(
    split_id, train, test, tmp_path, caplog
):
    assert train + test == 9537 + 3783  # every split divides the same 13 320 videos
    for split, number in (("train", train), ("test", test)):
        (tmp_path / split).mkdir()
        root = make(UCF101, tmp_path / split, split, number, 101)
        UCF101(root, split, split_id=split_id)
        assert caplog.records == []
        UCF101(root, split, split_id=1)
        assert f"UCF101 {split} split 1" in caplog.text
        caplog.clear()


def test_other_data_sets_have_no_size(tmp_path, caplog):
    class MyData(Diving48):
        pass

    MyData(make(Diving48, tmp_path, "train", 5, 2))
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    PathLabelList(str(tmp_path), "train")
    assert caplog.records == []
