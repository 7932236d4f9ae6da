"""Statistics of token stores: size, lengths, and how the vocabulary is used."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vimpac_ext.data.bad_videos import BadVideo, read_bad_videos
from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.token_store import TokenStore


@dataclass
class ViewStatistics:
    """Use of the vocabulary in one view of all videos.

    Attributes:
        codes_used: codes that occur at all.
        perplexity: e to the entropy of the codes' frequencies, 1 (always the same code) to V.
    """

    codes_used: int
    perplexity: float


@dataclass
class StoreStatistics:
    """What is in a token store.

    Attributes:
        meta: what the tokens are.
        num_videos: different ones.
        num_doubles: videos that several shards have; they count once.
        num_shards: writers' shards.
        num_frames: of all videos, once for all views.
        frames_per_video: shortest, median and longest video.
        num_bytes: of all files.
        views: use of the vocabulary, by view, and by "all views".
        bad_videos: listed as unreadable and not in the store.
    """

    meta: StoreMeta
    num_videos: int
    num_doubles: int
    num_shards: int
    num_frames: int
    frames_per_video: tuple[int, int, int]
    num_bytes: int
    views: dict[str, ViewStatistics] = field(default_factory=dict)
    bad_videos: list[BadVideo] = field(default_factory=list)

    @property
    def hours(self) -> float:
        """Length of all videos together."""
        return self.num_frames / self.meta.fps / 3600


def store_statistics(folder: str | Path, progress: bool = False) -> StoreStatistics:
    """Read all tokens of a store and count them.

    Needs memory for the index (36 bytes a video) and one view of one video.

    Args:
        folder: of the store.
        progress: show a progress bar when on a terminal.

    Raises:
        ValueError: the folder is not a token store, or a video is damaged (it is named).
    """
    store = TokenStore(folder)
    counts = np.zeros((len(store.meta.views), store.meta.vocab_size), np.int64)
    videos = tqdm(
        store.iterate(), "reading", len(store), unit="video", disable=None if progress else True
    )
    for _, location in videos:
        frames = np.arange(location.num_frames)
        for position, view in enumerate(store.meta.views):
            tokens = store.read_at(location, view, frames)
            counts[position] += np.bincount(tokens.ravel(), minlength=store.meta.vocab_size)
    lengths = store.frame_counts()
    extent = (lengths.min(), np.median(lengths), lengths.max()) if len(lengths) else (0, 0, 0)
    return StoreStatistics(
        meta=store.meta,
        num_videos=len(store),
        num_doubles=store.num_doubles,
        num_shards=store.num_shards,
        num_frames=int(lengths.sum()),
        frames_per_video=(int(extent[0]), int(extent[1]), int(extent[2])),
        num_bytes=sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()),
        views={
            **{view: _use(counts[i]) for i, view in enumerate(store.meta.views)},
            "all views": _use(counts.sum(axis=0)),
        },
        bad_videos=remaining_bad_videos(store),
    )


def remaining_bad_videos(store: TokenStore) -> list[BadVideo]:
    """What the writers of a store listed as unreadable and nobody has added since."""
    listed: dict[str, BadVideo] = {}
    for file in sorted(store.folder.glob("bad_videos*.jsonl")):
        listed.update(read_bad_videos(file))
    present = store.locate_all(list(listed))[:, 0] >= 0
    return [bad for bad, found in zip(listed.values(), present, strict=True) if not found]


def _use(counts: np.ndarray) -> ViewStatistics:
    used = counts[counts > 0]
    if len(used) == 0:
        return ViewStatistics(0, 0.0)
    shares = used / used.sum()
    return ViewStatistics(len(used), math.exp(-float((shares * np.log(shares)).sum())))
