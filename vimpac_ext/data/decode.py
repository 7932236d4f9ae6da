"""Reads chosen frames of a video file, exactly, with PyAV.

Other readers trust the times that PyAV reports and where a seek lands. Both are wrong for a part
of the real files (UCF101's AVIs with B-frames come out shuffled), so this reader looks at the
packets first (see `vimpac_ext.data.video_timeline`) and seeks only where that is exact.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from vimpac_ext.data.exact_decoder import ExactDecoder, TimedFrame, open_video
from vimpac_ext.data.video_timeline import (
    VideoDecodeError,
    decode_error,
    named_errors,
    scan_timeline,
)

__all__ = ["VideoDecodeError", "VideoReader"]

MAX_DENOMINATOR = 1_001_000  # ffmpeg's limit for frame rates: 29.97 and 30000/1001 stay apart


class VideoReader:
    """Frames of the first video stream of a file, or of a segment of it.

    Seconds are counted from the stream's first frame. At ``fps``, frame i is the last frame shown
    before (i + 1/2) / fps seconds after ``start``, or else the first frame: what ffmpeg's filter
    ``fps`` outputs (round to nearest, beginning with the first frame). A video shorter than half
    a frame period still has one frame, where ffmpeg gives none. A segment is cut at exactly
    ``start`` and ``end``. Frames are turned upright as the file's metadata says.

    Opening reads the file's packets once without decoding. Only the frames that are asked for are
    converted to RGB. No decoder stays open between calls, so calls do not disturb each other.

    Args:
        path: the file.
        num_threads: decoding threads.
        start: beginning of the segment in seconds, None = the first frame.
        end: end of the segment in seconds, None = the end of the video.

    Attributes:
        duration: seconds of the segment.

    Raises:
        VideoDecodeError: if the file is missing, empty, cut off or not a video, or the segment
            begins after its end.
    """

    def __init__(
        self,
        path: str | Path,
        num_threads: int = 1,
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        segment_start = _fraction(start or 0.0)
        if segment_start < 0 or (end is not None and _fraction(end) <= segment_start):
            raise ValueError(f"a segment needs 0 <= start < end, got start {start}, end {end}")
        self._path = Path(path)
        with open_video(self._path) as container:
            self._timeline = scan_timeline(container, self._path)
        self._decoder = ExactDecoder(self._path, self._timeline, num_threads)

        self._start = segment_start
        self._end = (self._timeline.end - self._timeline.start) * self._timeline.tick
        if self._start >= self._end:
            reason = f"the segment starts at {start} s but the video has {float(self._end):.2f} s"
            raise decode_error(self._path, reason)
        if end is not None:
            self._end = min(self._end, _fraction(end))
        self.duration = float(self._end - self._start)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Does nothing: every call closes what it opened. For use in a ``with`` statement."""

    def num_frames_at(self, fps: float) -> int:
        """Number of frames at ``fps`` frames a second, at least 1. Decodes nothing."""
        return max(_round((self._end - self._start) * _rate(fps)), 1)

    def frames_at(self, fps: float, indices: Sequence[int]) -> np.ndarray:
        """Chosen frames at ``fps`` frames a second.

        Args:
            fps: frames a second.
            indices: which of the `num_frames_at` frames, in any order, repeats allowed.

        Returns:
            uint8 (N, H, W, 3) RGB, in the order of ``indices``.

        Raises:
            ValueError: if an index is outside the video or there is none.
            VideoDecodeError: if a frame cannot be decoded.
        """
        num_frames = self.num_frames_at(fps)
        if len(indices) == 0 or min(indices) < 0 or max(indices) >= num_frames:
            raise ValueError(
                f"frame indices must be in 0..{num_frames - 1} for {self._path} at {fps} fps, "
                f"got {list(indices)}"
            )
        wanted, rank = np.unique(np.asarray(indices), return_inverse=True)
        return np.stack(list(self._images(self._pick(fps, wanted.tolist(), skip=True))))[rank]

    def iter_frames(self, fps: float) -> Iterator[np.ndarray]:
        """All `num_frames_at` frames at ``fps`` in order, holding one at a time.

        Every frame of the segment is decoded, so damage between the chosen ones is noticed too.

        Yields:
            uint8 (H, W, 3) RGB.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
        """
        return self._images(self._pick(fps, range(self.num_frames_at(fps)), skip=False))

    def frames_between(self, start: float, end: float) -> np.ndarray:
        """All frames of the file that are shown at ``start`` <= time < ``end``.

        Args:
            start: seconds after the beginning of the segment.
            end: seconds after the beginning of the segment.

        Returns:
            uint8 (N, H, W, 3) RGB; N = 0 (and H = W = 0) where there are none.

        Raises:
            VideoDecodeError: if a frame cannot be decoded.
        """
        first = self._timeline.ticks(self._start + max(_fraction(start), Fraction(0)))
        last = self._timeline.ticks(min(self._start + _fraction(end), self._end))
        images = list(self._images(self._decoder.between(first, last)))
        return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)

    def _pick(self, fps: float, indices: Sequence[int], skip: bool) -> Iterator[TimedFrame]:
        rate = _rate(fps)
        limits = [
            self._timeline.ticks(self._start + Fraction(2 * index + 1, 2) / rate)
            for index in indices
        ]
        return self._decoder.pick(self._timeline.ticks(self._start), limits, skip)

    def _images(self, frames: Iterator[TimedFrame]) -> Iterator[np.ndarray]:
        shape: tuple[int, ...] | None = None
        for timed in frames:
            image = self._image(timed)
            if image.shape != (shape or image.shape):
                reason = f"the frame size changes from {shape} to {image.shape}"
                raise decode_error(self._path, reason, self._timeline.seconds(timed.time))
            shape = image.shape
            yield image

    def _image(self, timed: TimedFrame) -> np.ndarray:
        """The frame as upright RGB, uint8 (H, W, 3)."""
        with named_errors(self._path, lambda: self._timeline.seconds(timed.time)):
            # One thread: a forked data loader worker could never free a converter with several.
            return _upright(timed.frame.to_ndarray(format="rgb24", threads=1), timed.frame)


def _fraction(seconds: float) -> Fraction:
    """The number that was meant: 2/5 for 0.4, which as a float is a little more."""
    return Fraction(seconds).limit_denominator(MAX_DENOMINATOR)


def _rate(fps: float) -> Fraction:
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return _fraction(fps)


def _round(value: Fraction) -> int:
    """Nearest integer, halves up."""
    return int((value + Fraction(1, 2)) // 1)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turns and mirrors an image (H, W, 3) as the frame's display matrix says.

    A pixel (x, y) is shown at (a x + c y, b x + d y). Only right angles are honoured.
    """
    # Not frame.side_data: the frame would keep it, and it the frame, until the garbage collection.
    side_data = SideDataContainer(frame)  # type: ignore[call-arg]
    matrix: Any = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):  # columns become rows
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)
