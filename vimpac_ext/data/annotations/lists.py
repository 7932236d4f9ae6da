"""Your own videos: a list of `path label` lines, or a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from vimpac_ext.data.annotations.common import (
    VIDEO_EXTENSIONS,
    check_records,
    find_file,
    find_folder,
    id_of_path,
    read_lines,
)
from vimpac_ext.data.frame_folder import IMAGE_EXTENSIONS
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import UNLABELLED, VideoRecord


@DATASETS.register()
class PathLabelList:
    """A list of videos as PySlowFast and MMAction2 read it: `path label`, one video a line.

    The label is the last field of the line, so paths may contain the separator. There is no
    header. Blank lines are skipped.

    Attributes:
        records: the videos in the order of the list; ``video_id`` is the path as written, without
            extension (and without the root, if it stands below the root).
        class_names: the lines of the class file, or "0", "1", ... for ``num_classes``; empty if
            neither is given, since a list need not have every class.
        fingerprint: hash of the list, the class file, the split and the name of this class.

    Args:
        root: folder of the list; relative paths start here.
        split: name of the list without extension, such as "train".
        separator: between path and label, such as a blank, a comma or a tab.
        path_prefix: folder that relative paths start at instead, absolute or below the root.
        labelled: if False, the whole line is the path.
        num_classes: number of classes; no label may be larger. A run checks every label against
            MODEL.NUM_CLASSES in any case.
        class_file: file below the root with the name of a class in each line.
        frame_rate: images a second of the paths that are folders of images.

    Raises:
        FileNotFoundError: if the list is missing.
        ValueError: if a line is wrong; names the file and the line.
    """

    def __init__(
        self,
        root: str,
        split: str,
        separator: str = " ",
        path_prefix: str = "",
        labelled: bool = True,
        num_classes: int | None = None,
        class_file: str | None = None,
        frame_rate: float | None = None,
    ) -> None:
        _check_frame_rate(frame_rate)
        advice = f"Write {split}.csv with a line `<path>{separator}<label>` for each video."
        list_file = find_file(root, "", [f"{split}.csv", f"{split}.txt"], advice)
        base = Path(root).expanduser()
        hashed = [list_file]
        names = [str(index) for index in range(num_classes or 0)]
        if class_file is not None:
            hashed.append(find_file(root, "", [class_file], "Write a class name in each line."))
            names = [name for _, name in read_lines(hashed[-1])]
            if num_classes not in (None, len(names)):
                raise ValueError(
                    f"num_classes is {num_classes}, but {hashed[-1]} has {len(names)} lines"
                )
            num_classes = len(names)
        lines = read_lines(list_file)
        self.records: list[VideoRecord] = []
        for number, line in lines:
            path, label = line, UNLABELLED
            if labelled:
                path, label = _split_line(
                    line, separator, num_classes, f"{list_file}, line {number}"
                )
            video_id = id_of_path(_relative_to(Path(path), base))
            file = str(base / path_prefix / path)
            self.records.append(VideoRecord(file, video_id, label, frame_rate=frame_rate))
        check_records(self.records, list_file, lambda index: f"line {lines[index][0]}")
        self.class_names: list[str] = names
        rate = [] if frame_rate is None else [f"{frame_rate:g} images a second"]
        self.fingerprint = sha256_of(type(self).__name__, split, *hashed, *rate)


@DATASETS.register()
class VideoFolder:
    """All videos below a folder, at any depth, in sorted order.

    Links to folders are followed. Hidden files and folders (".name") are not looked at.

    Attributes:
        records: the videos; ``video_id`` is the path below the folder without extension.
        class_names: names of the folders right below, sorted; empty if not labelled.
        fingerprint: hash of the names found, the split and the name of this class.

    Args:
        root: folder of the videos.
        split: folder below the root, such as "train"; "" is the root itself.
        labelled: whether the folders right below are the classes. If the root has a folder
            "train", its classes number those of every split.
        frame_rate: if given, folders that hold images and no videos are videos too, with so many
            images a second.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: if there are no videos, two have the same name but for the extension, or a
            video is in no class.
    """

    def __init__(
        self,
        root: str,
        split: str = "",
        labelled: bool = False,
        frame_rate: float | None = None,
    ) -> None:
        _check_frame_rate(frame_rate)
        base = find_folder(Path(root).expanduser(), "Put your videos there.")
        folder = find_folder(base / split, "Put the videos of this split there.")
        names = sorted(_video_names(str(folder), frame_rate is not None))
        class_folder = base / "train" if split and (base / "train").is_dir() else folder
        self.class_names: list[str] = _folder_names(class_folder) if labelled else []
        labels = {name: index for index, name in enumerate(self.class_names)}
        self.records: list[VideoRecord] = []
        for name in names:
            label = UNLABELLED
            if labelled:
                class_name = name.split("/")[0]
                if class_name not in labels:
                    raise ValueError(
                        f"{folder / name} is in none of the {len(labels)} class folders of "
                        f"{class_folder}"
                    )
                label = labels[class_name]
            path = f"{folder}/{name}"
            self.records.append(VideoRecord(path, id_of_path(name), label, frame_rate=frame_rate))
        check_records(self.records, folder, names.__getitem__)
        rate = [] if frame_rate is None else ["", f"{frame_rate:g} images a second"]
        self.fingerprint = sha256_of(
            type(self).__name__, split, *self.class_names, "", *names, *rate
        )


def _split_line(line: str, separator: str, num_classes: int | None, place: str) -> tuple[str, int]:
    path, _, text = line.rpartition(separator)
    path, text = path.strip(), text.strip()
    if not path or not text.isdecimal():
        other = next(
            (s for s in (" ", ",", "\t", ";") if s != separator and _ends_in_number(line, s)), None
        )
        hint = f" Its separator seems to be {other!r}." if other else ""
        raise ValueError(
            f"{place}: expected `<path>{separator}<label>` (separator {separator!r}, the label a "
            f"number from 0), found {line!r}.{hint} Use labelled=False for a list without labels."
        )
    if num_classes is not None and int(text) >= num_classes:
        raise ValueError(
            f"{place}: label {text} is not one of 0 to {num_classes - 1} (num_classes "
            f"{num_classes})"
        )
    return path, int(text)


def _ends_in_number(line: str, separator: str) -> bool:
    path, _, text = line.rpartition(separator)
    return bool(path) and text.strip().isdecimal()


def _check_frame_rate(frame_rate: float | None) -> None:
    if frame_rate is not None and not frame_rate > 0:
        raise ValueError(f"frame_rate must be positive, got {frame_rate}")


def _relative_to(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _folder_names(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _is_frame_folder(folder: Path) -> bool:
    """Whether there are images right in the folder and no videos (whose thumbnails they may be)."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    kinds = {Path(name).suffix.lower() for name in names}
    return not kinds.isdisjoint(IMAGE_EXTENSIONS) and kinds.isdisjoint(VIDEO_EXTENSIONS)


def _video_names(
    folder: str, with_images: bool, below: str = "", parents: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield the paths of the videos (or of folders of images) relative to the outermost folder."""
    real_path = str(Path(folder).resolve())
    if real_path in parents:  # A link to a folder around it: following it would never end.
        return
    # scandir knows what is a folder without a call to the file system for each of a million files.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A link in a circle makes `DirEntry.is_dir` raise; `Path.is_dir` says no.
            if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
                if with_images and _is_frame_folder(Path(entry.path)):
                    yield below + entry.name
                    continue
                inner = f"{below}{entry.name}/"
                yield from _video_names(entry.path, with_images, inner, parents | {real_path})
            elif Path(entry.name).suffix.lower() in VIDEO_EXTENSIONS:
                yield below + entry.name
