"""The LMDB environments of token stores that this process has open.

LMDB refuses to open a path twice in one process, even in a child that inherited it by fork, and an
environment must not be used across a fork. So all readers and the writer of a shard share one
entry here, which belongs to one process; a forked child opens its own at its first read.
"""

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from vimpac_ext.data.store_format import DATA_FILE


class OpenShard(NamedTuple):
    """An LMDB environment and its two databases."""

    pid: int
    writable: bool
    inode: int
    environment: lmdb.Environment
    videos: Any
    tokens: Any


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


def open_shard_for_writing(folder: Path, map_size: int) -> OpenShard:
    """Open or create a shard for its one writer; readers in this process share it.

    Raises:
        ValueError: this process is writing the shard already, or the LMDB file is damaged.
    """
    with _CHANGING:
        shard = _OPEN_SHARDS.get(folder)
        if shard is not None and shard.pid == os.getpid() and shard.writable:
            raise ValueError(f"{folder} has a writer in this process already; close it first")
        _close(folder)
        try:
            environment = lmdb.open(str(folder), map_size=map_size, max_dbs=2)
        except lmdb.Error as error:
            raise ValueError(f"{folder / DATA_FILE} is damaged: {error}") from error
        _check_length(environment, folder / DATA_FILE)
        videos, tokens = environment.open_db(b"videos"), environment.open_db(b"tokens")
        inode = (folder / DATA_FILE).stat().st_ino
        shard = OpenShard(os.getpid(), True, inode, environment, videos, tokens)
        _OPEN_SHARDS[folder] = shard
        return shard


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


def _open_readonly(folder: Path) -> OpenShard | None:
    file = folder / DATA_FILE
    if not file.is_file() or file.stat().st_size == 0:
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
    _check_length(environment, file)
    try:
        videos = environment.open_db(b"videos", create=False)
        tokens = environment.open_db(b"tokens", create=False)
    except lmdb.NotFoundError:  # its writer was killed before the first commit
        environment.close()
        return None
    return OpenShard(os.getpid(), False, file.stat().st_ino, environment, videos, tokens)


def _check_length(environment: lmdb.Environment, file: Path) -> None:
    """Reading behind the end of the file would kill the process, so refuse a shortened one."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    num_bytes = file.stat().st_size
    if num_bytes < expected:
        environment.close()
        raise ValueError(
            f"{file} is cut short: {num_bytes} bytes instead of {expected}; copy it again"
        )
