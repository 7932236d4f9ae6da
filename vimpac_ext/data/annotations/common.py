"""What the annotation readers share: finding and reading files, errors that name the place."""

import csv
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vimpac_ext.structures import VideoRecord

# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on


def missing_videos(records: Iterable[VideoRecord]) -> list[VideoRecord]:
    """Find the videos whose file, or folder of images, is not there.

    The data sets do not do this themselves: on a network disk it takes minutes for a million
    files.

    Returns:
        The records without a file, in order.
    """
    return [record for record in records if not _is_there(record)]


def _is_there(record: VideoRecord) -> bool:
    path = Path(record.path)
    return path.is_file() or (record.frame_rate is not None and path.is_dir())


def id_of_path(path: str | Path) -> str:
    """Returns the path without the extension of a video: the id of a video that has no other."""
    path = Path(path)
    is_video = path.suffix.lower() in VIDEO_EXTENSIONS
    return (path.with_suffix("") if is_video else path).as_posix()


def find_folder(path: Path, advice: str) -> Path:
    """Return the folder if it is there.

    Raises:
        FileNotFoundError: if it is not; says where it was looked for, and the advice.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"folder {path.absolute()} does not exist. {advice}")
    return path


def find_file(root: str | Path, folder: str, names: Sequence[str], advice: str) -> Path:
    """Return the first of the files that exists, in a folder below the root or in the root.

    Args:
        root: folder of the data set.
        folder: where the files should be, below the root.
        names: possible names of the file, the preferred first.
        advice: what to download, for the error message.

    Raises:
        FileNotFoundError: if there is none; lists every place looked at.
    """
    base = Path(root).expanduser()
    places = list(
        dict.fromkeys(parent / name for parent in (base / folder, base) for name in names)
    )
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place.absolute()) for place in places)
    reason = "" if base.is_dir() else f" (folder {base.absolute()} does not exist)"
    raise FileNotFoundError(f"{names[0]} not found. Looked for: {looked}{reason}. {advice}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: naming the argument, the value and the valid choices.
    """
    if value not in choices:
        valid = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}, but must be one of: {valid}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice most like the name, or "" if none is."""
    matches = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def read_text(path: Path) -> str:
    """Read a UTF-8 file (with or without a byte order mark).

    Raises:
        ValueError: if the file is not UTF-8 text; names the file and the line.
    """
    content = path.read_bytes()
    if (position := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, position) + 1
        raise ValueError(f"{path}, line {line}: a zero byte, so this is not UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines that are not blank, stripped, each with its number counted from 1."""
    # Not `splitlines`, which also splits at characters that may be part of a file name.
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: if it is malformed; names the file, line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from error


def read_json_entries(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read a JSON list of objects that all have the given keys.

    Raises:
        ValueError: if the file has another form, naming the entry (counted from 1) and the key.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of entries, found {_json_type(entries)}")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(
                f"{path}, entry {number}: expected an object with {', '.join(keys)}, "
                f"found {_json_type(entry)}"
            )
        for key in keys:
            if key not in entry:
                raise ValueError(
                    f"{path}, entry {number}: key {key!r} is missing; it has: {', '.join(entry)}"
                )
    return entries


def read_json_records(
    path: Path, id_key: str, label_key: str, label_of: Callable[[Any], int], video_pattern: str
) -> list[VideoRecord]:
    """Read a JSON list of objects with an id and a label, one for each video.

    Args:
        path: file to read.
        id_key: key of the id, a text or a number.
        label_key: key of the label.
        label_of: turns its value into a class index; a `ValueError` says what is wrong with it.
        video_pattern: path of a video with "{}" for its id.

    Raises:
        ValueError: naming the file, the entry and what is wrong with it.
    """
    records = []
    for number, entry in enumerate(read_json_entries(path, (id_key, label_key)), start=1):
        video_id = entry[id_key]
        if type(video_id) not in (str, int) or video_id == "":
            raise ValueError(f"{path}, entry {number}: {id_key!r} is {video_id!r}, not a name")
        try:
            label = label_of(entry[label_key])
        except ValueError as error:
            raise ValueError(f"{path}, entry {number} (video {video_id!r}): {error}") from error
        records.append(
            VideoRecord(video_pattern.replace("{}", str(video_id)), str(video_id), label)
        )
    check_records(records, path, lambda index: f"entry {index + 1}")
    return records


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a csv file with a header, row by row.

    Args:
        path: file to read.
        columns: columns that the header must have; others are passed on too.

    Yields:
        Line number (counted from 1) and the row.

    Raises:
        ValueError: naming the file, the line and the column.
    """
    reader = csv.DictReader(read_text(path).split("\n"), skipinitialspace=True)
    try:
        header = reader.fieldnames or []
        for column in columns:
            if column not in header:
                raise ValueError(
                    f"{path}, line 1: column {column!r} is missing; the header is: "
                    f"{','.join(header)}; needed: {','.join(columns)}"
                )
        for row in reader:
            for column in columns:
                if not row[column]:
                    raise ValueError(f"{path}, line {reader.line_num}: {column!r} is empty")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def check_records(
    records: Sequence[VideoRecord], source: str | Path, place: Callable[[int], str]
) -> None:
    """Refuse an empty list, two videos with the same id, and ids that are not UTF-8.

    Args:
        records: what was read.
        source: file or folder it was read from.
        place: tells where the i-th record stands in it, such as "line 7".

    Raises:
        ValueError: naming the source, and for doubles the id and both places.
    """
    if not records:
        raise ValueError(f"{source}: no videos found")
    first_index: dict[str, int] = {}
    for index, record in enumerate(records):
        if not _is_utf8(record.video_id):
            name = os.fsencode(record.video_id)
            raise ValueError(f"{source}: {name!r} is not UTF-8 text; rename the file")
        first = first_index.setdefault(record.video_id, index)
        if first != index:
            raise ValueError(
                f"{source}: video id {record.video_id!r} is there twice: "
                f"{place(first)} and {place(index)}"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_type(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else repr(value)
