"""Damaged copies of small videos, the same for the same seed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from made_videos import MadeVideo

FAST = {"deadline": "realtime", "cpu-used": "-8"}  # negative: whatever the load
SOURCES = [
    MadeVideo("h264.mp4", times=range(30), num_b_frames=3),
    MadeVideo("mpeg4.mov", "mpeg4", times=range(30), num_b_frames=2),
    MadeVideo("h264.mkv", times=range(30), num_b_frames=2),
    MadeVideo("vp8.webm", "libvpx", times=range(30), codec_options=FAST),
    MadeVideo("vp9.webm", "libvpx-vp9", times=range(30), codec_options=FAST),
    MadeVideo("mpeg4.avi", "mpeg4", times=range(30), num_b_frames=1),
    MadeVideo("h264.avi", times=range(30), num_b_frames=3),
    MadeVideo("h264.ts", times=range(30), num_b_frames=3),
    MadeVideo("mpeg2.mpg", "mpeg2video", times=range(30), num_b_frames=2),
    MadeVideo("h264.flv", times=range(30), num_b_frames=2),
    MadeVideo(
        "fragments.mp4",
        times=range(30),
        num_b_frames=2,
        container_options={"movflags": "frag_keyframe+empty_moov"},
    ),
    MadeVideo(
        "first.mp4", times=range(30), num_b_frames=2, container_options={"movflags": "faststart"}
    ),
]

Damage = Callable[[bytearray, np.random.Generator], bytes]


def cut_off(content: bytearray, generator: np.random.Generator) -> bytes:
    return bytes(content[: generator.integers(1, len(content))])


def flip_bits(content: bytearray, generator: np.random.Generator) -> bytes:
    for position in generator.integers(0, len(content), generator.integers(1, 30)):
        content[position] ^= 1 << int(generator.integers(8))
    return bytes(content)


def flip_header_bits(content: bytearray, generator: np.random.Generator) -> bytes:
    ends = [*range(min(600, len(content))), *range(max(len(content) - 1500, 0), len(content))]
    for position in generator.choice(ends, generator.integers(1, 6)):
        content[position] ^= 1 << int(generator.integers(8))
    return bytes(content)


def zero_bytes(content: bytearray, generator: np.random.Generator) -> bytes:
    begin = int(generator.integers(len(content)))
    length = int(generator.integers(1, max(len(content) // 4, 2)))
    content[begin : begin + length] = bytes(len(content[begin : begin + length]))
    return bytes(content)


def noise(content: bytearray, generator: np.random.Generator) -> bytes:
    begin = int(generator.integers(len(content)))
    length = len(content[begin : begin + int(generator.integers(1, 2000))])
    content[begin : begin + length] = generator.bytes(length)
    return bytes(content)


def lose_a_piece(content: bytearray, generator: np.random.Generator) -> bytes:
    begin = int(generator.integers(len(content)))
    del content[begin : begin + int(generator.integers(1, 3000))]
    return bytes(content)


def repeat_a_piece(content: bytearray, generator: np.random.Generator) -> bytes:
    begin = int(generator.integers(len(content)))
    piece = content[begin : begin + int(generator.integers(1, 3000))]
    content[begin:begin] = piece
    return bytes(content)


def leave_nothing(content: bytearray, generator: np.random.Generator) -> bytes:
    return b""


def write_text(content: bytearray, generator: np.random.Generator) -> bytes:
    return b"HTTP/1.1 404 Not Found\r\nThis video is private.\r\n" * int(generator.integers(1, 300))


def change_nothing(content: bytearray, generator: np.random.Generator) -> bytes:
    return bytes(content)  # the extension changes


# The more interesting a damage the more often.
DAMAGES: list[Damage] = [
    *(3 * [cut_off, flip_bits, flip_header_bits, zero_bytes, noise]),
    *(lose_a_piece, repeat_a_piece, leave_nothing, write_text, change_nothing),
]


@cache
def _source(number: int) -> bytes:
    """Content of a whole video, coded once: x264 does not give the same bytes every time."""
    with TemporaryDirectory() as folder:
        return SOURCES[number].write(Path(folder)).read_bytes()


def mutated_videos(folder: Path, number: int, seed: int = 0) -> list[Path]:
    """Writes ``number`` damaged videos below ``folder`` and returns their paths."""
    paths = []
    for index in range(number):
        generator = np.random.default_rng((seed, index))
        made = SOURCES[index % len(SOURCES)]
        damage = DAMAGES[int(generator.integers(len(DAMAGES)))]
        content = damage(bytearray(_source(index % len(SOURCES))), generator)
        suffix = Path(made.file_name).suffix
        if damage is change_nothing:
            suffix = str(generator.choice([".mp4", ".avi", ".webm", ".mkv", ".ts", ".flv"]))
        path = folder / f"{index:03} {damage.__name__} {Path(made.file_name).stem}{suffix}"
        path.write_bytes(content)
        paths.append(path)
    return paths
