"""Finds out whether a Matroska or WebM file is whole.

libav's demuxer skips what it cannot read and says nothing, and WebM counts no frames, so a damaged
file would just have fewer of them. Its skeleton tells: every element states its kind and length.
"""

from pathlib import Path
from typing import NamedTuple

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_VOID, _CHECKSUM = 0xEC, 0xBF
_FILE = 0
_CHILDREN = {
    _FILE: {0x1A45DFA3, _SEGMENT, _VOID},
    # SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags
    _SEGMENT: {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
    | {_CLUSTER, _VOID, _CHECKSUM},
    # Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock
    _CLUSTER: {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, _VOID, _CHECKSUM},
}
_MAX_HEADER_BYTES = 12


class _Element(NamedTuple):
    kind: int
    start: int  # of its content
    end: int | None  # None: unknown, it lasts until an element of an outer level begins


def first_damage(path: Path) -> int | None:
    """Position of the first byte that is not as Matroska wants it, None for a whole file.

    Only the skeleton is checked, not what is inside the frames.

    Args:
        path: a Matroska or WebM file that is not empty.
    """
    num_bytes = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        parents = [_Element(_FILE, 0, num_bytes)]
        position = 0
        while position < num_bytes:
            # Not mapped to memory: the pages of an hour of video would count as ours.
            file.seek(position)
            element = _read_element(file.read(_MAX_HEADER_BYTES), position)
            while len(parents) > 1 and _is_over(parents[-1], position, element):
                parents.pop()
            if element is None or element.kind not in _CHILDREN[parents[-1].kind]:
                # What follows the segment at the end of a file is nobody's business.
                return None if parents[-1].kind == _FILE and position else position
            if element.kind in _CHILDREN:
                parents.append(element)
                position = element.start
            elif element.end is None or element.end > num_bytes:
                return position
            else:
                position = element.end
    is_cut_off = any(parent.end is not None and parent.end > num_bytes for parent in parents)
    return num_bytes if is_cut_off else None


def _is_over(parent: _Element, position: int, following: _Element | None) -> bool:
    if parent.end is not None:
        return position >= parent.end
    return following is not None and following.kind not in _CHILDREN[parent.kind]


def _read_element(header: bytes, position: int) -> _Element | None:
    """Reads the header of the element at ``position``: kind, then length, of variable size."""
    kind_bytes = _num_bytes(header[:1])
    length_bytes = _num_bytes(header[kind_bytes : kind_bytes + 1])
    num_bytes = kind_bytes + length_bytes
    if not 1 <= kind_bytes <= 4 or not length_bytes or len(header) < num_bytes:
        return None
    kind = int.from_bytes(header[:kind_bytes], "big")
    unknown = (1 << 7 * length_bytes) - 1
    length = int.from_bytes(header[kind_bytes:num_bytes], "big") & unknown
    start = position + num_bytes
    return _Element(kind, start, None if length == unknown else start + length)


def _num_bytes(first: bytes) -> int:
    """Size of a number of variable size, told by its first byte's leading zeros; 0 = not one."""
    return 9 - first[0].bit_length() if first and first[0] else 0
