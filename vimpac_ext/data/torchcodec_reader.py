"""Reads frames with torchcodec, where that gives the frames that PyAV gives.

Importing this module imports torchcodec, which is optional: ``pip install 'vimpac_ext[decode]'``.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from vimpac_ext.data.decode import VideoReader
from vimpac_ext.data.frame_reader import fraction, stack_images
from vimpac_ext.data.video_file import decode_error, open_video, video_stream
from vimpac_ext.data.video_timeline import SEEKABLE_FORMATS

try:
    from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]
except (ImportError, OSError, RuntimeError) as error:
    # A RuntimeError of many lines where it does not find FFmpeg's libraries.
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    raise ImportError(
        f"the decoder torchcodec cannot be used ({reason}). Install a version that fits torch with "
        "pip install 'vimpac_ext[decode]', and FFmpeg 4 to 8 with its shared libraries where the "
        "dynamic loader finds them (apt install ffmpeg, conda install ffmpeg, or their folder in "
        "LD_LIBRARY_PATH); or take the decoder pyav, which brings its own"
    ) from error


class TorchcodecReader(VideoReader):
    """Frames of a video file by torchcodec, chosen by the same rule; see `FrameReader`.

    When each frame is shown is learnt from the packets, as in `VideoReader`, and torchcodec is
    asked for frames by their rank. Files in which it would count or seek otherwise (MPEG-TS and
    -PS, raw streams, AVI with B-frames, wrong or doubled times) are read by PyAV all the same.
    H.264 with intra refresh cannot be told beforehand and is not exact. Damage inside a frame is
    noticed only if torchcodec reports it.

    Args:
        path: the file.
        num_threads: decoding threads.
        start: beginning of the segment in seconds, None = the first frame.
        end: end of the segment in seconds, None = the end of the video.

    Raises:
        VideoDecodeError: as `VideoReader`, or if torchcodec cannot open the file.
    """

    def __init__(
        self,
        path: str | Path,
        num_threads: int = 1,
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        super().__init__(path, num_threads, start, end)
        self._times = self._timeline.display_times
        with open_video(self._path) as container:
            family = container.format.name.split(",")[0]
            index = video_stream(container, self._path).index
        self._frames: VideoDecoder | None = None
        if self._times is None or family not in SEEKABLE_FORMATS:
            return
        try:
            # Exact: without a scan of its own, it would compute ranks from an average rate.
            frames = VideoDecoder(
                str(self._path),
                stream_index=index,
                dimension_order="NHWC",
                num_ffmpeg_threads=num_threads,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            raise decode_error(self._path, f"torchcodec: {error}") from error
        if not hasattr(frames.metadata, "rotation"):
            raise ImportError(
                "this torchcodec does not turn frames upright; it must be 0.11 or newer"
            )
        if len(frames) == len(self._times):
            self._frames = frames

    @property
    def uses_torchcodec(self) -> bool:
        """Whether torchcodec decodes this file; False = PyAV does, as torchcodec is not exact."""
        return self._frames is not None

    def decode_all(self) -> int:
        """Decodes every frame of the segment; returns their number."""
        if self._frames is None:
            return super().decode_all()
        first, last = self._rank(self._start), self._rank(self._end)
        return sum(1 for _ in self._read(range(first, last)))

    def frames_between(self, start: float, end: float) -> np.ndarray:
        """All frames of the file that are shown at ``start`` <= time < ``end``."""
        if self._frames is None:
            return super().frames_between(start, end)
        first = self._rank(self._start + max(fraction(start), Fraction(0)))
        last = self._rank(min(self._start + fraction(end), self._end))
        return stack_images(self._read(range(first, last)))

    def _shown_before(self, limits: Sequence[Fraction], skip: bool) -> Iterator[np.ndarray]:
        if self._frames is None or self._rank(self._start) == len(self._frames):
            return super()._shown_before(limits, skip)
        first = self._rank(self._start)
        ranks = [max(self._rank(limit) - 1, first) for limit in limits]
        return self._read(ranks) if skip else self._read_all(ranks)

    def _rank(self, seconds: Fraction) -> int:
        """First frame that is not shown before ``seconds``; their number if there is none."""
        assert self._times is not None
        return int(np.searchsorted(self._times, self._timeline.ticks(seconds)))

    def _read(self, ranks: Sequence[int]) -> Iterator[np.ndarray]:
        return self._check_shapes((self._seconds(rank), self._decode(rank)) for rank in ranks)

    def _read_all(self, ranks: Sequence[int]) -> Iterator[np.ndarray]:
        """As `_read`, but all frames from the first to the last of the rising ranks are decoded."""
        images = self._read(range(ranks[0], ranks[-1] + 1))
        reached, image = ranks[0], next(images)
        for rank in ranks:
            while reached < rank:
                reached, image = reached + 1, next(images)
            yield image

    def _decode(self, rank: int) -> np.ndarray:
        """The frame as upright RGB, uint8 (H, W, 3)."""
        assert self._frames is not None
        try:
            image: np.ndarray = self._frames.get_frame_at(rank).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise decode_error(self._path, f"torchcodec: {error}", self._seconds(rank)) from error
        return image

    def _seconds(self, rank: int) -> float:
        assert self._times is not None
        return self._timeline.seconds(int(self._times[rank]))
