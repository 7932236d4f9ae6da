"""Verification of token stores: every byte of every video, whatever state the files are in.

LMDB trusts its files: a damaged page number or a file cut short can kill the process that follows
it. So each shard is read by a child process; where that dies the video is named and the next child
goes on behind it.
"""

import ctypes
import faulthandler
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
from tqdm import tqdm

from vimpac_ext.data.store_format import (
    StoreMeta,
    VideoHeader,
    read_meta,
    shard_folders,
    token_key,
    video_key,
    view_checksum,
)
from vimpac_ext.data.store_index import index_record, read_index_file
from vimpac_ext.data.store_shards import OpenShard, missing_bytes, open_unchecked, writer_of

_MAX_CRASHES = 10_000  # of one shard; behind that it is given up
_MAX_ID_BYTES = 4096


class Problem(NamedTuple):
    """Something wrong in a store.

    Attributes:
        shard_id: where.
        number: of the video in the shard, -1 = the shard as a whole.
        video_id: its name, "" where it cannot be read.
        reason: what is wrong.
        in_index: only the index is wrong, the tokens are good.
    """

    shard_id: int
    number: int
    video_id: str
    reason: str
    in_index: bool = False

    def __str__(self) -> str:
        where = f"shard {self.shard_id}"
        if self.number >= 0:
            where += f", video {self.video_id!r}" if self.video_id else f", video {self.number}"
        return f"{where}: {self.reason}"


@dataclass
class StoreCheck:
    """What a verification found.

    Attributes:
        num_videos: that are whole.
        num_frames: of these.
        problems: empty for a good store.
        num_read: for each shard how many of its videos could be reached, whole or not.
    """

    num_videos: int = 0
    num_frames: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_read: dict[int, int] = field(default_factory=dict)


def check_store(folder: str | Path, progress: bool = False) -> StoreCheck:
    """Read every video of a store and compare it with its checksums, its header and the index.

    Nothing is changed. Needs memory for one video and the index of one shard.

    Args:
        folder: of the store; nobody may be writing it.
        progress: show a progress bar when on a terminal.

    Raises:
        ValueError: the folder is not a token store, or is being written.
    """
    folder = Path(folder).resolve()
    meta, result = read_meta(folder), StoreCheck()
    for shard_id, shard_folder in shard_folders(folder).items():
        if (writer := writer_of(shard_folder)) != "nobody":
            raise ValueError(f"{writer} is writing {shard_folder}; verify it afterwards")
        title = shard_folder.name if progress else None
        checker = _ShardChecker(shard_id, shard_folder, meta)
        checker.run(result, title)
    return result


def video_problems(
    transaction: lmdb.Transaction, tokens: Any, meta: StoreMeta, number: int, header: VideoHeader
) -> Iterator[str]:
    """What is wrong with the tokens of a video.

    Args:
        transaction: of its shard, with ``buffers=True``.
        tokens: the database of tokens.
        meta: of the store.
        number: of the video in its shard.
        header: of the video.
    """
    for position, view in enumerate(meta.views):
        value = transaction.get(token_key(number, position), db=tokens)
        expected = header.num_frames * meta.frame_dtype.itemsize
        if value is None or len(value) != expected:
            found = "nothing" if value is None else f"{len(value)} bytes"
            yield f"view {view}: {found} instead of {expected} bytes"
        elif view_checksum(value, header.video_id) != header.checksums[position]:
            yield f"view {view}: wrong checksum"
        else:
            largest = int(np.frombuffer(value, meta.frame_dtype)["tokens"].max())
            if largest >= meta.vocab_size:
                yield f"view {view}: token {largest} is outside 0..{meta.vocab_size - 1}"


class _ShardChecker:
    """Reads a shard in child processes, one after the other until one comes to the end."""

    def __init__(self, shard_id: int, folder: Path, meta: StoreMeta) -> None:
        self._shard_id = shard_id
        self._folder = folder
        self._meta = meta
        # Shared with the child, so that what it was at is known when it dies.
        self._total = RawValue(ctypes.c_int64, -1)  # videos in the shard, -1 = not open yet
        self._number = RawValue(ctypes.c_int64, 0)
        self._video_id = RawArray(ctypes.c_char, _MAX_ID_BYTES)
        self._num_good = RawValue(ctypes.c_int64, 0)
        self._num_frames = RawValue(ctypes.c_int64, 0)

    def run(self, result: StoreCheck, title: str | None) -> None:
        """Adds what is found to ``result``; a title switches the progress bar on."""
        ended, num_children = False, 0
        with tqdm(desc=title, unit="video", disable=None if title else True) as bar:
            while not ended and num_children <= _MAX_CRASHES:
                ended = self._read_in_child(result.problems, bar)
                num_children += 1
                if self._total.value < 0:
                    break
        if not ended:
            num_lost = len(read_index_file(self._folder)) - self._number.value
            reason = f"data.mdb is damaged or cut short; {num_lost} videos cannot be read"
            result.problems.append(Problem(self._shard_id, -1, "", reason))
        result.num_read[self._shard_id] = self._number.value
        result.num_videos += self._num_good.value
        result.num_frames += self._num_frames.value

    def _read_in_child(self, problems: list[Problem], bar: tqdm) -> bool:
        """Collects the problems that one child finds; returns whether it came to the end."""
        self._video_id.value = b""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=self._check, args=(sender,), daemon=True)
        child.start()
        sender.close()
        while child.is_alive() or receiver.poll():
            if receiver.poll(0.2):
                try:
                    problems.append(receiver.recv())
                except EOFError:
                    break
            bar.total = max(self._total.value, 0)
            bar.update(self._number.value - bar.n)
        child.join()
        receiver.close()
        if child.exitcode in (0, None):
            return True
        if child.exitcode > 0:
            raise RuntimeError(f"the check of {self._folder} failed, see the message above")
        if self._total.value >= 0:
            name = self._video_id.value.decode("utf-8", "surrogateescape")
            reason = (
                f"reading it ends the process (signal {-child.exitcode}): its pages are damaged or "
                "beyond the end of data.mdb"
            )
            problems.append(Problem(self._shard_id, self._number.value, name, reason))
            self._number.value += 1
        return False

    def _check(self, sender: Connection) -> None:
        """In the child: sends a `Problem` for everything wrong from ``self._number`` on."""
        faulthandler.disable()  # its death is expected, and reported by the parent
        try:
            shard = open_unchecked(self._folder)
            if shard is None:
                return
            if (missing := missing_bytes(self._folder, shard)) and self._total.value < 0:
                reason = f"data.mdb is cut short by {missing} bytes"
                sender.send(Problem(self._shard_id, -1, "", reason))
            with shard.environment.begin(db=shard.videos) as transaction:
                self._total.value = transaction.stat(shard.videos)["entries"]
        except (lmdb.Error, ValueError) as error:
            sender.send(Problem(self._shard_id, -1, "", f"data.mdb is damaged: {error}"))
            return
        index = read_index_file(self._folder)
        for number in range(self._number.value, self._total.value):
            self._number.value, self._video_id.value = number, b""
            record = index[number].tobytes() if number < len(index) else None
            for problem in self._video(shard, number, record):
                sender.send(problem)
        self._number.value = self._total.value

    def _video(self, shard: OpenShard, number: int, record: bytes | None) -> Iterator[Problem]:
        """Problems of one video; counts it if it is whole."""
        problem = partial(Problem, self._shard_id, number)
        name = ""
        try:
            with shard.environment.begin(db=shard.videos, buffers=True) as transaction:
                value = transaction.get(video_key(number))
                header = VideoHeader.unpack(value or b"", len(self._meta.views))
                self._video_id.value = header.video_id[: _MAX_ID_BYTES - 1]
                name = header.video_id.decode("utf-8", "surrogateescape")
                problems = [*video_problems(transaction, shard.tokens, self._meta, number, header)]
        except (lmdb.Error, ValueError) as error:
            yield problem(name, f"its header is damaged: {error}")
            return
        for reason in problems:
            yield problem(name, reason)
        if record not in (None, index_record(header.video_id, header.num_frames)):
            yield problem(name, "its record in index.bin is wrong", in_index=True)
        if not problems:
            self._num_good.value += 1
            self._num_frames.value += header.num_frames
