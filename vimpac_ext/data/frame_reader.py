"""What all readers of frames have in common: which frames they give at a rate."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from vimpac_ext.data.video_file import decode_error

_MAX_DENOMINATOR = 1_001_000  # ffmpeg's limit for frame rates: 29.97 and 30000/1001 stay apart
_Reader = TypeVar("_Reader", bound="FrameReader")


class FrameReader(ABC):
    """Frames of a video, or of a segment of it, by time.

    Seconds are counted from the video's first frame. At ``fps``, frame i is the last frame shown
    before (i + 1/2) / fps seconds after ``start``, or else the first frame: what ffmpeg's filter
    ``fps`` outputs (round to nearest, beginning with the first frame). A video shorter than half
    a frame period still has one frame, where ffmpeg gives none. A segment is cut at exactly
    ``start`` and ``end``.

    Args:
        path: of the video.
        start: beginning of the segment in seconds, None = the first frame.
        end: end of the segment in seconds, None = the end of the video.

    Attributes:
        duration: seconds of the segment.

    Raises:
        ValueError: if the segment does not begin before its end.
    """

    duration: float

    def __init__(self, path: str | Path, start: float | None, end: float | None) -> None:
        self._path = Path(path)
        self._start = fraction(start or 0.0)
        self._end = Fraction(0)
        if self._start < 0 or (end is not None and fraction(end) <= self._start):
            raise ValueError(f"a segment needs 0 <= start < end, got start {start}, end {end}")

    def _set_length(self, seconds: Fraction, end: float | None) -> None:
        """Takes the length of the whole video.

        Raises:
            VideoDecodeError: if the segment begins after it.
        """
        if self._start >= seconds:
            reason = (
                f"the segment starts at {float(self._start):g} s but the video has "
                f"{float(seconds):.2f} s"
            )
            raise decode_error(self._path, reason)
        self._end = seconds if end is None else min(seconds, fraction(end))
        self.duration = float(self._end - self._start)

    def __enter__(self: _Reader) -> _Reader:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 (nothing to do unless a reader keeps something open)
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
        return np.stack(list(self._shown_before(self._limits(fps, wanted.tolist()), True)))[rank]

    def iter_frames(self, fps: float) -> Iterator[np.ndarray]:
        """All `num_frames_at` frames at ``fps`` in order, holding one at a time.

        The frames between them are decoded too, so that damage there is noticed.

        Yields:
            uint8 (H, W, 3) RGB.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
        """
        return self._shown_before(self._limits(fps, range(self.num_frames_at(fps))), False)

    @abstractmethod
    def decode_all(self) -> int:
        """Decodes every frame of the segment, to see whether that is possible.

        Returns:
            Their number.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded or has another size.
        """

    @abstractmethod
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

    @abstractmethod
    def _shown_before(self, limits: Sequence[Fraction], skip: bool) -> Iterator[np.ndarray]:
        """For each limit the segment's last frame shown before it, or else its first.

        Args:
            limits: rising, in seconds after the first frame of the video.
            skip: whether to pass over the frames between them without decoding.
        """

    def _limits(self, fps: float, indices: Sequence[int]) -> list[Fraction]:
        rate = _rate(fps)
        return [self._start + Fraction(2 * index + 1, 2) / rate for index in indices]

    def _check_shapes(self, timed: Iterator[tuple[float, np.ndarray]]) -> Iterator[np.ndarray]:
        """Passes on images (H, W, 3), which come with the seconds from the video's first frame.

        Raises:
            VideoDecodeError: where the size changes.
        """
        shape: tuple[int, ...] | None = None
        for seconds, image in timed:
            shape = shape or image.shape
            self._check_shape(image.shape, shape, seconds)
            yield image

    def _check_shape(self, shape: tuple[int, ...], first: tuple[int, ...], seconds: float) -> None:
        if shape[:2] != first[:2]:
            reason = "the frame size changes from {1}x{0} to {3}x{2} px".format(
                *first[:2], *shape[:2]
            )
            raise decode_error(self._path, reason, seconds)


def fraction(seconds: float) -> Fraction:
    """The number that was meant: 2/5 for 0.4, which as a float is a little more."""
    return Fraction(seconds).limit_denominator(_MAX_DENOMINATOR)


def stack_images(images: Iterator[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) as one array (N, H, W, 3); zeros long, high and wide if there are none."""
    listed = list(images)
    return np.stack(listed) if listed else np.zeros((0, 0, 0, 3), np.uint8)


def _rate(fps: float) -> Fraction:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return fraction(fps)


def _round(value: Fraction) -> int:
    """Nearest integer, halves up."""
    return int((value + Fraction(1, 2)) // 1)
