"""Labelled rows of images: all moments side by side as a picture, or one after the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vimpac_ext.visualization.texts import (
    drawable,
    missing_letters_as_boxes,
    plotted_width,
    shorten,
)

Images = NDArray[np.uint8]  # (N, H, W, 3)
Image = NDArray[np.uint8]  # (H, W, 3)

FRAMES_WIDTH = 840  # pixels; small images are enlarged to about this width of all columns together

# Layout in pixels.
_LABEL_WIDTH = 160
_TITLE_HEIGHT = 34
_MARGIN = 10
_GAP = 4
_LINE_HEIGHT = 20
_SLIDE_COLUMNS = 4
_SLIDE_WIDTH = 630  # at least, so that a title has room
_DOTS_PER_INCH = 100
_FONT_POINTS = 12


@dataclass(frozen=True)
class Row:
    """Images of one kind, one for each moment of a clip.

    Attributes:
        label: what they are, in short lines.
        images: uint8 (N, H, W, 3).
        captions: a short text below each image, or none.
    """

    label: str
    images: Images
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """What is shown of one clip.

    Attributes:
        title: names the clip.
        num_columns: moments of a whole clip; a row may have fewer images.
        rows: at least one, all of images of one size.
    """

    title: str
    num_columns: int
    rows: tuple[Row, ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.rows[0].images.shape[1], self.rows[0].images.shape[2]


def draw_sheet(blocks: Sequence[Block], frames_width: int = FRAMES_WIDTH) -> Image:
    """Draws the blocks one below the other: a labelled row for each kind, a column a moment.

    Small images are enlarged without smoothing, and large ones shrunk by whole factors, so that
    labels stay legible where the picture is shown small. Images that a short clip lacks are left
    white. Labels and captions have the room that they need; a title that is wider than the sheet is
    cut at its end.

    Args:
        blocks: at least one.
        frames_width: pixels that the columns should take together, about.

    Returns:
        uint8 (H, W, 3).
    """
    canvas = _Canvas()
    labels = max(map(_label_width, blocks))
    left = max(_LABEL_WIDTH, 2 * _MARGIN + labels) if labels else _MARGIN
    top = 0
    for full_size in blocks:
        block = _shrunk(full_size, frames_width)
        scale = _scale(block, block.num_columns, frames_width)
        height, width = (scale * side for side in block.image_size)
        step = max(width, _caption_width(block)) + _GAP
        canvas.title(top + _TITLE_HEIGHT // 2, block.title)
        top += _TITLE_HEIGHT
        for row in block.rows:
            canvas.write(_MARGIN, top + height // 2, row.label)
            for column, image in enumerate(enlarge(row.images, scale, scale)):
                canvas.paste(top, left + column * step, image)
            top += height + _GAP
            for column, caption in enumerate(row.captions):
                middle = left + column * step + width // 2
                canvas.write(middle, top + _LINE_HEIGHT // 2, caption, centred=True)
            top += _LINE_HEIGHT if row.captions else 0
        top += _MARGIN
        canvas.extend(top, left + block.num_columns * step + _MARGIN)
    return canvas.render()


def draw_slides(blocks: Sequence[Block], frames_width: int = FRAMES_WIDTH) -> list[Image]:
    """Draws one picture for each moment, where the rows of a block stand side by side.

    Images that a short clip lacks are left white. All pictures have one size.

    Args:
        blocks: at least one.
        frames_width: pixels that the images of a line should take together.

    Returns:
        uint8 (H, W, 3) each; as many as the longest block has columns.
    """
    moments = range(max(block.num_columns for block in blocks))
    return [_slide(blocks, moment, frames_width) for moment in moments]


def enlarge(images: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """(N, H, W, ...) -> (N, H * height, W * width, ...), each pixel a rectangle."""
    return images.repeat(height, axis=1).repeat(width, axis=2)


def _slide(blocks: Sequence[Block], moment: int, frames_width: int) -> Image:
    canvas = _Canvas()
    top = 0
    for block in blocks:
        columns = min(_SLIDE_COLUMNS, len(block.rows))
        scale = _scale(block, columns, frames_width)
        height, width = (scale * side for side in block.image_size)
        captions = _caption_width(block)
        step = max(width, captions, _label_width(block)) + _GAP
        label_height = _LINE_HEIGHT * max(len(row.label.splitlines()) for row in block.rows)
        caption_height = _LINE_HEIGHT if any(row.captions for row in block.rows) else 0
        canvas.title(top + _TITLE_HEIGHT // 2, block.title)
        top += _TITLE_HEIGHT
        for index, row in enumerate(block.rows):
            line, column = divmod(index, columns)
            upper = top + line * (label_height + height + caption_height + _GAP)
            left = _MARGIN + column * step
            canvas.write(left, upper + label_height // 2, row.label)
            if moment < len(row.images):
                canvas.paste(
                    upper + label_height, left, enlarge(row.images[None, moment], scale, scale)[0]
                )
            if moment < len(row.captions):
                middle = upper + label_height + height + caption_height // 2
                centre = left + max(width, captions) // 2
                canvas.write(centre, middle, row.captions[moment], centred=True)
        num_lines = -(-len(block.rows) // columns)
        top += num_lines * (label_height + height + caption_height + _GAP) + _MARGIN
        canvas.extend(top, max(2 * _MARGIN + columns * step, _SLIDE_WIDTH))
    return canvas.render()


def _scale(block: Block, columns: int, frames_width: int) -> int:
    return max(1, round(frames_width / (columns * block.image_size[1])))


def _shrunk(block: Block, frames_width: int) -> Block:
    """The block with smaller images (means of squares), if its columns are twice too wide."""
    height, width = block.image_size
    wanted = block.num_columns * width // frames_width
    factors = (n for n in range(wanted, 1, -1) if height % n == 0 and width % n == 0)
    factor = next(factors, 1)
    if factor == 1:
        return block
    rows = []
    for row in block.rows:
        shape = (len(row.images), height // factor, factor, width // factor, factor, 3)
        small = row.images.reshape(shape).mean(axis=(2, 4)).round().astype(np.uint8)
        rows.append(replace(row, images=small))
    return replace(block, rows=tuple(rows))


def _label_width(block: Block) -> int:
    return text_width("\n".join(row.label for row in block.rows))


def _caption_width(block: Block) -> int:
    return text_width("\n".join(caption for row in block.rows for caption in row.captions))


def text_width(text: str) -> int:
    """Pixels that a label or caption takes, of several lines the longest."""
    return math.ceil(plotted_width(_FONT_POINTS, _DOTS_PER_INCH)(text))


class _Text(NamedTuple):
    """A text on a page; ``is_title`` = it is cut where the page ends."""

    left: int
    middle: int
    text: str
    centred: bool = False
    is_title: bool = False


class _Canvas:
    """A white page on which images and texts are placed."""

    def __init__(self) -> None:
        self.height, self.width = 0, 0
        self.images: list[tuple[int, int, NDArray[np.generic]]] = []
        self.texts: list[_Text] = []

    def extend(self, height: int, width: int) -> None:
        """Makes the page at least so large."""
        self.height, self.width = max(self.height, height), max(self.width, width)

    def paste(self, top: int, left: int, image: NDArray[np.generic]) -> None:
        """Places an image by its upper left corner."""
        self.images.append((top, left, image))

    def write(self, left: int, middle: int, text: str, centred: bool = False) -> None:
        """Writes to the right of a point (or around it), vertically centred on it."""
        self.texts.append(_Text(left, middle, drawable(text), centred))

    def title(self, middle: int, text: str) -> None:
        """Writes a line from the left margin; what is too long for the page is cut."""
        self.texts.append(_Text(_MARGIN, middle, text, is_title=True))

    def render(self) -> Image:
        """The page, uint8 (H, W, 3)."""
        # Not pyplot: it needs a window system and keeps figures.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        page = np.full((self.height, self.width, 3), 255, np.uint8)
        for top, left, image in self.images:
            page[top : top + image.shape[0], left : left + image.shape[1]] = image
        inches = (self.width / _DOTS_PER_INCH, self.height / _DOTS_PER_INCH)
        figure = Figure(inches, dpi=_DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        figure.figimage(page, origin="upper")  # pixel by pixel, without resampling
        room, measure = self.width - 2 * _MARGIN, plotted_width(_FONT_POINTS, _DOTS_PER_INCH)
        for left, middle, text, centred, is_title in self.texts:
            figure.text(
                left / self.width,
                1 - middle / self.height,
                shorten(text, room, measure) if is_title else text,
                fontsize=_FONT_POINTS,
                verticalalignment="center",
                horizontalalignment="center" if centred else "left",
                parse_math=False,  # a file name may contain dollar signs
            )
        with missing_letters_as_boxes():
            canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]
