"""Conversion: token folders of the authors' to one token store, checked clip by clip."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vimpac_ext.data import OriginalTokens, TokenStore, TokenStoreWriter, write_video_list
from vimpac_ext.data.bad_videos import BadVideo

_logger = logging.getLogger(__name__)


@dataclass
class ConversionSummary:
    """What a conversion did.

    Attributes:
        num_videos: videos in any of the folders.
        num_already_done: of these, in the store before.
        num_converted: of these, added now.
        num_verified: of these, read back from the store and found equal.
        bad_videos: those that are damaged, or missing in a view; also listed in the store.
        shortened: video -> frames in each view, where these differ; the store has the frames that
            all views have.
        seconds: from start to end.
    """

    num_videos: int = 0
    num_already_done: int = 0
    num_converted: int = 0
    num_verified: int = 0
    bad_videos: list[BadVideo] = field(default_factory=list)
    shortened: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.num_videos} videos, {self.num_already_done} done before, "
            f"{self.num_converted} converted now in {self.seconds:.1f} s, "
            f"{self.num_verified} verified, {len(self.shortened)} shortened, "
            f"{len(self.bad_videos)} failed"
        ]
        for video_id, lengths in self.shortened.items():
            frames = ", ".join(f"{number} in {view}" for view, number in lengths.items())
            lines.append(f"  shortened to {min(lengths.values())} frames: {video_id} ({frames})")
        lines += [f"  failed: {bad.video_id}: {bad.reason}" for bad in self.bad_videos]
        return "\n".join(lines)


def convert_tokens(
    sources: Sequence[str | Path],
    store_folder: str | Path,
    verify: bool = True,
    progress: bool = True,
) -> ConversionSummary:
    """Copy the tokens of the authors' folders to a token store, which is created or continued.

    Every video is committed whole, with all its views. One that cannot be read, or that a view
    lacks, is listed in the store's ``bad_videos.jsonl`` and tried again the next time. The labels
    go to ``videos.csv`` in the store.

    Args:
        sources: see `vimpac_ext.data.original_folders.find_token_folders`; each view once.
        store_folder: of the token store.
        verify: read every clip back, also those of an earlier run, and compare it.
        progress: show progress bars when on a terminal.

    Raises:
        ValueError: the folders do not belong together, the store was made with other settings, or
            a clip in the store is not that of the folders.
    """
    start = time.perf_counter()
    tokens = OriginalTokens(list(sources))
    if any(Path(store_folder).resolve() == folder for folder in tokens.paths):
        raise ValueError(f"{store_folder} is a source, choose another folder for the token store")
    ids = tokens.video_ids
    summary = ConversionSummary(num_videos=len(ids) + len(tokens.incomplete))
    with TokenStoreWriter(store_folder, tokens.meta) as writer:
        summary.num_already_done = sum(video_id in writer.done for video_id in ids)
        for video_id, views in tokens.incomplete.items():
            _fail(summary, writer, tokens, video_id, f"missing in the view {', '.join(views)}")
        for video_id in _bar(ids, "converting", progress):
            if video_id in writer.done:
                continue
            try:
                tokens.label(video_id)
                arrays = _common_frames(tokens, video_id)
            except ValueError as error:
                _fail(summary, writer, tokens, video_id, str(error))
            else:
                writer.add(video_id, arrays)
                summary.num_converted += 1
    _finish(tokens, TokenStore(store_folder), summary, verify, progress)
    summary.seconds = time.perf_counter() - start
    return summary


def _common_frames(tokens: OriginalTokens, video_id: str) -> dict[str, np.ndarray]:
    """View -> int64 (frames, h, w), as many frames as all views have."""
    location = tokens.locate(video_id)
    if location.num_frames == 0:
        raise ValueError(f"video {video_id!r} has no frames")
    frames = range(location.num_frames)
    return {view: tokens.read_at(location, view, frames) for view in tokens.meta.views}


def _finish(
    tokens: OriginalTokens,
    store: TokenStore,
    summary: ConversionSummary,
    verify: bool,
    progress: bool,
) -> None:
    """Compare the store with the folders and write the list of labels."""
    labels = {}
    failed = {bad.video_id for bad in summary.bad_videos}
    done = [video_id for video_id in tokens.video_ids if video_id not in failed]
    for video_id in _bar(done, "verifying" if verify else "labels", progress):
        labels[video_id] = tokens.label(video_id)
        location = tokens.locate(video_id)
        lengths = {view: tokens.num_frames_in(view, location) for view in tokens.meta.views}
        if len(set(lengths.values())) > 1:
            summary.shortened[video_id] = lengths
            _logger.warning("video %r has different lengths in its views: %s", video_id, lengths)
        if verify:
            _require_equal(tokens, store, video_id)
            summary.num_verified += 1
    if tokens.is_labelled:
        write_video_list(store.folder, labels)


def _require_equal(tokens: OriginalTokens, store: TokenStore, video_id: str) -> None:
    store.verify(video_id)
    for view, expected in _common_frames(tokens, video_id).items():
        found = store.read(video_id, view, range(store.num_frames(video_id)))
        if not np.array_equal(found, expected):
            raise ValueError(
                f"video {video_id!r}, view {view}: {store.folder} has other tokens than "
                f"{tokens.folder}. Was the store made from other folders? Delete it and start again"
            )


def _fail(
    summary: ConversionSummary,
    writer: TokenStoreWriter,
    tokens: OriginalTokens,
    video_id: str,
    reason: str,
) -> None:
    bad = BadVideo(video_id, tokens.folder, reason)
    summary.bad_videos.append(bad)
    writer.mark_bad(*bad)
    _logger.warning("not converted: %s: %s", video_id, reason)


def _bar(video_ids: Sequence[str], what: str, progress: bool) -> tqdm:
    # disable=None: only on a terminal
    return tqdm(video_ids, what, unit="video", disable=None if progress else True)
