"""Extraction: every frame of every video, in all spatial views, to a token store."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vimpac_ext.data.bad_videos import BadVideo
from vimpac_ext.data.decode import VideoDecodeError, open_record
from vimpac_ext.data.prefetch import Ended, OverdueError, run_ahead
from vimpac_ext.data.spatial_views import SpatialView, cut_views
from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.token_store_writer import TokenStoreWriter
from vimpac_ext.data.video_file import decode_error
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tasks.extraction_progress import ExtractionProgress
from vimpac_ext.tasks.frame_batcher import Encoder, FrameBatcher

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")
BAD_VIDEO_RULES = ("error", "skip")
_FRAMES_PER_CHUNK = 8  # decoded and cropped at once; bounds the memory for large pictures


@dataclass
class ExtractionSummary:
    """What an extraction did, in one process.

    Attributes:
        shard_id: of this process.
        num_shards: processes side by side.
        num_videos: this process's share of the videos.
        num_already_done: of these, in the store before.
        num_extracted: of these, added now.
        num_frames: decoded and tokenised now; every one of them in all views.
        bad_videos: those that could not be decoded.
        num_workers: decoding threads.
        seconds: from start to end.
        decode_seconds: spent decoding and cropping, summed over the decoding threads.
        tokenizer_seconds: spent in the tokenizer, transfers included.
        write_seconds: spent committing videos to disk.
    """

    shard_id: int = 0
    num_shards: int = 1
    num_videos: int = 0
    num_already_done: int = 0
    num_extracted: int = 0
    num_frames: int = 0
    bad_videos: list[BadVideo] = field(default_factory=list)
    num_workers: int = 1
    seconds: float = 0.0
    decode_seconds: float = 0.0
    tokenizer_seconds: float = 0.0
    write_seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Video frames (not views) per second of wall-clock time."""
        return self.num_frames / self.seconds if self.seconds else 0.0

    @property
    def decoder_share(self) -> float:
        """Part of the time that the decoding threads were busy, on average."""
        return self.decode_seconds / (self.seconds * self.num_workers) if self.seconds else 0.0

    @property
    def tokenizer_share(self) -> float:
        """Part of the time that the tokenizer was busy."""
        return self.tokenizer_seconds / self.seconds if self.seconds else 0.0


def extract(
    records: Sequence[VideoRecord],
    tokenizer: nn.Module,
    store_folder: str | Path,
    fps: float,
    views: Sequence[SpatialView],
    annotation_fingerprint: str = "",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    num_workers: int = 2,
    on_bad_video: str = "error",
    timeout: float = 0.0,
    shard_id: int = 0,
    num_shards: int = 1,
    progress: bool = True,
    summary: ExtractionSummary | None = None,
) -> ExtractionSummary:
    """Tokenise videos into a store, which is created or continued.

    Every video is decoded once for all views, in background threads, and committed whole; what is
    in the store already is not touched. Tokens do not depend on the videos beside (`FrameBatcher`):
    an interrupted extraction, with whatever number of shards, gives those of an unbroken one.

    Args:
        records: videos with unique ids; the same in every process.
        tokenizer: frozen, see `vimpac_ext.registries.TOKENIZERS`; moved to ``device``.
        store_folder: of the token store.
        fps: frames per second to take.
        views: spatial views, of one size.
        annotation_fingerprint: identifies the data set; see `StoreMeta`.
        batch_size: images (frames times views) for the tokenizer at once, whole frames only.
        device: of the tokenizer.
        precision: "fp32", or "bf16" for bfloat16 arithmetic in the tokenizer.
        num_workers: videos decoded at the same time.
        on_bad_video: "error" stops at the first video that cannot be decoded, "skip" goes on.
            Either way it is listed in the store's ``bad_videos.jsonl`` and tried again next time.
        timeout: seconds of decoding after which a video counts as one of these; 0 = no limit.
        shard_id: which of several processes side by side this is.
        num_shards: how many there are; this one takes every ``num_shards``-th video.
        progress: show a progress bar when on a terminal, and log lines when not.
        summary: filled in as the work goes on, for the caller who wants it after an interruption.

    Raises:
        ValueError: an option is out of its range, or the store was made with other settings.
        VideoDecodeError: a video cannot be decoded and ``on_bad_video`` is "error".
        OSError: the store cannot be written, for example because the disk is full.
    """
    _check_options(batch_size, num_workers, precision, on_bad_video, timeout, shard_id, num_shards)
    _check_ids(records)
    summary = summary or ExtractionSummary()
    mine = records[shard_id::num_shards]
    summary.shard_id, summary.num_shards = shard_id, num_shards
    summary.num_videos, summary.num_workers = len(mine), num_workers
    meta = _store_meta(tokenizer, fps, views, annotation_fingerprint, precision)
    start = time.perf_counter()
    with TokenStoreWriter(store_folder, meta, shard_id, num_shards) as writer:
        done = writer.done.contains([record.video_id for record in mine])
        todo = [record for record, is_done in zip(mine, done, strict=True) if not is_done]
        summary.num_already_done = len(mine) - len(todo)
        encoder = Encoder(tokenizer, torch.device(device), meta)
        extraction = _Extraction(todo, writer, encoder, batch_size, summary)
        sources = (partial(decode_chunks, record, fps, views) for record in todo)
        max_queued = 2 * (batch_size // len(views) // _FRAMES_PER_CHUNK) + num_workers + 1
        with ExtractionProgress(len(mine), len(mine) - len(todo), progress) as bar:
            with closing(run_ahead(sources, num_workers, max_queued, timeout)) as events:
                for event in events:
                    if isinstance(event, Ended):
                        extraction.end(event, on_bad_video)
                    else:
                        extraction.batcher.add(event.source, event.item)
                    extraction.commit()
                    summary.tokenizer_seconds = encoder.seconds
                    summary.seconds = time.perf_counter() - start
                    bar.show(summary.num_extracted + len(summary.bad_videos), summary.num_frames)
            extraction.finish()
            bar.show(summary.num_extracted + len(summary.bad_videos), summary.num_frames)
    summary.tokenizer_seconds = encoder.seconds
    summary.seconds = time.perf_counter() - start
    return summary


class _Extraction:
    """The work on one shard: what comes from the decoders goes to the batcher, then to the store.

    Attributes:
        batcher: takes the frames.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        writer: TokenStoreWriter,
        encoder: Encoder,
        batch_size: int,
        summary: ExtractionSummary,
    ) -> None:
        frames_per_batch = max(1, batch_size // len(writer.meta.views))
        self.batcher = FrameBatcher(encoder, frames_per_batch)
        self._records = records
        self._writer = writer
        self._summary = summary

    def end(self, event: Ended, on_bad_video: str) -> None:
        """A video came to its end, or could not be decoded."""
        record = self._records[event.source]
        self._summary.decode_seconds += event.busy_seconds
        try:
            event.check()
        except (VideoDecodeError, OverdueError) as failure:
            late = isinstance(failure, OverdueError)
            error = decode_error(Path(record.path), str(failure)) if late else failure
            self.batcher.discard(event.source)
            self._summary.bad_videos.append(BadVideo(record.video_id, record.path, str(error)))
            self._writer.mark_bad(*self._summary.bad_videos[-1])
            if on_bad_video == "error":
                self.finish()  # keeps what is whole
                raise error from failure.__cause__
            logger.warning("skipped video %r: %s", record.video_id, error)
        else:
            self.batcher.end(event.source)

    def commit(self) -> None:
        """Write the videos whose tokens are complete."""
        start = time.perf_counter()
        for source, tokens in self.batcher.pop_finished():
            by_view = dict(zip(self._writer.meta.views, tokens.swapaxes(0, 1), strict=True))
            self._writer.add(self._records[source].video_id, by_view)
            self._summary.num_extracted += 1
            self._summary.num_frames += len(tokens)
        self._summary.write_seconds += time.perf_counter() - start

    def finish(self) -> None:
        """Encode the rest and write it."""
        self.batcher.flush()
        self.commit()


def decode_chunks(
    record: VideoRecord, fps: float, views: Sequence[SpatialView]
) -> Iterator[np.ndarray]:
    """Decode a video once and cut out all views, a few frames at a time.

    Yields:
        uint8 (frames, views, size, size, 3).

    Raises:
        VideoDecodeError: the video is missing or broken.
    """
    with open_record(record) as reader:
        frames = reader.iter_frames(fps)
        while chunk := list(itertools.islice(frames, _FRAMES_PER_CHUNK)):
            yield cut_views(np.stack(chunk), views)


def _store_meta(
    tokenizer: Any,
    fps: float,
    views: Sequence[SpatialView],
    annotation_fingerprint: str,
    precision: str,
) -> StoreMeta:
    names = tuple(view.name for view in views)
    if len({view.size for view in views}) != 1 or len(set(names)) != len(names):
        raise ValueError(f"views must be different and of one size, found {', '.join(names)}")
    side, rest = divmod(views[0].size, tokenizer.stride)
    if rest:
        raise ValueError(
            f"view size {views[0].size} is not a multiple of the tokenizer's stride "
            f"{tokenizer.stride}"
        )
    return StoreMeta(
        tokenizer=type(tokenizer).__name__,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        stride=tokenizer.stride,
        fps=float(fps),
        views=names,
        grid=(side, side),
        annotation_fingerprint=annotation_fingerprint,
        precision=precision,
    )


def _check_options(
    batch_size: int,
    num_workers: int,
    precision: str,
    on_bad_video: str,
    timeout: float,
    shard_id: int,
    num_shards: int,
) -> None:
    for name, number in (("batch_size", batch_size), ("num_workers", num_workers)):
        if number < 1:
            raise ValueError(f"{name} is {number}, must be at least 1")
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout}, must be 0 (no limit) or a number of seconds")
    if not 0 <= shard_id < num_shards:
        raise ValueError(f"shard_id {shard_id} is not in 0..{num_shards - 1}")
    for name, value, valid in (
        ("precision", precision, PRECISIONS),
        ("on_bad_video", on_bad_video, BAD_VIDEO_RULES),
    ):
        if value not in valid:
            raise ValueError(f"{name} {value!r} is unknown; choose from {', '.join(valid)}")


def _check_ids(records: Sequence[VideoRecord]) -> None:
    counts = Counter(record.video_id for record in records)
    doubled = [video_id for video_id, count in counts.items() if count > 1]
    if doubled:
        raise ValueError(
            f"{len(doubled)} video ids occur more than once, for example {doubled[0]!r}"
        )
