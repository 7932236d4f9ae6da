"""Something-Something V2, read from the official JSON files and .webm videos."""

from pathlib import Path
from typing import Any

from vimpac_ext.data.annotations.common import (
    check_choice,
    find_file,
    nearest,
    read_json,
    read_json_records,
)
from vimpac_ext.data.annotations.published import warn_of_other_size
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS

_SPLITS = ("train", "validation")
_ADVICE = (
    "Download the videos and the labels of Something-Something V2 from "
    "https://www.qualcomm.com/developer/software/something-something-v-2-dataset and unpack them "
    "there: labels/{labels,train,validation}.json and 20bn-something-something-v2/<id>.webm."
)


@DATASETS.register()
class SomethingSomethingV2:
    """Something-Something V2 (174 classes), or any data set in its format.

    Reads ``labels/{train,validation,labels}.json`` of the newest release, or the older names
    ``something-something-v2-{train,validation,labels}.json``, in the annotation folder or the
    root. The class of a video is ``labels.json[template without brackets]``.

    Attributes:
        records: the videos in the order of the file; ``video_id`` is the official id.
        class_names: indexed by label.
        fingerprint: hash of both files, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: "train" or "validation".
        annotation_folder: folder of the JSON files below the root.
        video_folder: folder of the videos below the root.
        check_size: whether to warn if there are more or fewer videos than published.

    Raises:
        FileNotFoundError: if the folder or a JSON file is missing.
        ValueError: if a JSON file is malformed or inconsistent; names the file and the place.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        annotation_folder: str = "labels",
        video_folder: str = "20bn-something-something-v2",
        check_size: bool = True,
    ) -> None:
        check_choice("split of SomethingSomethingV2", split, _SPLITS)
        label_file = find_file(root, annotation_folder, _file_names("labels"), _ADVICE)
        split_file = find_file(root, annotation_folder, _file_names(split), _ADVICE)
        labels = _read_labels(label_file)

        def label_of(template: object) -> int:
            name = str(template).replace("[", "").replace("]", "")
            if name not in labels:
                raise ValueError(f"label {name!r} is not in {label_file}.{nearest(name, labels)}")
            return labels[name]

        self.class_names: list[str] = sorted(labels, key=labels.__getitem__)
        videos = Path(root).expanduser() / video_folder
        self.records = read_json_records(
            split_file, "id", "template", label_of, f"{videos}/{{}}.webm"
        )
        self.fingerprint = sha256_of(type(self).__name__, split, label_file, split_file)
        if check_size:
            warn_of_other_size(
                type(self).__name__, split, split_file, len(self.records), len(labels)
            )


def _file_names(name: str) -> tuple[str, str]:
    return f"{name}.json", f"something-something-v2-{name}.json"


def _read_labels(path: Path) -> dict[str, int]:
    content: Any = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object of label: index")
    labels = {}
    for name, index in content.items():
        # The official indices are strings.
        if not str(index).isdecimal():
            raise ValueError(f"{path}: the index of label {name!r} is {index!r}, not a number")
        labels[name] = int(index)
    if sorted(labels.values()) != list(range(len(labels))):
        raise ValueError(f"{path}: the indices are not 0 to {len(labels) - 1}, each once")
    return labels
