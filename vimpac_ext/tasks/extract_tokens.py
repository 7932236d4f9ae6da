"""Extraction: every frame of every video, in all spatial views, to a token store."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vimpac_ext.data.bad_videos import BadVideo
from vimpac_ext.data.decode import VideoDecodeError, open_record
from vimpac_ext.data.prefetch import prefetch
from vimpac_ext.data.spatial_views import SpatialView
from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.token_store_writer import TokenStoreWriter
from vimpac_ext.structures import VideoRecord

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")
BAD_VIDEO_RULES = ("error", "skip")
_QUEUED_CHUNKS = 4  # of each video; bounds the memory for long ones


@dataclass
class ExtractionSummary:
    """What an extraction did.

    Attributes:
        num_videos: videos asked for.
        num_already_done: of these, in the store before.
        num_extracted: of these, added now.
        num_frames: decoded and tokenised now; every one of them in all views.
        bad_videos: those that could not be decoded.
        seconds: from start to end.
        decode_seconds: spent decoding and cropping, summed over the decoding threads.
        tokenizer_seconds: spent in the tokenizer, transfers included.
    """

    num_videos: int = 0
    num_already_done: int = 0
    num_extracted: int = 0
    num_frames: int = 0
    bad_videos: list[BadVideo] = field(default_factory=list)
    seconds: float = 0.0
    decode_seconds: float = 0.0
    tokenizer_seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Video frames (not views) per second of wall-clock time."""
        return self.num_frames / self.seconds if self.seconds else 0.0


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
    progress: bool = True,
) -> ExtractionSummary:
    """Tokenise videos into a store, which is created or continued.

    Every video is decoded once for all views, in background threads, and committed whole; what is
    in the store already is not touched. The batches of a video do not depend on the other videos,
    so an interrupted and continued extraction gives the same tokens as an unbroken one.

    Args:
        records: videos with unique ids.
        tokenizer: frozen, see `vimpac_ext.registries.TOKENIZERS`; moved to ``device``.
        store_folder: of the token store.
        fps: frames per second to take.
        views: spatial views, of one size.
        annotation_fingerprint: identifies the data set; see `StoreMeta`.
        batch_size: largest number of images (frames times views) given to the tokenizer at once;
            the views of a frame stay together.
        device: of the tokenizer.
        precision: "fp32", or "bf16" for autocast.
        num_workers: videos decoded at the same time.
        on_bad_video: "error" stops at the first video that cannot be decoded, "skip" goes on.
            Either way it is listed in the store's ``bad_videos.jsonl`` and tried again next time.
        progress: show a progress bar when on a terminal.

    Raises:
        ValueError: an option is out of its range, or the store was made with other settings.
        VideoDecodeError: a video cannot be decoded and ``on_bad_video`` is "error".
    """
    _check_options(batch_size, num_workers, precision, on_bad_video)
    _check_ids(records)
    meta = _store_meta(tokenizer, fps, views, annotation_fingerprint, precision)
    encoder = _Encoder(tokenizer, torch.device(device), precision)
    frames_per_chunk = max(1, batch_size // len(views))
    summary = ExtractionSummary(num_videos=len(records))
    start = time.perf_counter()
    with TokenStoreWriter(store_folder, meta) as writer:
        todo = [record for record in records if record.video_id not in writer.done]
        summary.num_already_done = len(records) - len(todo)
        sources = [partial(decode_chunks, record, fps, views, frames_per_chunk) for record in todo]
        streams = prefetch(sources, num_workers, _QUEUED_CHUNKS)
        with closing(streams), _progress_bar(summary, progress) as bar:
            for record, stream in zip(todo, streams, strict=True):
                try:
                    tokens = encoder.encode(stream)
                except VideoDecodeError as error:
                    summary.bad_videos.append(BadVideo(record.video_id, record.path, str(error)))
                    writer.mark_bad(*summary.bad_videos[-1])
                    if on_bad_video == "error":
                        raise
                    logger.warning("skipped video %r: %s", record.video_id, error)
                else:
                    writer.add(record.video_id, dict(zip(meta.views, tokens, strict=True)))
                    summary.num_extracted += 1
                    summary.num_frames += tokens.shape[1]
                summary.decode_seconds += stream.busy_seconds
                summary.tokenizer_seconds = encoder.seconds
                summary.seconds = time.perf_counter() - start
                bar.set_postfix_str(f"{summary.frames_per_second:.0f} frames/s", refresh=False)
                bar.update()
    return summary


def decode_chunks(
    record: VideoRecord, fps: float, views: Sequence[SpatialView], frames_per_chunk: int
) -> Iterator[np.ndarray]:
    """Decode a video once and cut out all views, a few frames at a time.

    Yields:
        uint8 (views, frames, size, size, 3); ``frames_per_chunk`` frames, fewer in the last.

    Raises:
        VideoDecodeError: the video is missing or broken.
    """
    with open_record(record) as reader:
        frames = reader.iter_frames(fps)
        while chunk := list(itertools.islice(frames, frames_per_chunk)):
            pixels = np.stack(chunk)
            yield np.stack([view(pixels) for view in views])


class _Encoder:
    """Runs a frozen tokenizer and counts the seconds."""

    def __init__(self, tokenizer: nn.Module, device: torch.device, precision: str) -> None:
        self.seconds = 0.0
        self._tokenizer: Any = tokenizer.to(device)
        self._device = device
        self._precision = precision

    def encode(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """Tokenise the chunks of one video: int32 (views, frames, h, w)."""
        return np.concatenate([self._encode_chunk(chunk) for chunk in chunks], axis=1)

    @torch.inference_mode()
    def _encode_chunk(self, chunk: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        images = torch.from_numpy(chunk).flatten(0, 1).to(self._device)  # (views * frames, S, S, 3)
        pixels = images.permute(0, 3, 1, 2).contiguous().float() / 255
        autocast = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=autocast):
            codes = self._tokenizer.encode(pixels)
        tokens: np.ndarray = codes.unflatten(0, chunk.shape[:2]).cpu().numpy().astype(np.int32)
        self.seconds += time.perf_counter() - start
        return tokens


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


def _progress_bar(summary: ExtractionSummary, progress: bool) -> tqdm:
    return tqdm(
        total=summary.num_videos,
        initial=summary.num_already_done,
        desc="extracting",
        unit="video",
        disable=None if progress else True,  # None: only on a terminal
    )


def _check_options(batch_size: int, num_workers: int, precision: str, on_bad_video: str) -> None:
    for name, number in (("batch_size", batch_size), ("num_workers", num_workers)):
        if number < 1:
            raise ValueError(f"{name} is {number}, must be at least 1")
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
