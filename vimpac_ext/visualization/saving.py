"""Pictures and animations as files, written whole or not at all."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.sheet import (
    FRAMES_WIDTH,
    Block,
    Image,
    draw_sheet,
    draw_slides,
)

ANIMATIONS = (".gif", ".mp4")
SUFFIXES = (".png", *ANIMATIONS)


def save_figure(
    path: str | Path, blocks: Sequence[Block], fps: float, frames_width: int = FRAMES_WIDTH
) -> None:
    """Writes blocks as a picture (.png) or as an animation (.gif, .mp4), by the file's suffix.

    Args:
        path: file, replaced.
        blocks: at least one.
        fps: moments a second of an animation.
        frames_width: as for `draw_sheet`.

    Raises:
        ValueError: for another suffix.
    """
    require_suffix(path, SUFFIXES)
    if Path(path).suffix.lower() in ANIMATIONS:
        save_animation(path, draw_slides(blocks, frames_width), fps)
    else:
        save_image(path, draw_sheet(blocks, frames_width))


def require_suffix(path: str | Path, suffixes: Sequence[str]) -> None:
    """Raises ValueError unless the file's name ends in one of ``suffixes``."""
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the file's name must end in {' or '.join(suffixes)}")


def save_image(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Writes a PNG file whole or not at all.

    Args:
        path: file, replaced.
        image: uint8 (H, W, 3).
    """
    from matplotlib.image import imsave

    with atomic_write(path, "wb") as file:
        imsave(cast(BinaryIO, file), image, format="png")


def save_animation(path: str | Path, images: Sequence[Image], fps: float) -> None:
    """Writes images one after the other, as an endless GIF or as H.264 in MP4.

    Args:
        path: file ending in .gif or .mp4, replaced.
        images: uint8 (H, W, 3) each, of one size, at least one.
        fps: images a second, above 0.

    Raises:
        ValueError: for another suffix, or a rate of 0 or below.
    """
    require_suffix(path, ANIMATIONS)
    if fps <= 0:
        raise ValueError(f"an animation needs a positive rate, got {fps} images a second")
    with atomic_write(path, "wb") as file:
        if Path(path).suffix.lower() == ".gif":
            _write_gif(file, images, fps)
        else:
            _write_mp4(file, images, fps)


def save_video(path: str | Path, images: Iterable[Image], fps: Fraction) -> None:
    """Writes images one after the other as H.264 in MP4, holding one at a time.

    Args:
        path: file ending in .mp4, replaced.
        images: uint8 (H, W, 3) each, of one size, at least one.
        fps: images a second, above 0.

    Raises:
        ValueError: for another suffix.
    """
    require_suffix(path, (".mp4",))
    with atomic_write(path, "wb") as file:
        _write_mp4(file, images, fps)


def _write_gif(file: IO[bytes], images: Sequence[Image], fps: float) -> None:
    import PIL.Image

    frames = [PIL.Image.fromarray(image) for image in images]
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),  # milliseconds
        loop=0,
    )


def _write_mp4(file: IO[bytes], images: Iterable[Image], fps: float | Fraction) -> None:
    import av

    images = iter(images)
    first = next(images)
    height, width = (side + side % 2 for side in first.shape[:2])  # colours come by 2 x 2
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "15"}  # small texts stay sharp
        for image in chain([first], images):
            padding = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
            padded = np.pad(image, padding, constant_values=255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())
