"""Finds out whether an MPEG transport stream lacks packets.

libav's demuxer passes over bytes that it cannot read. It marks a frame whose middle is lost, but a
frame that is lost as a whole just is not there. The packets tell: each begins with a sync byte, and
those of one stream are numbered (ISO/IEC 13818-1, section 2.4.3).
"""

from pathlib import Path

import numpy as np

_SYNC_BYTE = 0x47
# Bytes of a packet, and of a time stamp before it: plain, Blu-ray (m2ts), with error correction.
_FORMATS = ((188, 0), (192, 4), (204, 0))
_HEADER_BYTES = 6
_PACKETS_AT_ONCE = 8192


def first_damage(path: Path, stream_id: int) -> int | None:
    """Position of the first packet that is damaged or follows a gap, None where nothing is missing.

    What is inside the packets is not checked, nor are the numbers of other streams.

    Args:
        path: an MPEG transport stream that is not empty.
        stream_id: packet identifier (PID) of the stream that must be whole.
    """
    num_bytes = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        head = file.read(_FORMATS[-1][0] * 64)
        size, prefix = max(_FORMATS, key=lambda known: _share_of_sync_bytes(head, *known))
        counter: int | None = None
        for position in range(0, num_bytes, size * _PACKETS_AT_ONCE):
            file.seek(position)
            chunk = file.read(size * _PACKETS_AT_ONCE)
            packets = np.frombuffer(chunk[: len(chunk) // size * size], np.uint8).reshape(-1, size)
            headers = packets[:, prefix : prefix + _HEADER_BYTES]
            bad, counter = _find_bad(headers, stream_id, counter)
            if bad is not None:
                return position + bad * size
    return num_bytes // size * size if num_bytes % size else None


def _share_of_sync_bytes(head: bytes, size: int, prefix: int) -> float:
    starts = np.frombuffer(head, np.uint8)[prefix::size]
    return float((starts == _SYNC_BYTE).mean()) if len(starts) else 0.0


def _find_bad(
    headers: np.ndarray, stream_id: int, counter: int | None
) -> tuple[int | None, int | None]:
    """First bad packet of some, and the number of the stream's last one.

    Args:
        headers: uint8 (N, 6), the packets' first bytes.
        stream_id: of the packets whose numbers count.
        counter: number of the stream's packet before them, None = there is none.
    """
    in_sync = headers[:, 0] == _SYNC_BYTE
    ids = (headers[:, 1].astype(np.int64) & 0x1F) << 8 | headers[:, 2]
    own = np.flatnonzero(in_sync & (ids == stream_id))
    is_marked, flags = headers[own, 1] & 0x80 > 0, headers[own, 3]
    may_jump = (flags & 0x20 > 0) & (headers[own, 4] > 0) & (headers[own, 5] & 0x80 > 0)
    numbers = flags.astype(np.int64) & 0xF
    before = np.concatenate([numbers[:1] if counter is None else [counter], numbers])[: len(own)]
    # A packet without content has the number of the one before it.
    follows = (numbers - before) % 16 == (flags & 0x10 > 0)
    if counter is None:
        follows[:1] = True
    bad = [np.flatnonzero(~in_sync), own[is_marked | ~(follows | may_jump)]]
    first = min((int(ranks[0]) for ranks in bad if len(ranks)), default=None)
    return first, int(numbers[-1]) if len(numbers) else counter
