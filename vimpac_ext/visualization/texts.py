"""Texts in pictures: how wide they are, and making them fit."""

import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Measure = Callable[[str], float]  # width of a line


def plotted_width(points: float, dots_per_inch: float) -> Measure:
    """How wide matplotlib draws text, in pixels: of several lines, the longest.

    Args:
        points: size of the letters.
        dots_per_inch: of the picture. Letters take whole pixels, so that their widths do not grow
            evenly with this.
    """
    # Not pyplot: it needs a window system and keeps figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    renderer = FigureCanvasAgg(Figure(dpi=dots_per_inch)).get_renderer()
    font = FontProperties(size=points)

    def measure(text: str) -> float:
        lines = [line for line in drawable(text).splitlines() if line]
        with missing_letters_as_boxes():
            widths = [
                renderer.get_text_width_height_descent(line, font, False)[0] for line in lines
            ]
        return float(max(widths, default=0.0))

    return measure


def drawable(text: str) -> str:
    """The text, with a question mark for bytes of a file name that are no letters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shorten(text: str, width: float, measure: Measure) -> str:
    """A line, cut at its end and with three dots where it is wider than ``width``."""
    text = drawable(text)
    if measure(text) <= width:
        return text
    # By bisection: measuring letters that the font lacks takes long.
    fits = bisect_right(range(len(text)), width, key=lambda length: measure(f"{text[:length]}..."))
    return f"{text[: max(fits - 1, 0)]}..."


def wrap(text: str, width: float, measure: Measure) -> str:
    """All of a line in lines of at most ``width``, broken after spaces and / _ - . if possible."""
    lines = [""]

    def fits(more: str) -> bool:
        return not lines[-1] or measure(lines[-1] + more) <= width

    for piece in filter(None, re.findall(r"[^\s/_.-]*[\s/_.-]?", drawable(text))):
        if not fits(piece):
            lines.append("")
        for letter in piece:  # of a piece that is too long for any line
            if not fits(letter):
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


@contextmanager
def missing_letters_as_boxes() -> Iterator[None]:
    """Within it matplotlib does not warn of letters that its font lacks: it draws a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
