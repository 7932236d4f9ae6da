"""Writing token stores, one whole video at a time."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import lmdb
import numpy as np

from vimpac_ext.data.bad_videos import (
    BadVideo,
    append_bad_video,
    read_bad_videos,
    write_bad_videos,
)
from vimpac_ext.data.original_folders import list_token_folders
from vimpac_ext.data.store_format import (
    DATA_FILE,
    INDEX_FILE,
    META_FILE,
    StoreMeta,
    VideoHeader,
    encode_id,
    pack_frames,
    read_meta,
    shard_folders,
    shard_name,
    view_checksum,
)
from vimpac_ext.data.store_index import (
    INDEX_DTYPE,
    CommittedIds,
    Records,
    index_record,
    records_beside_writers,
    shard_records,
)
from vimpac_ext.data.store_shards import (
    close_shard,
    commit_video,
    lock_for_writing,
    open_shard_for_writing,
)
from vimpac_ext.files import atomic_write

logger = logging.getLogger(__name__)


class TokenStoreWriter:
    """Adds videos to one shard of a token store, which it creates or continues.

    A video is committed whole, in one durable transaction, or not at all: a process killed at any
    time loses only the video it was at, and the next writer continues. Use it as a context
    manager, or call `close`.

    Attributes:
        meta: description of the store.
        done: ids of all committed videos, those of other shards included (as they were when this
            writer was opened); knows ``in`` and ``len``.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: StoreMeta,
        shard_id: int = 0,
        num_shards: int = 1,
        map_size: int = 2**30,
    ) -> None:
        """Open or create the store and lock the shard.

        Args:
            folder: of the store.
            meta: what its tokens are; must equal that of an existing store.
            shard_id: which of the writers working side by side this is.
            num_shards: how many writers work side by side.
            map_size: bytes that the LMDB may grow to before its map is doubled.

        Raises:
            ValueError: the store was made with other settings (all are named), or is being
                written by another process, or the shard does not exist, or the folder is or has a
                token folder of the authors'.
        """
        if not 0 <= shard_id < num_shards:
            raise ValueError(f"shard_id {shard_id} is not in 0..{num_shards - 1}")
        self.folder = Path(folder).resolve()
        self.meta = meta
        _refuse_token_folders(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        _create_or_check_meta(self.folder, meta)
        self._shard_folder = self.folder / shard_name(shard_id)
        self._shard_folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(lock_for_writing(self._shard_folder))
            self._shard = open_shard_for_writing(self._shard_folder, map_size)
            stack.callback(close_shard, self._shard_folder)
            records = shard_records(self._shard_folder, len(meta.views))
            index_file = self._shard_folder / INDEX_FILE
            _repair_index_file(index_file, records)
            self._index_file = stack.enter_context(index_file.open("r+b", buffering=0))
            others = [path for i, path in shard_folders(self.folder).items() if i != shard_id]
            num_views = len(meta.views)
            self.done = CommittedIds(
                [records, *(records_beside_writers(path, num_views) for path in others)]
            )
            name = "bad_videos" if num_shards == 1 else f"bad_videos_{shard_id:05d}"
            self._bad_file = self.folder / f"{name}.jsonl"
            self._bad, self._list_is_stale = read_bad_videos(self._bad_file), False
            write_bad_videos(self._bad_file, self._bad.values())
            stack.callback(self._tidy_bad_videos)
            self._open = stack.pop_all()

    def __enter__(self) -> "TokenStoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, video_id: str, tokens: Mapping[str, np.ndarray]) -> None:
        """Commit a video.

        Args:
            video_id: not in the store yet.
            tokens: integers (F, h, w) for every view of the store.

        Raises:
            ValueError: the video is in the store already, views are missing or unknown, an array
                has a wrong shape or type, or a token is outside the vocabulary.
            OSError: writing failed, for example because the disk is full; the store is intact.
        """
        if not video_id or video_id in self.done:
            reason = "is in the store already" if video_id else "is no valid id"
            raise ValueError(f"video {video_id!r} {reason} ({self.folder})")
        values = self._checked(video_id, tokens)
        num_frames = len(tokens[self.meta.views[0]])
        encoded_id = encode_id(video_id)
        checksums = tuple(view_checksum(value, encoded_id) for value in values)
        header = VideoHeader(num_frames, checksums, encoded_id)
        with self._explained(f"video {video_id!r}"):
            number = commit_video(self._shard, header.pack(), values)
            self.done.add(video_id)
            # Should this fail, the next writer makes the record from the LMDB.
            record = index_record(header.video_id, num_frames)
            os.pwrite(self._index_file.fileno(), record, number * INDEX_DTYPE.itemsize)
        if self._bad.pop(video_id, None):
            self._list_is_stale = True

    def mark_bad(self, video_id: str, path: str, reason: str) -> None:
        """List a video that cannot be read in ``bad_videos.jsonl``; a later `add` unlists it."""
        self._list_is_stale |= video_id in self._bad
        self._bad[video_id] = BadVideo(video_id, path, reason)
        with self._explained(f"the bad video {video_id!r}"):
            append_bad_video(self._bad_file, self._bad[video_id])

    def close(self) -> None:
        """Unlock the shard; the list of bad videos loses those that were added since."""
        self._open.close()

    def _checked(self, video_id: str, tokens: Mapping[str, np.ndarray]) -> list[bytes]:
        """The values to store, in the order of the views."""
        if set(tokens) != set(self.meta.views):
            raise ValueError(
                f"video {video_id!r} has views {sorted(tokens)}, the store needs "
                f"{sorted(self.meta.views)}"
            )
        num_frames = len(tokens[self.meta.views[0]])
        shape = (num_frames, *self.meta.grid)
        values = []
        for view in self.meta.views:
            array, where = tokens[view], f"video {video_id!r}, view {view}"
            if num_frames == 0 or array.shape != shape or array.dtype.kind not in "iu":
                raise ValueError(
                    f"{where}: {array.dtype} array of shape {array.shape}; expected integers of "
                    f"shape {('frames >= 1', *self.meta.grid)}, as many frames in every view"
                )
            if array.min() < 0 or array.max() >= self.meta.vocab_size:
                raise ValueError(
                    f"{where}: tokens {array.min()}..{array.max()} are outside the vocabulary "
                    f"0..{self.meta.vocab_size - 1}"
                )
            values.append(pack_frames(array, self.meta))
        return values

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Say what an error in writing means.

        Raises:
            OSError: in place of LMDB's and the system's own.
        """
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise OSError(
                f"{what} could not be written to {self.folder} ({error}): is the disk full? "
                f"The {len(self.done)} videos in the store are safe; start again to continue"
            ) from error

    def _tidy_bad_videos(self) -> None:
        """Drop videos that were added since, and all lines but the last of each, from the list."""
        if not self._list_is_stale:
            return
        try:
            write_bad_videos(self._bad_file, self._bad.values())
        except OSError as error:  # a full disk, most likely: must not hide what closed the writer
            logger.warning("%s could not be updated: %s", self._bad_file, error)


def _refuse_token_folders(folder: Path) -> None:
    """Keeps the authors' tokens apart: both kinds in one place could not be told apart by it.

    Raises:
        ValueError: the folder, which is no store yet, is or has one of theirs.
    """
    if (folder / META_FILE).is_file():
        return
    theirs = [
        found.path for found in list_token_folders(folder) if (found.path / DATA_FILE).exists()
    ]
    if theirs:
        what = "is" if theirs[0] == folder else "has"
        raise ValueError(
            f"{folder} {what} a token folder in the authors' format ({theirs[0].name}); nothing "
            "was written. Give another folder for the token store, "
            "or turn theirs into one with tools/convert_tokens.py"
        )


def _create_or_check_meta(folder: Path, meta: StoreMeta) -> None:
    if not (folder / META_FILE).is_file():
        temporary = folder / f".{META_FILE}.{os.getpid()}"
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(meta.to_json())
                stream.flush()
                os.fsync(stream.fileno())
            # Not replace(): of several writers that start together, one may create it.
            with suppress(FileExistsError):
                (folder / META_FILE).hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
    differences = read_meta(folder).differences(meta)
    if differences:
        raise ValueError(
            f"the token store {folder} was made with other settings (store != now): "
            f"{'; '.join(differences)}. Nothing was changed; use another folder"
        )


def _repair_index_file(file: Path, records: Records) -> None:
    """Bring an index file that a killed writer left behind up to date."""
    if not file.is_file() or file.read_bytes() != records.tobytes():
        with atomic_write(file, "wb") as stream:
            stream.write(records.tobytes())
