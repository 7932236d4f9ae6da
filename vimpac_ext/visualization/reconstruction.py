"""Original, tokenized, masked and completed clips, one below the other (paper, Figure 8)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimpac_ext.files import atomic_write

Images = NDArray[np.uint8]  # (N, H, W, 3)

GREY = 128  # of hidden tokens

# Layout in pixels.
_FRAMES_WIDTH = 840  # small frames are enlarged to about this width of all frames together
_LABEL_WIDTH = 160
_TITLE_HEIGHT = 34
_MARGIN = 10
_GAP = 4
_DOTS_PER_INCH = 100
_FONT_POINTS = 12
_TITLE_LENGTH = 70


@dataclass(frozen=True)
class Reconstruction:
    """A clip, what its tokens keep of it, and what a model makes of the part that it sees.

    All images are uint8 (N, H, W, 3), where N < ``num_frames`` if the video is too short.

    Attributes:
        title: names the clip.
        num_frames: frames of a whole clip.
        original: the frames.
        tokenized: decoded from the tokens of the frames.
        masked: the frames with hidden tokens greyed out.
        completed: decoded from the tokens, with the model's predictions for the hidden ones.
        mask_ratio: share of the tokens that are hidden; padding is not counted.
        accuracy: share of the hidden tokens whose prediction is the right one, 0 without any.
    """

    title: str
    num_frames: int
    original: Images
    tokenized: Images
    masked: Images
    completed: Images
    mask_ratio: float
    accuracy: float

    @property
    def rows(self) -> tuple[tuple[str, Images], ...]:
        """Labels and images of the picture, from top to bottom."""
        return (
            ("original", self.original),
            ("tokenizer's\nreconstruction", self.tokenized),
            (f"masked\n({self.mask_ratio:.0%} hidden)", self.masked),
            ("model's\nreconstruction", self.completed),
        )


def to_images(frames: Tensor) -> Images:
    """Pixels for showing: float (N, 3, H, W) in [0, 1] -> uint8 (N, H, W, 3)."""
    pixels = (frames.float() * 255).round().clamp(0, 255).byte()
    images: Images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(images)


def grey_out(images: Images, mask: Tensor) -> Images:
    """Covers the squares of hidden tokens.

    Args:
        images: uint8 (N, H, W, 3).
        mask: bool (N, h, w), True = hidden; h divides H, and w divides W.

    Returns:
        uint8 (N, H, W, 3), `GREY` where hidden.
    """
    height, width = (
        size // tokens for size, tokens in zip(images.shape[1:3], mask.shape[1:], strict=True)
    )
    hidden = _enlarge(mask.cpu().numpy(), height, width)  # (N, H, W)
    assert hidden.shape == images.shape[:3], (mask.shape, images.shape)
    return np.where(hidden[..., None], np.uint8(GREY), images)


def fill_hidden(tokens: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
    """Puts predictions in the place of hidden tokens and keeps all others.

    Args:
        tokens: int64 (..., T, h, w).
        mask: bool, same shape, True = hidden.
        predicted: int64 (M,), in the order of ``tokens[mask]``.
    """
    return torch.masked_scatter(tokens, mask, predicted)


def draw_reconstructions(reconstructions: Sequence[Reconstruction]) -> NDArray[np.uint8]:
    """Draws a block for each clip: a labelled row for each of its versions, a column a frame.

    Small frames are enlarged without smoothing. Frames that a short video lacks are left white.

    Args:
        reconstructions: clips of equal size, at least one.

    Returns:
        uint8 (H, W, 3).
    """
    blocks, texts, top = [], [], 0
    for reconstruction in reconstructions:
        block, row_height = _block(reconstruction)
        texts.append((_MARGIN, top + _TITLE_HEIGHT // 2, _shorten(reconstruction.title)))
        for row, (label, _) in enumerate(reconstruction.rows):
            middle = top + _TITLE_HEIGHT + row * (row_height + _GAP) + row_height // 2
            texts.append((_MARGIN, middle, label))
        blocks.append(block)
        top += len(block)
    return _write(np.concatenate(blocks), texts)


def save_image(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Writes a PNG file whole or not at all.

    Args:
        path: file, replaced.
        image: uint8 (H, W, 3).
    """
    from matplotlib.image import imsave

    with atomic_write(path, "wb") as file:
        imsave(cast(BinaryIO, file), image, format="png")


def _enlarge(images: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """(N, H, W, ...) -> (N, H * height, W * width, ...), each pixel a rectangle."""
    return images.repeat(height, axis=1).repeat(width, axis=2)


def _block(reconstruction: Reconstruction) -> tuple[Images, int]:
    """The rows of a clip on white, with room for text; and the height of a row."""
    height, width = reconstruction.original.shape[1:3]
    scale = max(1, round(_FRAMES_WIDTH / (reconstruction.num_frames * width)))
    height, width = height * scale, width * scale
    rows = reconstruction.rows
    block = np.full(
        (
            _TITLE_HEIGHT + len(rows) * (height + _GAP) + _MARGIN,
            _LABEL_WIDTH + reconstruction.num_frames * (width + _GAP) + _MARGIN,
            3,
        ),
        255,
        np.uint8,
    )
    for row, (_, images) in enumerate(rows):
        top = _TITLE_HEIGHT + row * (height + _GAP)
        for column, image in enumerate(_enlarge(images, scale, scale)):
            left = _LABEL_WIDTH + column * (width + _GAP)
            block[top : top + height, left : left + width] = image
    return block, height


def _write(image: NDArray[np.uint8], texts: Sequence[tuple[int, int, str]]) -> NDArray[np.uint8]:
    """Writes texts on an image; each is (left, middle, text), counted from the upper left."""
    # Not pyplot: it needs a window system and keeps figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    figure = Figure((width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(image, origin="upper")  # pixel by pixel, without resampling
    for left, middle, text in texts:
        # parse_math: a file name may contain dollar signs.
        figure.text(
            left / width,
            1 - middle / height,
            text,
            fontsize=_FONT_POINTS,
            verticalalignment="center",
            parse_math=False,
        )
    with warnings.catch_warnings():
        # The font lacks the letters of some languages; a box is drawn instead.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _shorten(title: str) -> str:
    title = title.encode("utf-8", "replace").decode("utf-8")
    return title if len(title) <= _TITLE_LENGTH else f"...{title[3 - _TITLE_LENGTH :]}"
