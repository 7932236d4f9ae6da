"""Facts about the packets of a video stream, read from the index where there is a whole one.

An MP4 or MOV file begins or ends with tables of all its packets. With them an hour of video opens
without reading its hundreds of megabytes. libav gives all but the display times; those differ from
the decoding times by the offsets of the table "ctts". The first packets and those of the last group
of pictures are read in any case and must be as the tables say; if not, all packets are read.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vimpac_ext.data.video_file import named_errors, open_video, packets_of, video_stream

_NUM_CHECKED = 16  # packets at the beginning


class PacketFacts(NamedTuple):
    """What a packet says without being decoded; times are in ticks of the stream."""

    pts: int | None
    dts: int | None
    duration: int
    position: int
    is_key: bool
    is_discarded: bool  # decoded but not shown, because an edit list cuts it away
    is_corrupt: bool


def read_packets(container: InputContainer, path: Path) -> list[PacketFacts]:
    """Facts about all packets of the video stream that are not empty, in the order of the file.

    Args:
        container: freshly opened.
        path: its file.

    Raises:
        VideoDecodeError: if libav cannot read the packets.
    """
    stream = video_stream(container, path)
    with named_errors(path):
        predicted = _predict(container, stream, path)
        if predicted is None:
            return list(_facts(packets_of(container, stream)))
        if _is_confirmed(predicted, container, stream):
            return predicted
        with open_video(path) as fresh:
            return list(_facts(packets_of(fresh, video_stream(fresh, path))))


def _facts(packets: "Iterable[av.Packet[Any]]") -> Iterator[PacketFacts]:
    for packet in packets:
        if packet.size:
            yield PacketFacts(
                packet.pts,
                packet.dts,
                packet.duration or 0,
                -1 if packet.pos is None else packet.pos,
                packet.is_keyframe,
                packet.is_discard,
                packet.is_corrupt,
            )


def _predict(
    container: InputContainer, stream: VideoStream, path: Path
) -> list[PacketFacts] | None:
    """What the tables of an MP4 or MOV file say, None where they do not say all."""
    if container.format.name.split(",")[0] != "mov":
        return None
    entries = [
        (e.timestamp, e.pos, e.size, e.is_keyframe, e.is_discard) for e in stream.index_entries
    ]
    num_bytes = path.stat().st_size
    if not entries or any(pos < 0 or pos + size > num_bytes for _, pos, size, _, _ in entries):
        return None  # a file that was cut off: reading it tells where
    with path.open("rb") as file:
        offsets = _display_offsets(file, num_bytes, stream.id, len(entries))
    if offsets is None:
        return None
    shift = max(-int(offsets.min()), 0)  # libav makes the smallest offset 0
    dts = [entry[0] for entry in entries]
    durations = np.diff(dts, append=dts[-1]).tolist()
    predicted = [
        PacketFacts(time + offset + shift, time, duration, pos, is_key, is_discard, False)
        for (time, pos, size, is_key, is_discard), offset, duration in zip(
            entries, offsets.tolist(), durations, strict=True
        )
        if size
    ]
    return predicted or None


def _is_confirmed(
    predicted: list[PacketFacts], container: InputContainer, stream: VideoStream
) -> bool:
    """Compares the prediction with its first and last packets; puts the true durations in.

    The duration of the frame that is shown last is the only one that is used.
    """
    head = list(islice(_facts(packets_of(container, stream)), _NUM_CHECKED))
    last_key = max((rank for rank, packet in enumerate(predicted) if packet.is_key), default=0)
    if last_key > len(head):
        container.seek(predicted[last_key].pts or 0, stream=stream)
        tail = list(_facts(packets_of(container, stream)))
    else:
        tail = list(_facts(packets_of(container, stream)))
        head, tail = [], head + tail
    for begin, found in ((0, head), (len(predicted) - len(tail), tail)):
        expected = predicted[begin : begin + len(found)] if begin >= 0 else []
        if [p._replace(duration=0) for p in expected] != [p._replace(duration=0) for p in found]:
            return False
        predicted[begin : begin + len(found)] = found
    last_shown = max(range(len(predicted)), key=lambda rank: predicted[rank].pts or 0)
    return last_shown >= len(predicted) - len(tail)


def _display_offsets(
    file: BinaryIO, num_bytes: int, track: int, num_packets: int
) -> np.ndarray | None:
    """Display time minus decoding time of each packet (int64), None where it is not told."""
    movie = _child(file, (0, num_bytes), b"moov")
    if movie is None or _child(file, movie, b"mvex") is not None:  # goes on in fragments
        return None
    for kind, start, end in _boxes(file, movie):
        header = _child(file, (start, end), b"tkhd") if kind == b"trak" else None
        if header is None or _track_id(file, header[0]) != track:
            continue
        table: tuple[int, int] | None = (start, end)
        for name in (b"mdia", b"minf", b"stbl"):
            table = _child(file, table, name) if table else None
        offsets = _child(file, table, b"ctts") if table else None
        if table is None or offsets is None:
            return None if table is None else np.zeros(num_packets, np.int64)
        return _read_offsets(file, offsets, num_packets)
    return None


def _read_offsets(file: BinaryIO, span: tuple[int, int], num_packets: int) -> np.ndarray | None:
    file.seek(span[0] + 4)
    num_runs = int.from_bytes(file.read(4), "big")
    runs = np.frombuffer(file.read(min(8 * num_runs, span[1] - span[0] - 8)), ">i4").reshape(-1, 2)
    if len(runs) != num_runs or (runs[:, 0] < 0).any() or runs[:, 0].sum() != num_packets:
        return None
    return np.repeat(runs[:, 1], runs[:, 0]).astype(np.int64)


def _track_id(file: BinaryIO, position: int) -> int:
    file.seek(position)
    version = file.read(1)
    file.seek(position + (20 if version == b"\1" else 12))
    return int.from_bytes(file.read(4), "big")


def _child(file: BinaryIO, span: tuple[int, int], kind: bytes) -> tuple[int, int] | None:
    """Content of the first box of a kind, as first byte and end."""
    return next(((start, end) for found, start, end in _boxes(file, span) if found == kind), None)


def _boxes(file: BinaryIO, span: tuple[int, int]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte of the content and end of the boxes between two positions."""
    position, end = span
    while position + 8 <= end:
        file.seek(position)
        header = file.read(16)
        length, kind = struct.unpack(">I4s", header[:8])
        start = position + 8
        if length == 1 and len(header) == 16:
            length, start = int.from_bytes(header[8:], "big"), position + 16
        elif length == 0:
            length = end - position
        if position + length < start:
            return
        yield kind, start, min(position + length, end)
        position += length
