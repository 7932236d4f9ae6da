"""Extraction against decoding alone, and with one and two decoding threads."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn

from vimpac_ext.benchmarks.result import Result, speeds_in_turns
from vimpac_ext.data import SpatialView, StoreMeta, open_record, spatial_views
from vimpac_ext.data.prefetch import run_ahead
from vimpac_ext.data.spatial_views import cut_views
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tasks.extract_tokens import extract
from vimpac_ext.tasks.frame_batcher import Encoder
from vimpac_ext.tokenizers import DalleTokenizer, VQVAETokenizer

_SIZE, _VIDEO_FPS = (320, 240), 25
_BATCH_SIZE = 64


class Brightness(nn.Module):
    """A tokenizer that costs next to nothing, as one on a GPU costs the processor."""

    vocab_size, stride, fingerprint = 256, 8, "Brightness:0"

    def encode(self, frames: Tensor) -> Tensor:
        """Token = brightness of a patch; (N, 3, H, W) in [0, 1] -> int64 (N, H/8, W/8)."""
        return (frames[:, 0, ::8, ::8] * 255).round().long()


TOKENIZERS: dict[str, Callable[[], nn.Module]] = {
    "none": Brightness,
    "vqvae": VQVAETokenizer,
    "dalle": partial(DalleTokenizer, encoder=None),
}


def measure_extraction(
    folder: Path,
    num_videos: int = 16,
    video_seconds: int = 10,
    fps: float = 2.0,
    views: str = "center",
    tokenizer: str = "vqvae",
    device: str = "cpu",
    precision: str = "fp32",
    seconds: float = 20.0,
) -> Result:
    """Frames per second of decoding alone and of extraction, with one and two decoding threads.

    Args:
        folder: where videos and stores are written.
        num_videos: made for this, H.264, 320 x 240 pixels, 25 frames per second.
        video_seconds: length of each.
        fps: frames per second to take.
        views: of 128 pixels, see `spatial_views`.
        tokenizer: "vqvae" (the demo's), "dalle" (of random weights: they cost the same) or "none"
            (costs next to nothing).
        device: of the tokenizer.
        precision: of the tokenizer, "fp32" or "bf16".
        seconds: of measuring, for each number.
    """
    records = _make_videos(folder / "videos", num_videos, video_seconds)
    cut = spatial_views(views, 128)
    model = TOKENIZERS[tokenizer]()
    store_numbers = itertools.count()

    def extraction(num_workers: int) -> int:
        return extract(
            records,
            model,
            folder / f"store_{next(store_numbers)}",
            fps,
            cut,
            device=device,
            precision=precision,
            num_workers=num_workers,
            progress=False,
        ).num_frames

    speeds = speeds_in_turns(
        {
            **{f"decode {n}": partial(_decode, records, fps, n) for n in (1, 2)},
            **{f"extract {n}": partial(extraction, n) for n in (1, 2)},
            "cut": partial(_cut, records[0], fps, cut),
            "tokenize": partial(_tokenize, model, device, precision, len(cut)),
        },
        seconds,
    )
    rates = {name: speed.per_second for name, speed in speeds.items()}
    cpu = {name: speed.cpu_ms for name, speed in speeds.items()}
    parts = cpu["decode 1"] + cpu["cut"] + cpu["tokenize"]
    return Result(
        f"extraction, {num_videos} videos of {video_seconds} s, 320 x 240, {fps:g} frames/s taken, "
        f"{len(cut)} views of 128 pixels, {type(model).__name__} {precision} on {device}, "
        f"{torch.get_num_threads()} torch threads",
        {
            "decoding alone, 1 thread, frames/s": rates["decode 1"],
            "decoding alone, 2 threads, frames/s": rates["decode 2"],
            "extraction, 1 worker, frames/s": rates["extract 1"],
            "extraction, 2 workers, frames/s": rates["extract 2"],
            "2 workers against 1": rates["extract 2"] / rates["extract 1"],
            "time lost against decoding alone, 1 worker, %": _lost(rates, 1),
            "time lost against decoding alone, 2 workers, %": _lost(rates, 2),
            "processor time of a frame, decoding alone, ms": cpu["decode 1"],
            "processor time of a frame, cutting the views alone, ms": cpu["cut"],
            "processor time of a frame, tokenizer alone, ms": cpu["tokenize"],
            "processor time of a frame, extraction, ms": cpu["extract 1"],
            "of this, more than the three together, %": 100 * (1 - parts / cpu["extract 1"]),
        },
    )


def _lost(rates: dict[str, float], num_workers: int) -> float:
    return 100 * (1 - rates[f"extract {num_workers}"] / rates[f"decode {num_workers}"])


def _decode(records: Sequence[VideoRecord], fps: float, num_threads: int) -> int:
    """Decodes the frames and throws them away; returns their number."""
    sources = [partial(_frame_numbers, record, fps) for record in records]
    with closing(run_ahead(sources, num_threads, max_queued=64)) as events:
        deque(events, maxlen=0)
    return sum(open_record(record).num_frames_at(fps) for record in records)


def _frame_numbers(record: VideoRecord, fps: float) -> list[int]:
    with open_record(record) as reader:
        for _ in reader.iter_frames(fps):
            pass
    return []


def _cut(record: VideoRecord, fps: float, views: Sequence[SpatialView]) -> int:
    """Cuts the views of the first frames of a video again and again."""
    with open_record(record) as reader:
        frames = np.stack(list(itertools.islice(reader.iter_frames(fps), 8)))
    for _ in range(50):  # so that decoding them does not count
        cut_views(frames, views)
    return 50 * len(frames)


def _tokenize(model: Any, device: str, precision: str, num_views: int) -> int:
    """Encodes one batch; returns its number of frames."""
    num_frames = _BATCH_SIZE // num_views
    names = tuple(map(str, range(num_views)))
    grid = (16, 16)
    meta = StoreMeta("", "", model.vocab_size, 8, 2.0, names, grid, precision=precision)
    encoder = Encoder(model, torch.device(device), meta)
    encoder.encode(np.zeros((num_frames * num_views, 128, 128, 3), np.uint8))
    return num_frames


def _make_videos(folder: Path, number: int, video_seconds: int) -> list[VideoRecord]:
    """Moving textures with some noise, which cost as much to decode as real clips do."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    records = []
    for index in range(number):
        path = folder / f"video_{index}.mp4"
        small = generator.integers(0, 256, (60, 80, 3), np.uint8)
        texture = small.repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=_VIDEO_FPS)
            stream.width, stream.height = _SIZE
            stream.pix_fmt = "yuv420p"
            for frame in range(video_seconds * _VIDEO_FPS):
                x, y = frame % 320, frame // 2 % 240
                image = texture[y : y + _SIZE[1], x : x + _SIZE[0]].astype(np.int16)
                image += generator.integers(-8, 9, image.shape, np.int16)
                picture = np.clip(image, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
        records.append(VideoRecord(str(path), f"video_{index}"))
    return records
