"""Opening video files, and errors that name the file and the time."""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream


class VideoDecodeError(RuntimeError):
    """A video file is missing, damaged or not a video; the message names it and the reason."""


def decode_error(path: Path, reason: str, seconds: float | None = None) -> VideoDecodeError:
    """Builds the error.

    Args:
        path: file that could not be read.
        reason: what is wrong, without the name of the file.
        seconds: time of the damage, counted from the first frame.
    """
    # One argument only: data loader workers and pickle rebuild an exception from its message.
    when = "" if seconds is None else f" at {max(seconds, 0.0):.2f} s"
    return VideoDecodeError(f"cannot decode {path}{when}: {reason}")


@contextmanager
def named_errors(path: Path, seconds: Callable[[], float] | None = None) -> Iterator[None]:
    """Turns libav's errors into `VideoDecodeError`, with the time that ``seconds`` tells."""
    try:
        yield
    except av.FFmpegError as error:
        when = None if seconds is None else seconds()
        raise decode_error(path, error.strerror or str(error), when) from error


def open_video(path: Path) -> InputContainer:
    """Opens a file for reading.

    Raises:
        VideoDecodeError: if it is missing, empty or not a video.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        is_link = " (it is a link that leads nowhere)" if path.is_symlink() else ""
        raise decode_error(path, f"the file does not exist{is_link}") from error
    except OSError as error:
        raise decode_error(path, f"it cannot be opened: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise decode_error(path, "it is a folder; give the data set's frame_rate if of images")
    if not stat.S_ISREG(status.st_mode):
        raise decode_error(path, "it is not a file")
    if status.st_size == 0:
        raise decode_error(path, "the file is empty")
    with named_errors(path):
        return av.open(str(path), metadata_errors="replace")  # titles in Latin-1 are common


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """First video stream that is not a cover picture.

    Raises:
        VideoDecodeError: if there is none, or libav has no decoder for it.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise decode_error(path, "there is no decoder for the video stream")
            return stream
    raise decode_error(path, "the file has no video stream")


def packets_of(
    container: InputContainer, stream: VideoStream
) -> "Iterator[av.Packet[VideoStream]]":
    """The stream's packets from where the container stands, then an empty one for the decoder."""
    try:
        yield from container.demux(stream)
    except IndexError:
        # Raised after the last packet if other streams have appeared while reading: PyAV looks
        # for them in a list that it made when it opened the file.
        return
