"""Taking damaged videos out of a token store, so that the next extraction makes them again."""

import os
from contextlib import ExitStack
from pathlib import Path

from vimpac_ext.data.store_check import StoreCheck
from vimpac_ext.data.store_format import (
    INDEX_FILE,
    VideoHeader,
    read_meta,
    shard_folders,
    token_key,
    video_key,
)
from vimpac_ext.data.store_index import index_record
from vimpac_ext.data.store_shards import (
    OpenShard,
    close_shard,
    commit_video,
    lock_for_writing,
    open_shard_for_writing,
    open_unchecked,
)


def repair_store(folder: str | Path, check: StoreCheck) -> list[Path]:
    """Leave out what `check_store` found damaged.

    A shard with damage is replaced by a copy of its whole videos; the old one is kept beside it
    under another name. A wrong index is removed: it is made from the LMDB again.

    Args:
        folder: of the store.
        check: what `check_store` found, with nothing written since.

    Returns:
        The damaged shards that were put aside; delete them once the store is whole again.

    Raises:
        ValueError: a process is writing the store.
        OSError: there is no room for the copy; the store is as before.
    """
    folder, put_aside = Path(folder).resolve(), []
    num_views = len(read_meta(folder).views)
    for shard_id, shard_folder in shard_folders(folder).items():
        found = [problem for problem in check.problems if problem.shard_id == shard_id]
        if not found:
            continue
        with lock_for_writing(shard_folder):
            close_shard(shard_folder)
            if all(problem.in_index for problem in found):
                (shard_folder / INDEX_FILE).unlink()
                continue
            damaged = {problem.number for problem in found if not problem.in_index}
            whole = [i for i in range(check.num_read[shard_id]) if i not in damaged]
            copy = _free_name(folder, f".repaired_{shard_folder.name}")
            _copy_videos(shard_folder, copy, whole, num_views)
            put_aside.append(_free_name(folder, f"damaged_{shard_folder.name}"))
            shard_folder.rename(put_aside[-1])
            copy.rename(shard_folder)
    return put_aside


def _free_name(folder: Path, name: str) -> Path:
    candidates = (folder / f"{name}{suffix}" for suffix in ("", *(f"_{i}" for i in range(1, 1000))))
    return next(path for path in candidates if not path.exists())


def _copy_videos(source_folder: Path, target_folder: Path, numbers: list[int], views: int) -> None:
    """Copy some videos of a shard, as they are, to a new one."""
    target_folder.mkdir()
    with ExitStack() as stack:
        target = open_shard_for_writing(target_folder, map_size=2**30, sync=False)
        stack.callback(close_shard, target_folder)
        index = stack.enter_context((target_folder / INDEX_FILE).open("wb"))
        source = open_unchecked(source_folder) if numbers else None
        if source is not None:
            stack.callback(source.environment.close)
            for number in numbers:
                index.write(_copy_video(source, target, number, views))
        target.environment.sync(True)
        index.flush()
        os.fsync(index.fileno())


def _copy_video(source: OpenShard, target: OpenShard, number: int, num_views: int) -> bytes:
    """Copy a video; returns its record in the index."""
    with source.environment.begin(buffers=True) as transaction:
        packed = bytes(transaction.get(video_key(number), b"", db=source.videos))
        keys = [token_key(number, view) for view in range(num_views)]
        values = [transaction.get(key, b"", db=source.tokens) for key in keys]
        commit_video(target, packed, values)
    header = VideoHeader.unpack(packed, num_views)
    return index_record(header.video_id, header.num_frames)
