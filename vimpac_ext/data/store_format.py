"""The token store on disk: file names, `StoreMeta`, LMDB keys and values.

A store is a folder::

    meta.json                   what the tokens are (`StoreMeta`); every video obeys it
    bad_videos.jsonl            videos that could not be decoded (`vimpac_ext.data.bad_videos`)
    shard_00000/data.mdb        LMDB of one writer; the truth about what is committed
    shard_00000/index.bin       compact index, derived from it (`vimpac_ext.data.store_index`)
    shard_00000/writer.lock     held while a writer is at work

Each LMDB has two named databases. ``videos``: number (commit order, 8 bytes big-endian) -> header
(number of frames, one `view_checksum` per view, video id). ``tokens``: number and position of the
view in ``meta.views`` (2 bytes) -> the frames one after the other, each as its h * w tokens,
row-major and little-endian, followed by their CRC-32 (4 bytes, started at the frame's index). So a
frame lies at a known offset, reading a clip touches only its own pages, and damage is noticed when
it is read. Both are written in one transaction per video and only ever grow at the end.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 2
META_FILE = "meta.json"
DATA_FILE = "data.mdb"
INDEX_FILE = "index.bin"
LOCK_FILE = "writer.lock"


@dataclass(frozen=True)
class StoreMeta:
    """What every token in a store has in common.

    Attributes:
        tokenizer: registered name of the tokenizer.
        tokenizer_fingerprint: its name and the hash of its weights.
        vocab_size: tokens are in [0, vocab_size).
        stride: pixels per token along a side.
        fps: frames per second of the tokens.
        views: names of the spatial views stored for every video.
        grid: tokens of a frame, (height, width).
        annotation_fingerprint: identifies the data set whose video ids are the keys.
        precision: arithmetic of the tokenizer, "fp32" or "bf16"; it can change tokens at near ties.
        format_version: layout of the folder.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    stride: int
    fps: float
    views: tuple[str, ...]
    grid: tuple[int, int]
    annotation_fingerprint: str = ""
    precision: str = "fp32"
    format_version: int = FORMAT_VERSION

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """Smallest little-endian unsigned integer that holds the vocabulary."""
        for name in ("<u1", "<u2"):
            if self.vocab_size - 1 <= np.iinfo(name).max:
                return np.dtype(name)
        return np.dtype("<u4")

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """A stored frame: "tokens" (h, w) and "checksum"."""
        return np.dtype([("tokens", self.token_dtype, self.grid), ("checksum", "<u4")])

    def to_json(self) -> str:
        """The content of meta.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "StoreMeta":
        """Read the content of meta.json.

        Args:
            text: the content.
            source: file name for error messages.

        Raises:
            ValueError: not JSON, of another format version, or with missing or unknown fields.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source} is not valid JSON: {error}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: token store format {version!r} is unknown; this version of vimpac_ext "
                f"reads format {FORMAT_VERSION}, extract the tokens again"
            )
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(values) != expected:
            raise ValueError(
                f"{source}: missing fields {sorted(expected - set(values))}, "
                f"unknown fields {sorted(set(values) - expected)}"
            )
        height, width = values["grid"]
        return cls(**{**values, "views": tuple(values["views"]), "grid": (height, width)})

    def differences(self, other: "StoreMeta") -> list[str]:
        """Every field that differs, as text with both values (own first)."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{k}: {mine[k]!r} != {theirs[k]!r}" for k in mine if mine[k] != theirs[k]]


def read_meta(folder: Path) -> StoreMeta:
    """Read the description of the store in a folder.

    Raises:
        ValueError: the folder is missing, is not a token store, or is of another version.
    """
    path = folder / META_FILE
    if not path.is_file():
        reason = f"it has no {META_FILE}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is not a token store: {reason}")
    return StoreMeta.from_json(path.read_text(encoding="utf-8"), str(path))


def shard_name(shard_id: int) -> str:
    """Folder name of a writer's shard."""
    return f"shard_{shard_id:05d}"


def shard_folders(folder: Path) -> dict[int, Path]:
    """The shards of a store by their ids, in order."""
    return {
        int(path.name.split("_")[1]): path for path in sorted(folder.glob("shard_" + "[0-9]" * 5))
    }


def encode_id(video_id: str) -> bytes:
    """Bytes of a video id; file names that are not UTF-8 survive the round trip."""
    return video_id.encode("utf-8", "surrogateescape")


def video_key(number: int) -> bytes:
    """Key of a video's header in the ``videos`` database."""
    return struct.pack(">Q", number)


def token_key(number: int, view: int) -> bytes:
    """Key of one view's tokens in the ``tokens`` database."""
    return struct.pack(">QH", number, view)


def pack_frames(tokens: np.ndarray, meta: StoreMeta) -> bytes:
    """The value in the ``tokens`` database for tokens (frames, h, w) within the vocabulary."""
    frames = np.zeros(len(tokens), meta.frame_dtype)
    frames["tokens"] = tokens
    frames["checksum"] = _checksums(frames, range(len(frames)))
    return frames.tobytes()


def view_checksum(value: bytes | memoryview, video_id: bytes) -> int:
    """CRC-32 of a view's value that also tells whose it is, for `VideoHeader`."""
    return zlib.crc32(value, zlib.crc32(video_id))


def damaged_frames(frames: np.ndarray, indices: Sequence[int]) -> list[int]:
    """Those of the frames (of `StoreMeta.frame_dtype`) whose tokens are not as they were written.

    Args:
        frames: as read.
        indices: their positions in the video.
    """
    stored, found = frames["checksum"].tolist(), _checksums(frames, indices)
    if stored == found:
        return []
    return [i for i, a, b in zip(indices, stored, found, strict=True) if a != b]


def _checksums(frames: np.ndarray, indices: Sequence[int]) -> list[int]:
    content, size = memoryview(frames.tobytes()), frames.dtype.itemsize
    return [
        zlib.crc32(content[k * size : (k + 1) * size - 4], index) for k, index in enumerate(indices)
    ]


class VideoHeader(NamedTuple):
    """What a store knows about a video besides its tokens."""

    num_frames: int
    checksums: tuple[int, ...]  # `view_checksum` of each view, in the order of meta.views
    video_id: bytes

    def pack(self) -> bytes:
        """The value in the ``videos`` database."""
        numbers = struct.pack(f"<{1 + len(self.checksums)}I", self.num_frames, *self.checksums)
        return numbers + self.video_id

    @classmethod
    def unpack(cls, value: bytes | memoryview, num_views: int) -> "VideoHeader":
        """Read the value in the ``videos`` database.

        Raises:
            ValueError: it is too short.
        """
        if len(value) <= 4 * (1 + num_views):
            raise ValueError(f"a header of {len(value)} bytes")
        num_frames, *checksums = struct.unpack_from(f"<{1 + num_views}I", value)
        return cls(num_frames, tuple(checksums), bytes(value[4 * (1 + num_views) :]))
