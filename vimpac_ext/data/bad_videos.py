"""The list of videos that could not be read: one JSON object a line."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vimpac_ext.files import atomic_write


class BadVideo(NamedTuple):
    """A video that could not be read, and why."""

    video_id: str
    path: str
    reason: str


def read_bad_videos(file: Path) -> dict[str, BadVideo]:
    """Read a list by video id (the last entry counts); a missing file is an empty list.

    A last line that was cut off by a crash is ignored.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    entries = [BadVideo(**json.loads(line)) for line in whole]
    return {entry.video_id: entry for entry in entries}


def append_bad_video(file: Path, entry: BadVideo) -> None:
    """Add a line that survives a crash right after."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry._asdict()) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def note_bad_video(file: Path, entry: BadVideo) -> bool:
    """Add a video unless it is listed; several processes may do so at once.

    Returns:
        Whether it was added.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)  # ends with the stream
        if entry.video_id in read_bad_videos(file):
            return False
        _end_last_line(stream)
        append_bad_video(file, entry)
    return True


def _end_last_line(stream: BinaryIO) -> None:
    """Takes away what a crash left of a line, which would spoil the next one."""
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        stream.truncate(whole)


def write_bad_videos(file: Path, entries: Iterable[BadVideo]) -> None:
    """Replace the list atomically; an empty one is removed."""
    lines = [json.dumps(entry._asdict()) + "\n" for entry in entries]
    if not lines:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as stream:
        stream.writelines(lines)
