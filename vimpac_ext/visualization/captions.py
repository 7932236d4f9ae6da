"""Texts drawn onto the frames of a video."""

from collections.abc import Callable, Sequence

import numpy as np

from vimpac_ext.visualization.sheet import Image, enlarge
from vimpac_ext.visualization.texts import shorten

_MIN_SIDE = 240  # pixels; smaller frames are enlarged so that the text has room
_LINES_PER_FRAME = 18  # of text that would fill the shorter side
_GROUND = (0, 0, 0, 150)  # behind the text, half transparent
_BAR = (70, 130, 180, 200)
_TEXT = (255, 255, 255, 255)


def captioner(lines: Sequence[tuple[str, float]]) -> Callable[[Image], Image]:
    """Makes a function that draws the same lines of text onto every frame of a video.

    Small frames are enlarged without smoothing. What is too long for the frame is cut.

    Args:
        lines: texts, and for each the share of the width (0 to 1) that the bar behind it takes.

    Returns:
        Function from uint8 (H, W, 3) to uint8 (s H, s W, 3), for frames of one size.
    """
    overlay: list[np.ndarray] = []

    def draw(frame: Image) -> Image:
        scale = max(1, -(-_MIN_SIDE // min(frame.shape[:2])))
        image = enlarge(frame[None], scale, scale)[0]
        if not overlay:
            overlay.append(_overlay(image.shape[0], image.shape[1], lines))
        box = overlay[0]
        part = image[: len(box)].astype(np.float32)
        opacity = box[:, :, 3:].astype(np.float32) / 255
        drawn = image.astype(np.uint8)
        drawn[: len(box)] = np.rint(part + opacity * (box[:, :, :3] - part)).astype(np.uint8)
        return drawn

    return draw


def _overlay(height: int, width: int, lines: Sequence[tuple[str, float]]) -> np.ndarray:
    """The text box at the upper edge, uint8 (h, W, 4) RGB and opacity."""
    from matplotlib import get_data_path
    from PIL import Image as PilImage
    from PIL import ImageDraw, ImageFont

    size = max(12, min(height, width) // _LINES_PER_FRAME)
    # matplotlib's own font has more letters than Pillow's.
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", round(0.75 * size))
    picture = PilImage.new("RGBA", (width, min(height, size * len(lines))), _GROUND)
    pen = ImageDraw.Draw(picture)
    for number, (text, share) in enumerate(lines):
        top = number * size
        if length := round(share * width):
            pen.rectangle((0, top, length - 1, top + size - 2), fill=_BAR)
        shown = shorten(text, width - size, font.getlength)
        pen.text((size // 4, top + size // 2), shown, _TEXT, font, anchor="lm")
    return np.asarray(picture)
