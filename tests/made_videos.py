"""Small videos whose frames carry their number, and ffmpeg's own choice of frames."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

CELL = 8  # pixels of a burnt-in bit
NUM_BITS = 8


def numbered_image(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): a moving gradient with the number as black and white cells."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 3 + number * 7, y * 5 + number * 3, np.full_like(x, number * 2)]
    image = (np.stack(channels, axis=-1) % 256).astype(np.uint8)
    for bit in range(NUM_BITS):
        image[: 2 * CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return image


def burnt_number(image: np.ndarray) -> int:
    """The number that `numbered_image` wrote into a frame, after lossy coding."""
    cells = image[: 2 * CELL, : NUM_BITS * CELL].mean(axis=(0, 2)).reshape(NUM_BITS, CELL)
    return int(sum((cells[bit].mean() > 127) << bit for bit in range(NUM_BITS)))


@dataclass
class MadeVideo:
    """What to write. Times are display times of the frames in ticks."""

    file_name: str
    codec: str = "libx264"
    times: Sequence[int] = range(100)
    tick: Fraction = Fraction(1, 25)
    num_b_frames: int = 0
    size: tuple[int, int] = (96, 64)
    pixels: str = "yuv420p"
    codec_options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    rotation: tuple[float, bool, bool] | None = None  # degrees, hflip, vflip
    sound_seconds: int = 0

    def write(self, folder: Path) -> Path:
        """Encodes the video, a key frame every 12 frames, if it is not there yet."""
        path = folder / self.file_name
        if path.exists():
            return path
        with av.open(str(path), "w", options=self.container_options) as container:
            stream = container.add_stream(self.codec, rate=25)
            stream.width, stream.height = self.size
            stream.pix_fmt = self.pixels
            stream.options = self.codec_options
            stream.codec_context.gop_size = 12
            stream.codec_context.max_b_frames = self.num_b_frames
            stream.codec_context.time_base = stream.time_base = self.tick
            if self.rotation is not None:
                degrees, hflip, vflip = self.rotation
                stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
            if self.sound_seconds:
                _write_sound(container, self.sound_seconds)
            for number, time in enumerate(self.times):
                frame = av.VideoFrame.from_ndarray(numbered_image(number, *self.size))
                frame.pts, frame.time_base = time, self.tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path


def _write_sound(container: av.container.OutputContainer, seconds: int) -> None:
    stream = container.add_stream("aac", rate=44100)
    for second in range(seconds):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        sound.rate, sound.pts, sound.time_base = 44100, second * 44100, Fraction(1, 44100)
        container.mux(stream.encode(sound))
    container.mux(stream.encode(None))


def with_changed_packets(
    source: Path, target: Path, change: Callable[[list[av.Packet]], list[bytes]]
) -> Path:
    """Copies a video, with other bytes in its packets."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        stream = copy.add_stream_from_template(container.streams.video[0])
        for packet, content in zip(packets, change(packets), strict=True):
            changed = av.Packet(content)
            changed.pts, changed.dts = packet.pts, packet.dts
            changed.time_base, changed.duration = packet.time_base, packet.duration
            changed.is_keyframe, changed.stream = packet.is_keyframe, stream
            copy.mux(changed)
    return target


def filtered(
    frames: Iterable[av.VideoFrame], filters: Sequence[tuple[str, str]]
) -> Iterator[av.VideoFrame]:
    """Frames that libav's filters let out, for frames with ``pts``, ``time_base`` and a size."""
    graph = sink = None
    for frame in frames:
        if graph is None:
            graph, sink = _configure(frame, filters)
        yield from _push(graph, sink, frame)
    yield from _push(graph, sink, None)


def filtered_numbers(
    times: Sequence[int], tick: Fraction, last_duration: int, filters: Sequence[tuple[str, str]]
) -> list[int]:
    """Numbers of the frames that libav's filters let out, for frames at the given times."""
    frames = []
    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = time - times[0], tick, last_duration
        frames.append(frame)
    return [int(frame.to_ndarray()[0, 0]) for frame in filtered(frames, filters)]


def _configure(frame, filters):
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format.name,
        time_base=frame.time_base,
    )
    chain = [source, *(graph.add(*one) for one in filters), graph.add("buffersink")]
    for before, after in pairwise(chain):
        before.link_to(after)
    graph.configure()
    return graph, chain[-1]


def _push(graph, sink, frame) -> Iterator[av.VideoFrame]:
    try:
        graph.push(frame)
        while True:
            yield sink.pull()
    except (av.error.BlockingIOError, av.error.EOFError):
        return
