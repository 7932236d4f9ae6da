"""The list of videos that could not be read: one JSON object a line."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

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
    return _parse(file.read_text(encoding="utf-8")) if file.is_file() else {}


def append_bad_video(file: Path, entry: BadVideo) -> None:
    """Add a line that survives a crash right after."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(entry))
        stream.flush()
        os.fsync(stream.fileno())


def note_bad_video(file: Path, entry: BadVideo) -> bool:
    """Add a video unless it is listed; several processes may do so at once.

    Returns:
        Whether it was added.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # One stream for everything: the lock ends as soon as this process closes the file anywhere.
    with file.open("a+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        stream.seek(0)
        content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        if entry.video_id in _parse(whole.decode()):
            return False
        if whole != content:  # what a crash left of a line would spoil the next one
            stream.truncate(len(whole))
        stream.write(_line(entry).encode())
        stream.flush()
        os.fsync(stream.fileno())
    return True


def _parse(text: str) -> dict[str, BadVideo]:
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    entries = [BadVideo(**json.loads(line)) for line in whole]
    return {entry.video_id: entry for entry in entries}


def _line(entry: BadVideo) -> str:
    return json.dumps(entry._asdict()) + "\n"


def write_bad_videos(file: Path, entries: Iterable[BadVideo]) -> None:
    """Replace the list atomically; an empty one is removed."""
    lines = [_line(entry) for entry in entries]
    if not lines:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as stream:
        stream.writelines(lines)
