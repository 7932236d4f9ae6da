"""Checks videos in parallel processes, each within a time limit, and keeps what was found.

A damaged file can make a decoder hang or crash, so every video is decoded in a process that can be
killed. Results are appended to a file as they come: an interrupted check continues.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vimpac_ext.data.annotations import VideoFolder
from vimpac_ext.data.annotations.common import id_of_path
from vimpac_ext.data.bad_videos import BadVideo, write_bad_videos
from vimpac_ext.data.decode import VideoDecodeError, open_record
from vimpac_ext.data.killable_pool import run_each
from vimpac_ext.files import atomic_write, sha256_of
from vimpac_ext.structures import VideoRecord

logger = logging.getLogger(__name__)

RESULTS_FILE = "checked_videos.jsonl"
BAD_VIDEOS_FILE = "bad_videos.jsonl"
SUMMARY_FILE = "summary.json"
STATUSES = ("ok", "broken", "timeout", "crash")


@dataclass(frozen=True)
class VideoCheck:
    """What was found out about one video.

    Attributes:
        path: file or folder of images.
        start: of the segment in seconds, None = start of the video.
        end: of the segment in seconds, None = end of the video.
        video_id: of its record.
        stamp: sizes and change times by which a changed file is recognised; "" if there is none.
        quick: whether it was opened only, not decoded.
        status: "ok", "broken" (an error), "timeout" (killed), or "crash" (took its process along).
        reason: what is wrong, "" for "ok".
        duration: seconds of the video, 0 if it could not be opened.
        seconds: that the check took.
    """

    path: str
    start: float | None
    end: float | None
    video_id: str
    stamp: str
    quick: bool
    status: str
    reason: str = ""
    duration: float = 0.0
    seconds: float = 0.0


_Results = dict[tuple[str, float | None, float | None], VideoCheck]


@dataclass(frozen=True)
class CheckSummary:
    """All results of a check, in the order of the records.

    Attributes:
        checks: one for each different video.
        num_kept: of these, known from an earlier run.
        seconds: that this run took.
    """

    checks: tuple[VideoCheck, ...]
    num_kept: int
    seconds: float

    @property
    def bad(self) -> list[VideoCheck]:
        """Those that are not "ok"."""
        return [check for check in self.checks if check.status != "ok"]

    def as_dict(self) -> dict[str, Any]:
        """Counts and times, for `json`."""
        counts = Counter(check.status for check in self.checks)
        return {
            "num_videos": len(self.checks),
            **{f"num_{status}": counts[status] for status in STATUSES},
            "num_kept_from_before": self.num_kept,
            "video_hours": sum(check.duration for check in self.checks) / 3600,
            "seconds": self.seconds,
        }


def records_of_paths(paths: Iterable[str], frame_rate: float | None = None) -> list[VideoRecord]:
    """Records of files and of all videos below folders.

    Args:
        paths: files and folders.
        frame_rate: images a second; if given, folders of images are videos too.

    Raises:
        ValueError: if there are no videos in a folder.
    """
    records = []
    for path in paths:
        if Path(path).is_dir():
            records += VideoFolder(path, frame_rate=frame_rate).records
        else:
            records.append(VideoRecord(path, id_of_path(path)))
    return records


def check_videos(
    records: Sequence[VideoRecord],
    output: str | Path,
    num_workers: int = 2,
    timeout: float = 600.0,
    quick: bool = False,
    again: bool = False,
    progress: bool = True,
) -> CheckSummary:
    """Decodes every video and writes down which are broken and why.

    In ``output`` are then ``checked_videos.jsonl`` (all results, `VideoCheck`),
    ``bad_videos.jsonl`` (only the bad ones: ``video_id``, ``path``, ``reason``; absent if there
    are none) and ``summary.json``. Videos with a result of an earlier run are not checked again
    unless the file has changed, is missing, or took too long or crashed.

    Args:
        records: which videos; those that occur twice are checked once.
        output: folder for the results.
        num_workers: processes.
        timeout: seconds for one video, after which its process is killed.
        quick: open only, which finds missing and cut files but not damage inside the frames.
        again: forget the results of earlier runs.
        progress: show a progress bar when on a terminal.

    Raises:
        ValueError: an option is out of its range, or there are no videos.
        RuntimeError: a process cannot be started.
    """
    if num_workers < 1 or not timeout > 0 or not records:
        raise ValueError(
            f"needs at least one worker, one video and a positive timeout, got {num_workers}, "
            f"{len(records)} and {timeout}"
        )
    begin = time.perf_counter()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    before = {} if again else _read_results(output / RESULTS_FILE)
    with atomic_write(output / RESULTS_FILE) as stream:  # without what a crash left
        stream.writelines(_line(check) for check in before.values())
    different = list({_place(record): record for record in records}.values())
    found = _still_holding(before, different, quick)
    todo = [record for record in different if _place(record) not in found]
    num_kept = len(found)
    bar = tqdm(
        total=len(different),
        initial=num_kept,
        desc="checking",
        unit="video",
        disable=None if progress else True,  # None: only on a terminal
    )
    with bar, (output / RESULTS_FILE).open("a", encoding="utf-8") as stream:
        for record, check in _check_each(todo, num_workers, timeout, quick):
            stream.write(_line(check))
            stream.flush()
            found[_place(record)] = check
            if check.status != "ok":
                logger.warning("%s: %s", check.status, check.reason)
            bar.update()
    checks = tuple(found[_place(record)] for record in different)
    summary = CheckSummary(checks, num_kept, time.perf_counter() - begin)
    bad = [BadVideo(check.video_id, check.path, check.reason) for check in summary.bad]
    write_bad_videos(output / BAD_VIDEOS_FILE, bad)
    with atomic_write(output / SUMMARY_FILE) as file:
        file.write(json.dumps(summary.as_dict(), indent=2) + "\n")
    return summary


def _check_each(
    records: Sequence[VideoRecord], num_workers: int, timeout: float, quick: bool
) -> Iterator[tuple[VideoRecord, VideoCheck]]:
    jobs = [(record, quick) for record in records]
    for outcome in run_each(_check_one, jobs, num_workers, timeout):
        record = records[outcome.rank]
        check = outcome.value
        if outcome.failure:
            status = "timeout" if outcome.timed_out else "crash"
            reason = f"cannot decode {record.path}: {outcome.failure}"
            check = _result(record, quick, status, reason)
        yield record, replace(check, seconds=outcome.seconds)


def _check_one(job: tuple[VideoRecord, bool]) -> VideoCheck:
    """Decodes a video; runs in a process of its own."""
    record, quick = job
    duration = 0.0
    try:
        with open_record(record) as reader:
            duration = reader.duration
            if not quick:
                reader.decode_all()
    # Besides damage: no permission, a network disk that went away, a segment that ends too early.
    except (VideoDecodeError, OSError, ValueError) as error:
        return _result(record, quick, "broken", str(error), duration)
    return _result(record, quick, "ok", "", duration)


def _result(
    record: VideoRecord, quick: bool, status: str, reason: str, duration: float = 0.0
) -> VideoCheck:
    stamp = _stamp(Path(record.path))
    return VideoCheck(*_place(record), record.video_id, stamp, quick, status, reason, duration)


def _line(check: VideoCheck) -> str:
    return json.dumps(asdict(check)) + "\n"


def _place(record: VideoRecord) -> tuple[str, float | None, float | None]:
    """What makes two records the same video."""
    return record.path, record.start, record.end


def _stamp(path: Path) -> str:
    """Sizes and change times: another stamp, another content. "" if there is no such file."""
    try:
        paths = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in paths]
    except OSError:
        return ""
    return sha256_of(repr(facts)) if len(facts) > 1 else f"{facts[0][1]}-{facts[0][2]}"


def _read_results(file: Path) -> _Results:
    """Results of earlier runs by place; a last line that a crash cut off is ignored.

    Raises:
        ValueError: naming the file and a line that is not a result.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    results: _Results = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            check = VideoCheck(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: not a result of this version ({error}); give another "
                f"output folder, or start again"
            ) from error
        results[check.path, check.start, check.end] = check
    return results


def _still_holding(results: _Results, records: Sequence[VideoRecord], quick: bool) -> _Results:
    """Those that need no new check: the file is the same and was looked at as closely."""
    holding = {}
    for record in records:
        check = results.get(_place(record))
        if check is None or check.status not in ("ok", "broken") or (check.quick and not quick):
            continue
        if check.stamp and check.stamp == _stamp(Path(record.path)):
            holding[_place(record)] = replace(check, video_id=record.video_id)
    return holding
