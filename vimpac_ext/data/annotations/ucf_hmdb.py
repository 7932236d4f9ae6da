"""UCF101 and HMDB51, read from the official split files."""

from pathlib import Path

from vimpac_ext.data.annotations.common import (
    check_choice,
    check_records,
    find_file,
    find_folder,
    id_of_path,
    nearest,
    read_lines,
)
from vimpac_ext.data.annotations.published import warn_of_other_size
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord

_SPLITS = ("train", "test")
_SPLIT_IDS = (1, 2, 3)
_UCF_ADVICE = (
    "Download UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip from "
    "https://www.crcv.ucf.edu/data/UCF101.php and unpack them there: UCF-101/<class>/<name>.avi "
    "and ucfTrainTestlist/*.txt."
)
_HMDB_ADVICE = (
    "Download hmdb51_org.rar and test_train_splits.rar from "
    "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/ and unpack "
    "them there: hmdb51_org/<class>/<name>.avi (each class is a .rar too) and "
    "testTrainMulti_7030_splits/<class>_test_split<n>.txt."
)


@DATASETS.register()
class UCF101:
    """UCF101 (101 classes) with the official split lists.

    Attributes:
        records: the videos in the order of the list; ``video_id`` is ``<class>/<name>``.
        class_names: of classInd.txt, in its order.
        fingerprint: hash of both files, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        split_id: 1, 2 or 3; results are usually averaged over the three.
        annotation_folder: folder of the lists below the root.
        video_folder: folder of the class folders below the root.
        check_size: whether to warn if there are more or fewer videos than published.

    Raises:
        FileNotFoundError: if the folder or a list is missing.
        ValueError: if a line is wrong; names the file and the line.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        split_id: int = 1,
        annotation_folder: str = "ucfTrainTestlist",
        video_folder: str = "UCF-101",
        check_size: bool = True,
    ) -> None:
        check_choice("split of UCF101", split, _SPLITS)
        check_choice("split_id of UCF101", split_id, _SPLIT_IDS)
        class_file = find_file(root, annotation_folder, ["classInd.txt"], _UCF_ADVICE)
        list_name = f"{split}list{split_id:02d}.txt"
        list_file = find_file(root, annotation_folder, [list_name], _UCF_ADVICE)
        self.class_names: list[str] = _read_class_names(class_file)
        labels = {name: index for index, name in enumerate(self.class_names)}
        videos = Path(root).expanduser() / video_folder
        lines = read_lines(list_file)
        self.records = [
            _ucf_record(line, f"{list_file}, line {number}", labels, videos)
            for number, line in lines
        ]
        check_records(self.records, list_file, lambda index: f"line {lines[index][0]}")
        self.fingerprint = sha256_of(type(self).__name__, split, class_file, list_file)
        if check_size:
            sizes = len(self.records), len(self.class_names)
            warn_of_other_size(type(self).__name__, split, list_file, *sizes, split_id)


@DATASETS.register()
class HMDB51:
    """HMDB51 (51 classes) with the official split files, one a class, flags 0, 1 (train), 2 (test).

    Attributes:
        records: the videos, class by class; ``video_id`` is ``<class>/<name>``.
        class_names: sorted.
        fingerprint: hash of the files of this split id, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        split_id: 1, 2 or 3; results are usually averaged over the three.
        annotation_folder: folder of the split files below the root.
        video_folder: folder of the class folders below the root.
        check_size: whether to warn if there are more or fewer videos than published.

    Raises:
        FileNotFoundError: if the folder or the split files are missing.
        ValueError: if a line is wrong; names the file and the line.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        split_id: int = 1,
        annotation_folder: str = "testTrainMulti_7030_splits",
        video_folder: str = "hmdb51_org",
        check_size: bool = True,
    ) -> None:
        check_choice("split of HMDB51", split, _SPLITS)
        check_choice("split_id of HMDB51", split_id, _SPLIT_IDS)
        base = find_folder(Path(root).expanduser(), _HMDB_ADVICE)
        folder = find_folder(base / annotation_folder, _HMDB_ADVICE)
        suffix = f"_test_split{split_id}.txt"
        files = {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}
        if not files:
            raise FileNotFoundError(
                f"no file <class>{suffix} in {folder.absolute()}. {_HMDB_ADVICE}"
            )
        self.class_names: list[str] = sorted(files)
        self.records: list[VideoRecord] = []
        places = []
        for label, name in enumerate(self.class_names):
            for number, line in read_lines(files[name]):
                place = f"{files[name]}, line {number}"
                file_name, flag = _hmdb_fields(line, place)
                if flag == _SPLITS.index(split) + 1:
                    path = base / video_folder / name / file_name
                    video_id = f"{name}/{path.stem}"
                    self.records.append(VideoRecord(str(path), video_id, label))
                    places.append(place)
        check_records(self.records, folder, places.__getitem__)
        ordered = [files[name] for name in self.class_names]
        self.fingerprint = sha256_of(type(self).__name__, split, *self.class_names, *ordered)
        if check_size:
            sizes = len(self.records), len(self.class_names)
            warn_of_other_size(type(self).__name__, split, folder, *sizes, split_id)


def _read_class_names(path: Path) -> list[str]:
    names: list[str] = []
    for number, line in read_lines(path):
        fields = line.split()
        expected = len(names) + 1
        if len(fields) != 2 or fields[0] != str(expected):
            raise ValueError(
                f"{path}, line {number}: expected `{expected} <class>`, found {line!r}"
            )
        names.append(fields[1])
    return names


def _ucf_record(line: str, place: str, labels: dict[str, int], videos: Path) -> VideoRecord:
    """Read `Class/name.avi` (test lists) or `Class/name.avi index` (train lists, from 1)."""
    name, *index = line.split()
    class_name, slash, file_name = name.partition("/")
    if not slash or not file_name or len(index) > 1:
        raise ValueError(f"{place}: expected `<class>/<name>.avi [index]`, found {line!r}")
    if class_name not in labels:
        raise ValueError(
            f"{place}: class {class_name!r} is not in classInd.txt.{nearest(class_name, labels)}"
        )
    label = labels[class_name]
    if index and index[0] != str(label + 1):
        raise ValueError(
            f"{place}: index {index[0]} of {name!r} is not that of {class_name!r} in classInd.txt, "
            f"{label + 1}"
        )
    video_id = id_of_path(name)
    return VideoRecord(str(videos / name), video_id, label)


def _hmdb_fields(line: str, place: str) -> tuple[str, int]:
    fields = line.rsplit(maxsplit=1)
    if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
        raise ValueError(
            f"{place}: expected `<name>.avi <0, 1 or 2>` (unused, train, test), found {line!r}"
        )
    return fields[0], int(fields[1])
