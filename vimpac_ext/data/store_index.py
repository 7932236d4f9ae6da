"""The compact index of a token store: which shard and number a video id has, and its length.

``index.bin`` of a shard is an array of 24-byte records (`INDEX_DTYPE`), one per committed video in
commit order, so that its position is the video's number. It has no ids, only their 128-bit
digests: 1.2 million videos are 29 MB, read and sorted in a fraction of a second. It is appended
after each commit; what a killed writer left out is read from the LMDB instead.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vimpac_ext.data.store_format import (
    INDEX_FILE,
    VideoHeader,
    encode_id,
    shard_folders,
    video_key,
)
from vimpac_ext.data.store_shards import OpenShard, open_shard

INDEX_DTYPE = np.dtype([("key", "<u8"), ("check", "<u8"), ("num_frames", "<u8")])

Records = np.ndarray[Any, np.dtype[np.void]]


class Location(NamedTuple):
    """Where a video is; stays valid when the store grows."""

    shard: int
    number: int
    num_frames: int


def index_record(video_id: bytes, num_frames: int) -> bytes:
    """A video's 24 bytes in ``index.bin``."""
    return hashlib.blake2b(video_id, digest_size=16).digest() + num_frames.to_bytes(8, "little")


def read_index_file(shard_folder: Path) -> Records:
    """The records of ``index.bin`` as it is; an unfinished last record is left out."""
    file = shard_folder / INDEX_FILE
    content = file.read_bytes() if file.is_file() else b""
    return np.frombuffer(content, INDEX_DTYPE, count=len(content) // INDEX_DTYPE.itemsize)


def iterate_headers(shard: OpenShard, num_views: int, start: int = 0) -> Iterable[VideoHeader]:
    """Headers of the committed videos from number ``start`` on, in order."""
    with shard.environment.begin(db=shard.videos) as transaction:
        cursor = transaction.cursor()
        if cursor.set_range(video_key(start)):
            for value in cursor.iternext(keys=False):
                yield VideoHeader.unpack(value, num_views)


def shard_records(shard_folder: Path, num_views: int) -> Records:
    """Index of everything committed in a shard, completed from its LMDB where the file lags.

    A file that does not belong to the LMDB (its last record differs, or it has holes after a
    power failure) is ignored and the whole index is made from the LMDB.
    """
    shard = open_shard(shard_folder)
    if shard is None:
        return np.empty(0, INDEX_DTYPE)
    with shard.environment.begin(db=shard.videos) as transaction:
        num_videos = transaction.stat(shard.videos)["entries"]
        records = read_index_file(shard_folder)[:num_videos]
        if len(records):
            last = VideoHeader.unpack(transaction.get(video_key(len(records) - 1), b""), num_views)
            matches = records[-1].tobytes() == index_record(last.video_id, last.num_frames)
            if not (matches and records["num_frames"].all()):
                records = records[:0]
    if len(records) == num_videos:
        return records
    missing = iterate_headers(shard, num_views, start=len(records))
    content = b"".join(index_record(header.video_id, header.num_frames) for header in missing)
    return np.concatenate([records, np.frombuffer(content, INDEX_DTYPE)])


class StoreIndex:
    """Finds videos in all shards of a store.

    A video that several shards have (they worked on overlapping lists) is taken from the first.
    """

    def __init__(self, shards: Mapping[int, Records]) -> None:
        """Sort the records of all shards, given by shard id, by digest."""
        records = list(shards.values()) or [np.empty(0, INDEX_DTYPE)]
        keys = np.concatenate([r["key"] for r in records])
        order = np.argsort(keys, kind="stable")
        keys, checks = keys[order], np.concatenate([r["check"] for r in records])[order]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]) | (checks[1:] != checks[:-1])
        lengths = [len(r) for r in records]
        self._keys, self._checks = keys[first], checks[first]
        self._shards = np.repeat(np.array([*shards] or [0], np.int32), lengths)[order][first]
        numbers = np.concatenate([np.arange(n, dtype=np.uint32) for n in lengths])
        self._numbers = numbers[order][first]
        frames = np.concatenate([r["num_frames"].astype(np.uint32) for r in records])
        self._num_frames = frames[order][first]

    @classmethod
    def load(cls, store_folder: Path, num_views: int) -> "StoreIndex":
        """Read the index of every shard in a store."""
        shards = shard_folders(store_folder)
        return cls({i: shard_records(path, num_views) for i, path in shards.items()})

    def __len__(self) -> int:
        return len(self._keys)

    def locate(self, video_ids: Sequence[str]) -> np.ndarray:
        """Find many videos at once.

        Returns:
            int64 (N, 3): the fields of `Location`, all -1 for a video that is not in the store.
            (Two ids that share 64 bits of their digest would count as missing, never be mixed up.)
        """
        content = b"".join(index_record(encode_id(video_id), 0) for video_id in video_ids)
        wanted = np.frombuffer(content, INDEX_DTYPE)
        locations = np.full((len(wanted), 3), -1, np.int64)
        if len(self) == 0:
            return locations
        position = np.searchsorted(self._keys, wanted["key"]).clip(max=len(self) - 1)
        found = (self._keys[position] == wanted["key"]) & (
            self._checks[position] == wanted["check"]
        )
        position = position[found]
        columns = (self._shards[position], self._numbers[position], self._num_frames[position])
        locations[found] = np.stack(columns, axis=1)
        return locations

    def numbers_by_shard(self) -> dict[int, np.ndarray]:
        """For every shard the sorted numbers of the videos that are taken from it."""
        shards = np.unique(self._shards)
        return {int(i): np.sort(self._numbers[self._shards == i]) for i in shards}
