"""Diving48 V2, read from the official JSON files."""

from pathlib import Path
from typing import Any

from vimpac_ext.data.annotations.common import (
    check_choice,
    find_file,
    read_json,
    read_json_records,
)
from vimpac_ext.data.annotations.published import warn_of_other_size
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS

_SPLITS = ("train", "test")
_ADVICE = (
    "Download Diving48_rgb.tar.gz, Diving48_vocab.json, Diving48_V2_train.json and "
    "Diving48_V2_test.json from http://www.svcl.ucsd.edu/projects/resound/dataset.html and unpack "
    "the videos there: rgb/<vid_name>.mp4."
)


@DATASETS.register()
class Diving48:
    """Diving48 (48 classes) with the V2 labels, the cleaned ones of 2020.

    ``start_frame`` and ``end_frame`` are not used: the official videos are cut to them already.

    Attributes:
        records: the videos in the order of the file; ``video_id`` is ``vid_name``.
        class_names: such as "Back-15som-05Twis-FREE", of the vocabulary file.
        fingerprint: hash of both files, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        annotation_folder: folder of the JSON files below the root; "" is the root itself.
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
        annotation_folder: str = "",
        video_folder: str = "rgb",
        check_size: bool = True,
    ) -> None:
        check_choice("split of Diving48", split, _SPLITS)
        vocabulary_file, split_file = (
            find_file(root, annotation_folder, [name], _ADVICE)
            for name in ("Diving48_vocab.json", f"Diving48_V2_{split}.json")
        )
        names = _read_class_names(vocabulary_file)

        def label_of(label: object) -> int:
            if type(label) is not int or not 0 <= label < len(names):
                raise ValueError(
                    f"label {label!r} is not one of 0 to {len(names) - 1} of {vocabulary_file}"
                )
            return label

        self.class_names: list[str] = names
        videos = Path(root).expanduser() / video_folder
        self.records = read_json_records(
            split_file, "vid_name", "label", label_of, f"{videos}/{{}}.mp4"
        )
        self.fingerprint = sha256_of(type(self).__name__, split, vocabulary_file, split_file)
        if check_size:
            warn_of_other_size(
                type(self).__name__, split, split_file, len(self.records), len(names)
            )


def _read_class_names(path: Path) -> list[str]:
    """Read the list of [takeoff, somersaults, twists, position], one for each class."""
    content: Any = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, list) for entry in content):
        raise ValueError(f"{path}: expected a list of lists, one for each class")
    return ["-".join(str(part) for part in parts) for parts in content]
