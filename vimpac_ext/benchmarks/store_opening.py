"""Opening a token store of very many videos: time and memory, with cold files."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vimpac_ext.benchmarks.result import Result
from vimpac_ext.data import StoreMeta, TokenStore
from vimpac_ext.data.store_format import (
    INDEX_FILE,
    META_FILE,
    VideoHeader,
    pack_frames,
    shard_name,
    token_key,
    video_key,
    view_checksum,
)
from vimpac_ext.data.store_index import index_record
from vimpac_ext.data.store_shards import close_shard, open_shard_for_writing

_META = StoreMeta("Random", "Random:0", 8192, 8, 2.0, ("128center128",), (1, 1))


def measure_store_opening(
    folder: Path, num_videos: int = 1_200_000, num_shards: int = 16, num_runs: int = 3
) -> Result:
    """Time and memory of opening a synthetic store, in a fresh process each time.

    Args:
        folder: where the store is written, about 150 bytes a video.
        num_videos: each of one frame of one token: only their number matters here.
        num_shards: that they are spread over.
        num_runs: each number is the median of so many.
    """
    _write_store(folder, num_videos, num_shards)
    cold, warm = [], []
    for _ in range(num_runs):
        _forget_files(folder)
        cold.append(_in_fresh_process(folder, num_videos))
        warm.append(_in_fresh_process(folder, num_videos))
    rows = {}
    for name, runs in (("cold", cold), ("warm", warm)):
        for position, quantity in enumerate(_QUANTITIES):
            rows[f"{name}: {quantity}"] = statistics.median(run[position] for run in runs)
    return Result(f"opening a token store of {num_videos:,} videos in {num_shards} shards", rows)


_QUANTITIES = (
    "seconds to open",
    "MB read from disk while opening",
    "MB of memory more after opening",
    "MB of memory more at the peak",
    "seconds to find and read one clip first",
)


def _open_and_read(folder: Path, num_videos: int) -> tuple[float, ...]:
    """What `_QUANTITIES` says."""
    memory, disk, start = _memory_mb(), _read_mb(), time.perf_counter()
    store = TokenStore(folder)
    opened = time.perf_counter()
    disk_after, memory_after, peak = _read_mb(), _memory_mb(), _memory_mb("VmHWM")
    assert len(store) == num_videos
    start_read = time.perf_counter()
    assert store.read(_name(num_videos // 2), _META.views[0], [0]).shape == (1, 1, 1)
    read = time.perf_counter() - start_read
    return opened - start, disk_after - disk, memory_after - memory, peak - memory, read


def _in_fresh_process(folder: Path, num_videos: int) -> tuple[float, ...]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_open_and_read, (folder, num_videos))


def _memory_mb(what: str = "VmRSS") -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise OSError(f"this system does not tell {what}")


def _read_mb() -> float:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes")) / 1e6


def _forget_files(folder: Path) -> None:
    """Asks the system to drop what it has in memory of the files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _name(number: int) -> str:
    return f"some/folder/video_{number:07}"


def _write_store(folder: Path, num_videos: int, num_shards: int) -> None:
    """As the writer would, but a whole shard in one transaction."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META_FILE).write_text(_META.to_json())
    value = pack_frames(np.zeros((1, 1, 1), int), _META)
    for shard_id in range(num_shards):
        shard_folder = folder.resolve() / shard_name(shard_id)
        shard_folder.mkdir()
        shard = open_shard_for_writing(shard_folder, map_size=2**32)
        with shard.environment.begin(write=True) as transaction:
            for number, (header, _) in enumerate(_videos(shard_id, num_videos, num_shards, value)):
                transaction.put(video_key(number), header.pack(), db=shard.videos, append=True)
                transaction.put(token_key(number, 0), value, db=shard.tokens, append=True)
        close_shard(shard_folder)
        records = (record for _, record in _videos(shard_id, num_videos, num_shards, value))
        (shard_folder / INDEX_FILE).write_bytes(b"".join(records))


def _videos(
    shard_id: int, num_videos: int, num_shards: int, value: bytes
) -> Iterator[tuple[VideoHeader, bytes]]:
    for video in range(shard_id, num_videos, num_shards):
        video_id = _name(video).encode()
        header = VideoHeader(1, (view_checksum(value, video_id),), video_id)
        yield header, index_record(video_id, 1)
