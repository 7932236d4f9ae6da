"""Kinetics-400, read from the official csv files."""

from pathlib import Path

from vimpac_ext.data.annotations.common import (
    check_choice,
    check_records,
    find_file,
    nearest,
    read_csv,
)
from vimpac_ext.data.annotations.published import warn_of_other_size
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord

_FILE_NAMES = {
    "train": ("train.csv",),
    "val": ("val.csv", "validate.csv"),
    "test": ("test.csv",),
}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_PATTERN = "{split}/{youtube_id}_{start:06d}_{end:06d}.mp4"
_ADVICE = (
    "Download Kinetics-400 as https://github.com/cvdfoundation/kinetics-dataset describes: the "
    "annotations into annotations/{train,val,test}.csv and the trimmed videos into "
    "{train,val,test}/. For lists of `path label` use PathLabelList."
)


@DATASETS.register()
class Kinetics400:
    """Kinetics-400 with its official csv files (``label,youtube_id,time_start,time_end,split``).

    The classes are the sorted labels of train.csv, which is therefore needed for every split.

    Attributes:
        records: the trimmed videos in the order of the file; ``video_id`` is
            ``<youtube_id>_<start>_<end>``.
        class_names: indexed by label.
        fingerprint: hash of the csv files, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: "train", "val" or "test".
        annotation_folder: folder of the csv files below the root; the root is looked at too.
        video_pattern: path of a video below the root, made of {split}, {label}, {youtube_id},
            {start} and {end} (whole seconds). For videos in class folders:
            "{split}/{label}/{youtube_id}_{start:06d}_{end:06d}.mp4".
        check_size: whether to warn if there are more or fewer videos than published.

    Raises:
        FileNotFoundError: if the folder or a csv file is missing.
        ValueError: if a line or the pattern is wrong; names the file and the line.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        annotation_folder: str = "annotations",
        video_pattern: str = _PATTERN,
        check_size: bool = True,
    ) -> None:
        check_choice("split of Kinetics400", split, tuple(_FILE_NAMES))
        _check_pattern(video_pattern)
        train_file, split_file = (
            find_file(root, annotation_folder, _FILE_NAMES[name], _ADVICE)
            for name in ("train", split)
        )
        folder = Path(root).expanduser()
        self.class_names: list[str] = sorted(
            {row["label"] for _, row in read_csv(train_file, ("label",))}
        )
        labels = {name: index for index, name in enumerate(self.class_names)}
        self.records: list[VideoRecord] = []
        lines = []
        for line, row in read_csv(split_file, _COLUMNS):
            label, place = row["label"], f"{split_file}, line {line}"
            if label not in labels:
                raise ValueError(
                    f"{place}: label {label!r} is not in {train_file}.{nearest(label, labels)}"
                )
            start, end = (_seconds(row[column], column, place) for column in _COLUMNS[2:])
            youtube_id = row["youtube_id"]
            path = folder / video_pattern.format(
                split=split, label=label, youtube_id=youtube_id, start=start, end=end
            )
            video_id = f"{youtube_id}_{start:06d}_{end:06d}"
            self.records.append(VideoRecord(str(path), video_id, labels[label]))
            lines.append(line)
        check_records(self.records, split_file, lambda index: f"line {lines[index]}")
        self.fingerprint = sha256_of(type(self).__name__, split, train_file, split_file)
        if check_size:
            warn_of_other_size(
                type(self).__name__, split, split_file, len(self.records), len(self.class_names)
            )


def _check_pattern(pattern: str) -> None:
    try:
        pattern.format(split="", label="", youtube_id="", start=0, end=0)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"video_pattern {pattern!r} is wrong ({error!r}); it may use {{split}}, {{label}}, "
            f"{{youtube_id}}, {{start}}, {{end}}, for example {_PATTERN!r}"
        ) from error


def _seconds(text: str, column: str, place: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {column!r} is {text!r}, not a number of seconds") from error
