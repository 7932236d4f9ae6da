"""Reads chosen frames of a video file, exactly, with PyAV.

Other readers trust the times that PyAV reports and where a seek lands. Both are wrong for a part
of the real files (UCF101's AVIs with B-frames come out shuffled), so this reader looks at the
packets first (see `vimpac_ext.data.video_timeline`) and seeks only where that is exact.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from vimpac_ext.data.exact_decoder import ExactDecoder, TimedFrame
from vimpac_ext.data.frame_folder import FrameFolder
from vimpac_ext.data.frame_reader import FrameReader, fraction, stack_images
from vimpac_ext.data.video_file import VideoDecodeError, named_errors, open_video
from vimpac_ext.data.video_timeline import scan_timeline
from vimpac_ext.structures import VideoRecord

__all__ = [
    "DECODERS",
    "FrameReader",
    "VideoDecodeError",
    "VideoReader",
    "open_record",
    "open_reader",
]

DECODERS = ("pyav", "torchcodec")


class VideoReader(FrameReader):
    """Frames of the first video stream of a file, or of a segment of it.

    See `FrameReader` for which frames. They are turned upright as the file's metadata says.

    Opening looks at the file's packets without decoding: in the index of MP4 and MOV, by reading
    the file of others. Only the frames that are asked for are converted to RGB. No decoder stays
    open between calls, so calls do not disturb each other.

    Args:
        path: the file.
        num_threads: decoding threads.
        start: beginning of the segment in seconds, None = the first frame.
        end: end of the segment in seconds, None = the end of the video.

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
        super().__init__(path, start, end)
        with open_video(self._path) as container:
            self._timeline = scan_timeline(container, self._path)
        self._decoder = ExactDecoder(self._path, self._timeline, num_threads)
        self._set_length((self._timeline.end - self._timeline.start) * self._timeline.tick, end)

    def decode_all(self) -> int:
        """Decodes every frame of the segment and converts none; returns their number."""
        number, first = 0, (0, 0)
        end = self._timeline.ticks(self._end)
        for timed in self._decoder.between(self._timeline.ticks(self._start), end):
            shape = timed.frame.height, timed.frame.width
            first = first if number else shape
            self._check_shape(shape, first, self._timeline.seconds(timed.time))
            number += 1
        return number

    def frames_between(self, start: float, end: float) -> np.ndarray:
        """All frames of the file that are shown at ``start`` <= time < ``end``."""
        first = self._timeline.ticks(self._start + max(fraction(start), Fraction(0)))
        last = self._timeline.ticks(min(self._start + fraction(end), self._end))
        return stack_images(self._images(self._decoder.between(first, last)))

    def _shown_before(self, limits: Sequence[Fraction], skip: bool) -> Iterator[np.ndarray]:
        ticks = [self._timeline.ticks(limit) for limit in limits]
        return self._images(self._decoder.pick(self._timeline.ticks(self._start), ticks, skip))

    def _images(self, frames: Iterator[TimedFrame]) -> Iterator[np.ndarray]:
        return self._check_shapes(
            (self._timeline.seconds(timed.time), self._image(timed)) for timed in frames
        )

    def _image(self, timed: TimedFrame) -> np.ndarray:
        """The frame as upright RGB, uint8 (H, W, 3)."""
        with named_errors(self._path, lambda: self._timeline.seconds(timed.time)):
            # One thread: a forked data loader worker could never free a converter with several.
            return _upright(timed.frame.to_ndarray(format="rgb24", threads=1), timed.frame)


def open_record(record: VideoRecord, decoder: str = "pyav") -> FrameReader:
    """Opens the segment of a record: a video file, or a folder of images.

    Args:
        record: of a data set.
        decoder: of video files, see `open_reader`.

    Raises:
        VideoDecodeError: if it cannot be read.
    """
    if record.frame_rate is not None and Path(record.path).is_dir():
        return FrameFolder(record.path, record.frame_rate, record.start, record.end)
    return open_reader(record.path, decoder, start=record.start, end=record.end)


def open_reader(
    path: str | Path,
    decoder: str = "pyav",
    num_threads: int = 1,
    start: float | None = None,
    end: float | None = None,
) -> VideoReader:
    """Opens a video file, or a segment of it.

    Args:
        path: the file.
        decoder: "pyav", or "torchcodec", which must be installed.
        num_threads: decoding threads.
        start: beginning of the segment in seconds, None = the first frame.
        end: end of the segment in seconds, None = the end of the video.

    Raises:
        ValueError: if there is no such decoder.
        ImportError: if torchcodec cannot be used; says what to do.
        VideoDecodeError: if the file cannot be read.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; choose from {', '.join(DECODERS)}")
    if decoder == "torchcodec":
        from vimpac_ext.data.torchcodec_reader import TorchcodecReader

        return TorchcodecReader(path, num_threads, start, end)
    return VideoReader(path, num_threads, start, end)


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
