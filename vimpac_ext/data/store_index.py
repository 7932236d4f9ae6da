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
from vimpac_ext.data.store_shards import OpenShard, open_shard, writer_of

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

    Raises:
        ValueError: the LMDB is damaged.
    """
    shard = open_shard(shard_folder)
    if shard is None:
        return np.empty(0, INDEX_DTYPE)
    with shard.errors(shard_folder):
        with shard.environment.begin(db=shard.videos) as transaction:
            num_videos = transaction.stat(shard.videos)["entries"]
            records = read_index_file(shard_folder)[:num_videos]
            if len(records):
                value = transaction.get(video_key(len(records) - 1), b"")
                last = VideoHeader.unpack(value, num_views)
                matches = records[-1].tobytes() == index_record(last.video_id, last.num_frames)
                if not (matches and records["num_frames"].all()):
                    records = records[:0]
        if len(records) == num_videos:
            return records
        missing = iterate_headers(shard, num_views, start=len(records))
        content = b"".join(index_record(header.video_id, header.num_frames) for header in missing)
    return np.concatenate([records, np.frombuffer(content, INDEX_DTYPE)])


def records_beside_writers(shard_folder: Path, num_views: int) -> Records:
    """Index of a shard that another process may be writing at this moment.

    LMDB's pages must not be read behind the back of a writer, so then the index file is taken as
    it is, which lags by one video at most. Without a writer nothing that a killed one left out of
    the file is missed.
    """
    if writer_of(shard_folder) == "another process":
        return read_index_file(shard_folder)
    return shard_records(shard_folder, num_views)


class StoreIndex:
    """Finds videos in all shards of a store.

    A video that several shards have (they worked on overlapping lists) is taken from the first.
    """

    def __init__(self, shards: Mapping[int, Records]) -> None:
        """Sort the records of all shards, given by shard id, by digest."""
        records = list(shards.values()) or [np.empty(0, INDEX_DTYPE)]
        self._shard_ids = np.array([*shards] or [0], np.int64)
        self._ends = np.cumsum([len(r) for r in records])  # of the shards, in `_records`
        self._records = records[0] if len(records) == 1 else np.concatenate(records)
        keys = np.ascontiguousarray(self._records["key"])
        order = np.argsort(keys)
        ordered = keys[order]
        if (ordered[1:] == ordered[:-1]).any():
            order = self._without_doubles(keys)
            ordered = keys[order]
        self._keys, self._positions = ordered, order.astype(np.uint32)

    def _without_doubles(self, keys: np.ndarray) -> np.ndarray:
        """The sorting order of the keys with the first of equal records only."""
        order = np.argsort(keys, kind="stable")
        first = np.ones(len(order), bool)
        ordered = self._records[order]
        first[1:] = (ordered["key"][1:] != ordered["key"][:-1]) | (
            ordered["check"][1:] != ordered["check"][:-1]
        )
        return order[first]

    @classmethod
    def load(cls, store_folder: Path, num_views: int) -> "StoreIndex":
        """Read the index of every shard in a store."""
        shards = shard_folders(store_folder)
        return cls({i: shard_records(path, num_views) for i, path in shards.items()})

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_doubles(self) -> int:
        """Committed videos that another shard has, too."""
        return len(self._records) - len(self._keys)

    def frame_counts(self) -> np.ndarray:
        """Lengths of all videos: uint64 (N,), in no particular order."""
        return self._records["num_frames"][self._positions]

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
        rank = np.searchsorted(self._keys, wanted["key"]).clip(max=len(self) - 1)
        positions = self._positions[rank].astype(np.int64)
        candidates = self._records[positions]
        found = (candidates["key"] == wanted["key"]) & (candidates["check"] == wanted["check"])
        shards, numbers = self._split(positions[found])
        frames = candidates["num_frames"][found].astype(np.int64)
        locations[found] = np.stack([self._shard_ids[shards], numbers, frames], axis=1)
        return locations

    def numbers_by_shard(self) -> dict[int, np.ndarray]:
        """For every shard the sorted numbers of the videos that are taken from it."""
        shards, numbers = self._split(np.sort(self._positions).astype(np.int64))
        bounds = np.searchsorted(shards, np.arange(len(self._shard_ids) + 1))
        return {
            int(shard_id): numbers[bounds[i] : bounds[i + 1]]
            for i, shard_id in enumerate(self._shard_ids)
            if bounds[i] < bounds[i + 1]
        }

    def _split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of the shards, and the numbers in them, of positions in `_records`."""
        shards = np.searchsorted(self._ends, positions, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return shards, positions - starts[shards]


class CommittedIds:
    """The video ids that are in a store, as digests to keep it small."""

    def __init__(self, shards: Iterable[Records]) -> None:
        """Collect the videos of all shards' indexes."""
        self._index = StoreIndex(dict(enumerate(shards)))
        self._added: set[bytes] = set()

    def __contains__(self, video_id: str) -> bool:
        added = index_record(encode_id(video_id), 0)[:16] in self._added
        return added or bool(self._index.locate([video_id])[0, 0] >= 0)

    def __len__(self) -> int:
        return len(self._index) + len(self._added)

    def contains(self, video_ids: Sequence[str]) -> list[bool]:
        """Which of many videos are in the store."""
        found: list[bool] = (self._index.locate(video_ids)[:, 0] >= 0).tolist()
        if self._added:
            digests = (index_record(encode_id(video_id), 0)[:16] for video_id in video_ids)
            found = [a or b in self._added for a, b in zip(found, digests, strict=True)]
        return found

    def add(self, video_id: str) -> None:
        """Add a video that was committed and was not in the store before."""
        self._added.add(index_record(encode_id(video_id), 0)[:16])
