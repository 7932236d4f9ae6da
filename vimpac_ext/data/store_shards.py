"""The LMDB environments of token stores that this process has open.

LMDB refuses to open a path twice in one process, even in a child that inherited it by fork, and an
environment must not be used across a fork. So all readers and the writer of a shard share one
entry here, which belongs to one process; a forked child opens its own at its first read.
"""

import errno
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from vimpac_ext.data.store_format import DATA_FILE, INDEX_FILE, LOCK_FILE, token_key, video_key

_LOCK_TABLE_BYTES = 8192  # for LMDB's default of 126 readers
_EMPTY_BYTES = 8192  # of an LMDB file without content, at least
_FLOCK = "hhqqi4x"  # Linux's struct flock: type, whence, start, length, owner


class OpenShard(NamedTuple):
    """An LMDB environment and its two databases."""

    pid: int
    writable: bool
    inode: int
    environment: lmdb.Environment
    videos: Any
    tokens: Any

    @staticmethod
    @contextmanager
    def errors(folder: Path) -> Iterator[None]:
        """Turn what damaged pages raise into one kind of error.

        Raises:
            ValueError: naming the file.
        """
        try:
            yield
        except lmdb.MapResizedError as error:
            raise ValueError(
                f"{folder / DATA_FILE} has grown much since it was opened; open the store again"
            ) from error
        except (lmdb.Error, ValueError) as error:
            raise ValueError(f"{folder / DATA_FILE} is damaged: {error}") from error


_OPEN_SHARDS: dict[Path, OpenShard] = {}
_CHANGING = threading.Lock()


def open_shard(folder: Path) -> OpenShard | None:
    """Open a shard for reading, or return it as this process has it open already.

    Args:
        folder: absolute path of the shard.

    Returns:
        None for a shard whose writer has not committed anything.

    Raises:
        ValueError: the LMDB file is damaged or cut short.
    """
    shard = _OPEN_SHARDS.get(folder)
    if shard is not None and shard.pid == os.getpid():
        return shard
    with _CHANGING:
        shard = _OPEN_SHARDS.get(folder)
        if shard is None or shard.pid != os.getpid():
            _close(folder)
            shard = _open_readonly(folder)
            if shard is not None:
                _OPEN_SHARDS[folder] = shard
        return shard


def open_shard_for_writing(folder: Path, map_size: int, sync: bool = True) -> OpenShard:
    """Open or create a shard for its one writer; readers in this process share it.

    Args:
        folder: absolute path of the shard.
        map_size: bytes that it may grow to before its map is doubled.
        sync: force every commit to disk.

    Raises:
        ValueError: this process is writing the shard already, or the LMDB file is damaged.
        OSError: the disk is full.
    """
    with _CHANGING:
        shard = _OPEN_SHARDS.get(folder)
        if shard is not None and shard.pid == os.getpid() and shard.writable:
            raise ValueError(f"{folder} has a writer in this process already; close it first")
        _close(folder)
        if _never_began(folder):
            (folder / DATA_FILE).unlink(missing_ok=True)
        try:
            _reserve_lock_table(folder)
            environment = lmdb.open(str(folder), map_size=map_size, max_dbs=2, sync=sync)
        except (lmdb.DiskError, OSError) as error:
            raise OSError(f"{folder} cannot be written ({error}): is the disk full?") from error
        except lmdb.Error as error:
            raise ValueError(f"{folder / DATA_FILE} is damaged: {error}") from error
        _check_length(environment, folder / DATA_FILE)
        try:
            videos, tokens = environment.open_db(b"videos"), environment.open_db(b"tokens")
        except lmdb.Error as error:
            environment.close()
            raise OSError(f"{folder} cannot be written ({error}): is the disk full?") from error
        inode = (folder / DATA_FILE).stat().st_ino
        shard = OpenShard(os.getpid(), True, inode, environment, videos, tokens)
        _OPEN_SHARDS[folder] = shard
        return shard


@contextmanager
def lock_for_writing(folder: Path) -> Iterator[None]:
    """Holds a shard's lock, which ends with the process at the latest.

    Raises:
        ValueError: another process holds it.
    """
    with (folder / LOCK_FILE).open("a") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ValueError(
                f"another process is writing this shard of the token store ({stream.name} is "
                "locked); give each process its own shard_id"
            ) from error
        yield


def commit_video(shard: OpenShard, header: bytes, values: Sequence[bytes | memoryview]) -> int:
    """Write a video in one durable transaction, growing the map as needed.

    Args:
        shard: open for writing.
        header: of `VideoHeader.pack`.
        values: the tokens of each view.

    Returns:
        The video's number.
    """
    environment, videos, tokens = shard.environment, shard.videos, shard.tokens
    while True:
        try:
            with environment.begin(write=True) as transaction:
                number: int = transaction.stat(videos)["entries"]
                transaction.put(video_key(number), header, db=videos, append=True)
                for view, value in enumerate(values):
                    transaction.put(token_key(number, view), value, db=tokens, append=True)
            return number
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def writer_of(folder: Path) -> str:
    """Who is writing a shard: "this process", "another process" or "nobody"."""
    shard = _OPEN_SHARDS.get(folder)
    if shard is not None and shard.pid == os.getpid() and shard.writable:
        return "this process"  # and closing its lock file here would unlock it
    file = folder / LOCK_FILE
    if not file.is_file():
        return "nobody"
    if not sys.platform.startswith("linux"):
        return "another process"  # cannot be told without taking the lock; the safe answer
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with file.open("rb") as stream:
        answer = fcntl.fcntl(stream, fcntl.F_GETLK, question)
    free = struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK
    return "nobody" if free else "another process"


def _never_began(folder: Path) -> bool:
    """Whether a shard has no LMDB, or half of one since the disk was full at its creation."""
    file, index = folder / DATA_FILE, folder / INDEX_FILE
    if not file.is_file():
        return True
    return file.stat().st_size < _EMPTY_BYTES and not (index.is_file() and index.stat().st_size)


def _reserve_lock_table(folder: Path) -> None:
    """LMDB maps this file into memory: a full disk would kill the process instead of raising."""
    if hasattr(os, "posix_fallocate"):
        with (folder / "lock.mdb").open("ab") as stream:
            os.posix_fallocate(stream.fileno(), 0, _LOCK_TABLE_BYTES)


def close_shard(folder: Path) -> None:
    """Close a shard if this process has it open; whoever reads it next opens it again."""
    with _CHANGING:
        _close(folder)


def close_replaced_shard(folder: Path) -> None:
    """Close a shard whose file was deleted or replaced since it was opened."""
    file, shard = folder / DATA_FILE, _OPEN_SHARDS.get(folder)
    if shard is not None and (not file.is_file() or file.stat().st_ino != shard.inode):
        close_shard(folder)


def _close(folder: Path) -> None:
    shard = _OPEN_SHARDS.pop(folder, None)
    if shard is not None:
        shard.environment.close()


def open_unchecked(folder: Path) -> OpenShard | None:
    """Open a shard for reading even if it is cut short; reading what is gone kills the process.

    Closes it first if this process, or the one it was forked from, has it open.

    Raises:
        ValueError: it is damaged so much that LMDB notices.
    """
    close_shard(folder)
    return _open_readonly(folder, check_length=False)


def _open_readonly(folder: Path, check_length: bool = True) -> OpenShard | None:
    file = folder / DATA_FILE
    if _never_began(folder):
        return None
    try:
        environment = lmdb.open(
            str(folder),
            readonly=True,
            lock=False,  # committed token pages never change, and no limit on the number of readers
            readahead=False,  # clips are random: reading ahead would fetch pages that nobody wants
            max_dbs=2,
            map_size=2 * file.stat().st_size + 2**30,  # room to grow, should a writer be at work
        )
    except lmdb.Error as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if check_length:
        _check_length(environment, file)
    try:
        videos = environment.open_db(b"videos", create=False)
        tokens = environment.open_db(b"tokens", create=False)
    except lmdb.NotFoundError:  # its writer was killed before the first commit
        environment.close()
        return None
    except lmdb.Error as error:
        environment.close()
        raise ValueError(f"{file} is damaged: {error}") from error
    return OpenShard(os.getpid(), False, file.stat().st_ino, environment, videos, tokens)


def missing_bytes(folder: Path, shard: OpenShard) -> int:
    """How much is missing at the end of a shard's file, 0 = nothing."""
    return _missing_bytes(shard.environment, folder / DATA_FILE)


def _missing_bytes(environment: lmdb.Environment, file: Path) -> int:
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    return max(expected - file.stat().st_size, 0)


def _check_length(environment: lmdb.Environment, file: Path) -> None:
    """Reading behind the end of the file would kill the process, so refuse a shortened one."""
    missing = _missing_bytes(environment, file)
    if missing:
        environment.close()
        raise ValueError(
            f"{file} is cut short: its last {missing} bytes are missing; copy it again, or see "
            "tools/extract_tokens.py --verify"
        )
