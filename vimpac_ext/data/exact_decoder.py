"""Decodes chosen frames, seeking where a seek leads to the very frame that it names."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vimpac_ext.data.video_file import (
    decode_error,
    named_errors,
    open_video,
    packets_of,
    video_stream,
)
from vimpac_ext.data.video_timeline import FrameClock, KeyFrame, Timeline

logger = logging.getLogger(__name__)


class TimedFrame(NamedTuple):
    """A decoded frame and its display time in ticks of the timeline."""

    time: int
    frame: av.VideoFrame


class ExactDecoder:
    """Decodes frames of one file by display time.

    A seek is checked twice: the packet where it lands must be a key frame that the scan of the
    file has seen at that place, and the first frame that comes out must be that key frame. If
    either fails, the file is decoded from its beginning, then and ever after. Every call opens
    the file anew, so unfinished iterations do not disturb each other.

    Args:
        path: the file.
        timeline: what the scan of its packets told.
        num_threads: decoding threads.
    """

    def __init__(self, path: Path, timeline: Timeline, num_threads: int) -> None:
        self._path = path
        self._timeline = timeline
        self._num_threads = num_threads
        self._key_frames = timeline.key_frames
        self._names_frames = True  # waits for frames by the times of their packets

    def pick(self, first: int, limits: Sequence[int], skip: bool) -> Iterator[TimedFrame]:
        """For each limit the last frame before it, or else the first frame.

        Args:
            first: frames shown earlier do not count, in ticks.
            limits: rising, in ticks.
            skip: whether to pass over what is between the chosen frames, by seeking and by
                leaving out frames that no other frame is predicted from.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
        """
        times = self._timeline.display_times
        if skip and self._names_frames and times is not None and times[-1] >= first:
            given = 0
            try:
                for timed in self._pick_named(self._named(times, first, limits)):
                    yield timed
                    given += 1
                return
            except _InexactSeekError:
                logger.debug("%s: a packet's frame did not come out; going by time", self._path)
                self._names_frames = False
            limits = limits[given:]
        yield from self._exactly(partial(self._pick, first, limits, skip))

    def between(self, first: int, last: int) -> Iterator[TimedFrame]:
        """All frames shown at ``first`` <= time < ``last``, in ticks.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
        """
        return self._exactly(partial(self._between, first, last))

    def _exactly(
        self, select: Callable[[tuple[KeyFrame, ...]], Iterator[TimedFrame]]
    ) -> Iterator[TimedFrame]:
        """Runs a selection with seeks, and from the beginning if one of them proves inexact."""
        num_given = 0
        try:
            for timed in select(self._key_frames):
                yield timed
                num_given += 1
            return
        except _InexactSeekError:
            logger.debug("seeking in %s is not exact, decoding from its beginning", self._path)
            self._key_frames = ()
        yield from islice(select(()), num_given, None)

    @staticmethod
    def _named(times: np.ndarray, first: int, limits: Sequence[int]) -> list[int]:
        """Times of the frames that `pick` is to give."""
        earliest = np.searchsorted(times, first)
        return times[np.maximum(np.searchsorted(times, limits) - 1, earliest)].tolist()

    def _pick_named(self, wanted: Sequence[int]) -> Iterator[TimedFrame]:
        """The frames shown at the times ``wanted``, which rise and may repeat.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
            _InexactSeekError: if a frame does not come out, as with packets that show nothing.
        """
        remaining = frozenset(wanted)
        with self._container() as container:
            frames: Iterator[TimedFrame] | None = None
            held: TimedFrame | None = None
            for time in wanted:
                if held is not None and held.time == time:
                    yield held
                    continue
                key = _last_before(self._key_frames, time + 1)
                if frames is None or (key and held and key.time > held.time):
                    frames = self._decode(container, key, self._timeline.start, remaining)
                held = next((frame for frame in frames if frame.time >= time), None)
                if held is None or held.time != time:
                    raise _InexactSeekError
                yield held

    def _pick(
        self, first: int, limits: Sequence[int], skip: bool, key_frames: tuple[KeyFrame, ...]
    ) -> Iterator[TimedFrame]:
        with self._container() as container:
            frames: Iterator[TimedFrame] | None = None
            held: TimedFrame | None = None  # last frame before the limit
            ahead: TimedFrame | None = None  # the frame after it
            for limit in limits:
                key = _last_before(key_frames, max(limit, first + 1))
                reached = ahead or held
                if frames is None or (skip and key and reached and key.time > reached.time):
                    frames = self._decode(container, key, first)
                    held, ahead = None, next(frames, None)
                while held is None or (ahead and ahead.time < limit):
                    if ahead is None:
                        raise decode_error(self._path, "no frame could be decoded")
                    held, ahead = ahead, next(frames, None)
                yield held

    def _between(
        self, first: int, last: int, key_frames: tuple[KeyFrame, ...]
    ) -> Iterator[TimedFrame]:
        with self._container() as container:
            for timed in self._decode(container, _last_before(key_frames, first + 1), first):
                if timed.time >= last:
                    return
                yield timed

    def _decode(
        self,
        container: InputContainer,
        key: KeyFrame | None,
        first: int,
        needed: frozenset[int] | None = None,
    ) -> Iterator[TimedFrame]:
        """Decodes from ``key`` (None = the beginning) and gives the frames from ``first`` on.

        Where ``needed`` is given, the decoder may leave out frames shown at other times that no
        frame is predicted from.

        Raises:
            VideoDecodeError: at the first frame that cannot be decoded.
            _InexactSeekError: if the seek did not lead to ``key``.
        """
        packets = self._packets(container, key)
        codec = video_stream(container, self._path).codec_context
        clock = FrameClock(self._timeline)
        landing = key
        with named_errors(self._path, lambda: self._timeline.seconds(clock.now)):
            for packet in packets:
                clock.feed(packet)
                if needed is not None:
                    codec.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
                for frame in packet.decode():
                    time = clock.time(frame)
                    if landing is not None:
                        if time < landing.time:  # depends on packets before the key frame
                            continue
                        if time > landing.time:  # the key frame alone does not restore the picture
                            raise _InexactSeekError
                        landing = None
                    if time < first:
                        continue
                    if frame.is_corrupt:
                        seconds = self._timeline.seconds(time)
                        raise decode_error(self._path, "the frame is damaged", seconds)
                    yield TimedFrame(time, frame)
        if landing is not None:
            raise _InexactSeekError

    def _packets(
        self, container: InputContainer, key: KeyFrame | None
    ) -> "Iterator[av.Packet[VideoStream]]":
        stream = video_stream(container, self._path)
        packets = packets_of(container, stream)
        if key is None:
            return packets
        try:
            container.seek(key.time, stream=stream)
            landed = next(packets)
        except av.FFmpegError as error:
            raise _InexactSeekError from error
        known_time = self._timeline.key_positions.get(-1 if landed.pos is None else landed.pos)
        if known_time is None or known_time != landed.pts or known_time > key.time:
            raise _InexactSeekError
        return chain([landed], packets)

    @contextmanager
    def _container(self) -> Iterator[InputContainer]:
        with open_video(self._path) as container:
            stream = video_stream(container, self._path)
            stream.thread_count = self._num_threads
            # Several frames at a time would hide which packet made a frame come out.
            counts_packets = self._timeline.frame_times is not None
            stream.thread_type = "SLICE" if counts_packets else "AUTO"
            yield container


class _InexactSeekError(Exception):
    """A seek did not lead where the index of key frames says."""


def _last_before(key_frames: Sequence[KeyFrame], limit: int) -> KeyFrame | None:
    """Last key frame shown before ``limit``, None where decoding starts at the beginning."""
    rank = bisect_left(key_frames, (limit,))
    return key_frames[rank - 1] if rank else None
