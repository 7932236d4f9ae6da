"""Speed of random clips: our reader against pytorchvideo's, in turns, in one run."""

import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vimpac_ext import compat
from vimpac_ext.benchmarks.result import Result
from vimpac_ext.data.decode import VideoReader

NUM_FRAMES, FPS = 5, 2.0
SIZES = {"240p": (320, 240), "1080p": (1920, 1080)}


class DecodingSpeed(NamedTuple):
    """Medians over the clips.

    Attributes:
        seconds: of wall-clock time for a clip of ours.
        reference_seconds: the same, of pytorchvideo's reader.
        cpu_seconds: of processor time for a clip of ours.
        reference_cpu_seconds: the same, of pytorchvideo's reader.
    """

    seconds: float
    reference_seconds: float
    cpu_seconds: float
    reference_cpu_seconds: float


def measure_random_clips(
    folder: Path, videos: Mapping[str, Path] | None = None, num_clips: int = 20, seconds: int = 60
) -> Result:
    """Clips per second of both readers: 5 frames at 2 a second from a random start.

    Opening the file is included; one process, one decoding thread.

    Args:
        folder: where videos are made.
        videos: name -> file; None = made ones of 240p and 1080p.
        num_clips: of each video.
        seconds: that a made video lasts.

    Raises:
        ValueError: if a video is shorter than a clip.
    """
    compat.install()
    made = {name: folder / f"{name}.mp4" for name in SIZES}
    for name, path in made.items() if not videos else ():
        make_video(path, SIZES[name], seconds)
    rows: dict[str, float] = {}
    for name, path in (videos or made).items():
        speed = measure_decoding(path, num_clips)
        rows |= {
            f"{name}: ours, clips/s": 1 / speed.seconds,
            f"{name}: pytorchvideo's reader, clips/s": 1 / speed.reference_seconds,
            f"{name}: ratio": speed.reference_seconds / speed.seconds,
            f"{name}: ratio of processor time": speed.reference_cpu_seconds / speed.cpu_seconds,
        }
    return Result(f"random clips of {NUM_FRAMES} frames at {FPS:g} frames/s from files", rows)


def measure_decoding(path: Path, num_clips: int = 20, seed: int = 0) -> DecodingSpeed:
    """Reads the same random clips of a video with both readers, in turns.

    Args:
        path: a video that lasts longer than a clip.
        num_clips: how many.
        seed: of the starts.

    Raises:
        ValueError: if the video is too short.
    """
    num_frames = VideoReader(path).num_frames_at(FPS)
    if num_frames <= NUM_FRAMES:
        raise ValueError(f"{path} has {num_frames} frames at {FPS} a second, too few for a clip")
    starts = np.random.default_rng(seed).integers(0, num_frames - NUM_FRAMES, num_clips).tolist()
    readers = (_read_ours, _read_pytorchvideo)
    for read in readers:  # to warm up
        read(path, starts[0])
    times = np.array([[_times(read, path, start) for read in readers] for start in starts])
    (wall, cpu), (reference_wall, reference_cpu) = np.median(times, axis=0).tolist()
    return DecodingSpeed(wall, reference_wall, cpu, reference_cpu)


def make_video(path: Path, size: tuple[int, int], seconds: int) -> None:
    """Writes H.264 at 30 frames a second: a textured picture that a camera pans and shakes over."""
    width, height = size
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    picture = np.roll(picture, 3, axis=1) // 2 + picture // 2  # softer edges
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        for number in range(seconds * 30):
            shift = (number // 3 + int(generator.integers(3)), 2 * number)
            image = np.roll(picture, shift, axis=(0, 1))
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _times(read: Callable[[Path, int], object], path: Path, start: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    read(path, start)
    return time.perf_counter() - wall, time.process_time() - cpu


def _read_ours(path: Path, start: int) -> object:
    return VideoReader(path).frames_at(FPS, range(start, start + NUM_FRAMES))


def _read_pytorchvideo(path: Path, start: int) -> object:
    from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(str(path), decode_audio=False)
    clip = video.get_clip(start / FPS, (start + NUM_FRAMES) / FPS)["video"]
    video.close()
    step = max(clip.shape[1] // NUM_FRAMES, 1)
    return clip[:, ::step][:, :NUM_FRAMES].contiguous()
