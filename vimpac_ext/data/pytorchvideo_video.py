"""Our reader behind pytorchvideo's ``Video`` interface.

For pytorchvideo's clip samplers and data sets::

    dataset = LabeledVideoDataset(paths, make_clip_sampler("random", 2.0), decode_audio=False)
    dataset.video_path_handler = PyAVPathHandler()

Importing this module imports pytorchvideo.
"""

from pathlib import Path

import torch
from torch import Tensor

from vimpac_ext import compat
from vimpac_ext.data.decode import FrameReader, open_reader
from vimpac_ext.data.frame_folder import FrameFolder

compat.install()

from pytorchvideo.data.video import Video, VideoPathHandler  # noqa: E402


class PyAVVideo(Video):
    """A video whose clips hold all frames between two times, in the order of display.

    Unlike pytorchvideo's own ``EncodedVideo`` it is right for AVI files with B-frames and for
    streams that do not start at 0, and raises an error where a frame cannot be decoded. Audio is
    never decoded.

    Args:
        path: a file, or a folder of images.
        num_threads: decoding threads.
        fps: images a second of a folder.
        decoder: of a file, "pyav" or "torchcodec".

    Raises:
        VideoDecodeError: if the video cannot be read.
        ImportError: if torchcodec cannot be used; says what to do.
    """

    def __init__(
        self, path: str | Path, num_threads: int = 1, fps: float = 30, decoder: str = "pyav"
    ) -> None:
        is_folder = Path(path).is_dir()
        self._reader: FrameReader = (
            FrameFolder(path, fps) if is_folder else open_reader(path, decoder, num_threads)
        )
        self._name = Path(path).name

    @property
    def name(self) -> str:
        """Name of the file or folder."""
        return self._name

    @property
    def duration(self) -> float:
        """Seconds of the video stream."""
        return self._reader.duration

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, Tensor | None]:
        """All frames shown at ``start_sec`` <= time < ``end_sec``.

        Returns:
            "video": float32 (3, T, H, W) in 0..255, None where there is no frame. "audio": None.

        Raises:
            VideoDecodeError: if a frame cannot be decoded.
        """
        frames = self._reader.frames_between(start_sec, min(end_sec, self.duration))
        video = torch.from_numpy(frames).permute(3, 0, 1, 2).float() if len(frames) else None
        return {"video": video, "audio": None}

    def close(self) -> None:
        """Closes the reader."""
        self._reader.close()


class PyAVPathHandler(VideoPathHandler):
    """pytorchvideo's path handler that opens files and folders of images as `PyAVVideo`."""

    def video_from_path(
        self, filepath: str, decode_audio: bool = False, decoder: str = "pyav", fps: int = 30
    ) -> Video:
        """Opens a file with a decoder, or a folder of images, whose rate ``fps`` is.

        Raises:
            VideoDecodeError: if the video cannot be read.
        """
        return PyAVVideo(filepath, fps=fps, decoder=decoder)
