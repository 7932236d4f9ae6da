"""When the frames of a video file are shown, learnt from its packets without decoding them.

Containers disagree about time. MP4 and Matroska store when each frame is shown; AVI stores only
the order of decoding, and some MP4 writers put decoding times where display times belong. Seeking
is exact in some containers and a guess in others. A scan of the packets tells which case a file
is, where its frames start and end, and whether packets are missing.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vimpac_ext.data import matroska_check, transport_stream_check
from vimpac_ext.data.packet_index import PacketFacts, read_packets
from vimpac_ext.data.video_file import decode_error, video_stream

SEEKABLE_FORMATS = ("mov", "matroska", "avi")  # demuxers with an index of the key frames
LONGEST_FRAME_SECONDS = 3600.0  # longer ones come from damaged times


class KeyFrame(NamedTuple):
    """A packet where decoding can start: its display time in ticks and its place in the file."""

    time: int
    position: int


@dataclass(frozen=True)
class Timeline:
    """Display times of one video stream. Times are in ticks of ``tick`` seconds.

    Attributes:
        tick: seconds a tick.
        start: time of the first frame.
        end: end of the last frame.
        frame_times: sorted times, one for each packet, where the decoder's frames do not carry
            their right time: the k-th frame belongs to the k-th time. None where they do.
        key_frames: where a seek may land, by time; empty where only decoding from the beginning
            is exact.
        key_positions: time of every key packet by its place in the file.
        display_times: sorted times of all frames where packets say them, each once; None where
            they do not. With them the decoder knows which frame to wait for.
    """

    tick: Fraction
    start: int
    end: int
    frame_times: np.ndarray | None
    key_frames: tuple[KeyFrame, ...]
    key_positions: dict[int, int]
    display_times: np.ndarray | None = None

    def ticks(self, seconds: Fraction) -> int:
        """First tick that is not before ``seconds`` after the first frame."""
        return self.start - (-seconds // self.tick)

    def seconds(self, time: int) -> float:
        """Seconds from the first frame to ``time``."""
        return float((time - self.start) * self.tick)


class FrameClock:
    """Display times of the frames of one decoding pass, in the order of the decoder's output.

    The order of the output is always right; times that step back are held.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._num_packets = 0
        self._delay: int | None = None  # packets that the decoder takes before its first frame
        self._rank = -1
        self._now: int | None = None

    @property
    def now(self) -> int:
        """Time of the latest frame in ticks, the stream's start before there is one."""
        return self._timeline.start if self._now is None else self._now

    def feed(self, packet: "av.Packet[VideoStream]") -> None:
        """Counts a packet that is about to be decoded."""
        self._num_packets += packet.size > 0 and not packet.is_discard

    def time(self, frame: av.VideoFrame) -> int:
        """Time in ticks of a frame that the latest packet made come out."""
        times = self._timeline.frame_times
        if times is None:
            time = self.now if frame.pts is None else frame.pts
        else:
            # Counted from the packet, not by frames: a packet may show nothing new and yet take
            # its time. At the end the decoder gives the frames that it still has.
            if self._delay is None:
                self._delay = self._num_packets
            self._rank = max(self._num_packets - self._delay, self._rank + 1)
            time = int(times[min(self._rank, len(times) - 1)])
        self._now = time if self._now is None else max(time, self._now)
        return self._now


def scan_timeline(container: InputContainer, path: Path) -> Timeline:
    """Learns about the packets of a freshly opened container, decoding none.

    Raises:
        VideoDecodeError: if packets are missing or damaged.
    """
    stream = video_stream(container, path)
    packets = read_packets(container, path)
    shown = [packet for packet in packets if not packet.is_discarded]
    if not shown:
        raise decode_error(path, "the video stream is empty")
    timeline = _build_timeline(container, stream, packets, shown)
    damage = _find_damage(container, stream, packets, path)
    if damage is not None:
        reason, num_good = damage
        good = packets[: max(num_good, 1)]
        ends = [p.pts + p.duration for p in good if p.pts is not None]
        raise decode_error(path, reason, timeline.seconds(max(ends)) if ends else None)
    _check_gaps(timeline, shown, path)
    return timeline


def _build_timeline(
    container: InputContainer,
    stream: VideoStream,
    packets: list[PacketFacts],
    shown: list[PacketFacts],
) -> Timeline:
    tick = stream.time_base or Fraction(1, 90000)
    frame_seconds = 1 / (stream.guessed_rate or stream.average_rate or Fraction(25))
    frame_ticks = max(round(frame_seconds / tick), 1)
    if not _frames_carry_time(container, stream, packets):
        frame_times = _sorted_times(container, shown)
        last_duration = shown[-1].duration or frame_ticks
        if frame_times is None:
            frame_times, tick, last_duration = np.arange(len(shown)), frame_seconds, 1
        start, end = int(frame_times[0]), int(frame_times[-1]) + last_duration
        return Timeline(tick, start, end, frame_times, (), {})

    keys = [packet for packet in packets if packet.is_key] or packets[:1]
    first_key_time = _display_time(keys[0])
    # Frames shown before the first key frame depend on packets that the file does not have.
    times = [time for time in map(_display_time, shown) if time >= first_key_time]
    start = min(times, default=first_key_time)
    last = max(shown, key=_display_time)
    seekable = container.format.name.split(",")[0] in SEEKABLE_FORMATS
    key_frames = sorted(
        KeyFrame(_display_time(key), key.position)
        for key in keys
        if seekable and not key.is_discarded and _display_time(key) > start
    )
    return Timeline(
        tick,
        start,
        _display_time(last) + (last.duration or frame_ticks),
        None,
        tuple(key_frames),
        {key.position: _display_time(key) for key in keys},
        np.array(sorted(times)) if len(set(times)) == len(times) > 0 else None,
    )


def _display_time(packet: PacketFacts) -> int:
    assert packet.pts is not None
    return packet.pts


def _frames_carry_time(
    container: InputContainer, stream: VideoStream, packets: list[PacketFacts]
) -> bool:
    """Whether the decoder's frames come with the time at which they are shown."""
    if any(packet.pts is None for packet in packets):
        return False
    reorders = bool(stream.codec_context.has_b_frames)
    if container.format.name == "avi":  # stores no display times: they are made up from the order
        return not reorders
    times = [_display_time(packet) for packet in packets]
    rising = all(before <= after for before, after in pairwise(times))
    # Frames that are decoded in another order than they are shown must have times that say so.
    return reorders != rising


def _sorted_times(container: InputContainer, shown: list[PacketFacts]) -> np.ndarray | None:
    """One time for each frame in the order of display, None where the file has no times."""
    display = [packet.pts for packet in shown if packet.pts is not None]
    decoding = [packet.dts for packet in shown if packet.dts is not None]
    stored_first = [decoding, display] if container.format.name == "avi" else [display, decoding]
    for times in stored_first:
        if len(times) == len(shown):
            return np.sort(times)
    return None


def _check_gaps(timeline: Timeline, shown: list[PacketFacts], path: Path) -> None:
    """Refuses a time that jumps ahead: the frame before it would fill hours of a short video.

    Raises:
        VideoDecodeError: naming where.
    """
    times = timeline.frame_times
    if times is None:
        times = np.sort([_display_time(packet) for packet in shown])
    seconds = np.diff(times, append=timeline.end) * float(timeline.tick)
    longest = int(seconds.argmax())
    if seconds[longest] > LONGEST_FRAME_SECONDS:
        reason = f"a frame is to be shown for {seconds[longest] / 3600:.1f} hours"
        raise decode_error(path, reason, timeline.seconds(int(times[longest])))


def _find_damage(
    container: InputContainer, stream: VideoStream, packets: list[PacketFacts], path: Path
) -> tuple[str, int] | None:
    """What is wrong and how many packets come before it, None where nothing is wrong.

    Containers say in different ways how many packets they should hold; MPEG program streams and
    bare streams say nothing.
    """
    for rank, packet in enumerate(packets):
        if packet.is_corrupt:
            return "a packet is damaged or cut off", rank
    family = container.format.name.split(",")[0]
    if family in ("mov", "avi"):
        num_indexed = sum(entry.size > 0 for entry in stream.index_entries)
        if len(packets) < num_indexed:
            num_missing = num_indexed - len(packets)
            return f"{num_missing} of the {num_indexed} frames are missing", len(packets)
    last_frame = packets[-1].dts
    if family == "avi" and last_frame is not None and last_frame + 1 < stream.frames:
        # A cut AVI has lost its index, which comes last, but not the number of frames.
        reason = f"the file declares {stream.frames} frames but stops after {last_frame + 1}"
        return reason, len(packets)
    position = None
    if family == "matroska":
        position = matroska_check.first_damage(path)
    elif family == "mpegts":
        position = transport_stream_check.first_damage(path, stream.id)
    if position is None:
        return None
    num_good = sum(packet.position < position for packet in packets)
    return f"the file is damaged or cut off at byte {position}", num_good
