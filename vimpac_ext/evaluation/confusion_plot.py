"""Picture of a confusion matrix, legible from a handful of classes to 400."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.texts import drawable, missing_letters_as_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED_CLASSES = 20  # up to here a cell has room for its percentage
_NAME_LENGTH = 40
_POINTS_PER_INCH = 72
_DOTS_PER_INCH = 110


def save_confusion_plot(
    path: str | Path, counts: NDArray[np.integer], class_names: Sequence[str]
) -> None:
    """Draw the share of each true class (row) that is predicted as each class (column).

    The colour scale is a square root, so that rare confusions of many classes show. Rows of
    classes without videos are grey.

    Args:
        path: PNG file, replaced.
        counts: (C, C), rows are true classes.
        class_names: the C names.
    """
    # Not pyplot: it needs a window system and keeps figures. Saving a PNG uses the Agg renderer.
    from matplotlib.figure import Figure

    num_classes = len(counts)
    # Inches from one row to the next: wide for numbers in the cells, else room for a name.
    pitch = 0.5 if num_classes <= _NUMBERED_CLASSES else float(np.clip(30 / num_classes, 0.11, 0.3))
    names = axis_names(class_names)
    font_size = min(9.0, 0.8 * pitch * _POINTS_PER_INCH)
    name_inches = max(map(len, names)) * font_size * 0.6 / _POINTS_PER_INCH
    side = pitch * num_classes
    figure = Figure(
        figsize=(side + name_inches + 1.6, side + name_inches + 1.0), dpi=_DOTS_PER_INCH
    )
    width, height = figure.get_size_inches()
    left, bottom = (name_inches + 0.5) / width, (name_inches + 0.5) / height
    axes = figure.add_axes((left, bottom, side / width, side / height))
    color_axes = figure.add_axes(
        (left + (side + 0.2) / width, bottom, 0.2 / width, min(side, 6.0) / height)
    )
    _draw(axes, color_axes, counts, names, font_size)
    with missing_letters_as_boxes(), atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")


def axis_names(class_names: Sequence[str]) -> list[str]:
    """What stands at the rows and columns: names, long ones cut short.

    The number of the class follows where there are many classes, or where names are alike.
    """
    names = [_shorten(name) for name in class_names]
    if len(names) > _NUMBERED_CLASSES or len(set(names)) < len(names):
        names = [f"{name}  {label}" for label, name in enumerate(names)]
    return names


def _draw(
    axes: "Axes",
    color_axes: "Axes",
    counts: NDArray[np.integer],
    names: Sequence[str],
    font_size: float,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    totals = counts.sum(axis=1, keepdims=True)
    percent = np.ma.masked_invalid(
        np.divide(100.0 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    )
    colors = colormaps["Blues"].with_extremes(bad="lightgrey")
    image = axes.imshow(percent, cmap=colors, norm=PowerNorm(0.5, 0, 100), aspect="auto")
    ticks = range(len(names))
    # parse_math: a class name may contain dollar signs.
    axes.set_yticks(ticks, names, fontsize=font_size, parse_math=False)
    axes.set_xticks(ticks, names, fontsize=font_size, rotation=90, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = axes.figure.colorbar(image, cax=color_axes)
    bar.set_label("% of true class")
    if len(names) <= _NUMBERED_CLASSES:
        for row, column in np.argwhere(counts):
            value = percent[row, column]
            color = "white" if value > 40 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
    else:
        # Thin lines lead the eye from a cell to its names.
        grid = np.arange(4.5, len(names) - 1, 5)
        axes.hlines(grid, -0.5, len(names) - 0.5, color="0.85", linewidth=0.4)
        axes.vlines(grid, -0.5, len(names) - 0.5, color="0.85", linewidth=0.4)


def _shorten(name: str) -> str:
    name = drawable(name)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."
