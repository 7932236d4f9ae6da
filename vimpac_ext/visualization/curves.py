"""Curves of one run or several: a panel for each scalar, a colour for each run."""

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.run_files import Series
from vimpac_ext.visualization.texts import missing_letters_as_boxes, plotted_width, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_PANEL_INCHES = (4.6, 3.0)
_LEGEND_LINE_INCHES = 0.25
_LEGEND_POINTS = 10  # size of its letters
_LEGEND_KEY_INCHES = 0.85  # width of what stands beside a run's name
_TITLE_POINTS = 12
_TITLE_SHARE = 0.85  # of a panel's width
_DOTS_PER_INCH = 110
_COLUMNS = 2
_DASHES = ("solid", "dashed", "dotted")  # as both matplotlib and style sheets call them
_OWN_COLOURS = 10  # of matplotlib's cycle
_MARKED_POINTS = 25  # up to here each point is marked: a single one would not show as a line


def draw_curves(
    runs: Mapping[str, Mapping[str, Series]], scalars: Sequence[str] = (), legend: bool = True
) -> "Figure":
    """Draws scalars over updates.

    Args:
        runs: label of a run -> name of a scalar ("train_iter/loss") -> (update, value).
        scalars: those to draw, in order; a name without a slash means every kind of it. None given
            = all that have several values in some run.
        legend: whether the picture says which line is which run's.

    Returns:
        The figure; a scalar that a run lacks has no line of that run.

    Raises:
        ValueError: if there is no such scalar; lists those that are there.
    """
    from matplotlib.figure import Figure

    names = curve_names(runs, scalars)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    width, height = columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]
    room = (width - _LEGEND_KEY_INCHES) * _DOTS_PER_INCH
    measure = plotted_width(_LEGEND_POINTS, _DOTS_PER_INCH)
    # A name that is broken into lines is whole; cut short it might be that of another run.
    labels = {label: wrap(label, room, measure) for label in runs}
    num_lines = sum(len(label.splitlines()) for label in labels.values())
    height += _LEGEND_LINE_INCHES * num_lines if legend else 0
    figure = Figure((width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    lines: dict[str, Line2D] = {}
    for panel, name in zip(panels.flat, names, strict=False):
        panel.set_title(_title(name), fontsize=_TITLE_POINTS, parse_math=False)
        panel.set_xlabel("update")
        panel.grid(alpha=0.3)
        for (label, series), (colour, dashes) in zip(
            runs.items(), line_styles(len(runs)), strict=True
        ):
            if name not in series:
                continue
            updates, values = zip(*series[name], strict=True)
            mark = "." if len(updates) <= _MARKED_POINTS else ""
            [line] = panel.plot(updates, values, color=colour, marker=mark, lw=1.2)
            line.set_linestyle(dashes)
            lines.setdefault(label, line)
    if legend:
        _add_legend(figure, [(line, labels[label]) for label, line in lines.items()])
    return figure


def line_styles(num_runs: int) -> list[tuple[str, str]]:
    """Colour ("#rrggbb") of each run's lines, and "solid", "dashed" or "dotted"; all differ."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    num_colours = max(_OWN_COLOURS, math.ceil(num_runs / len(_DASHES)))
    if num_colours == _OWN_COLOURS:
        colours = [to_hex(f"C{index}") for index in range(num_colours)]
    else:
        colours = [to_hex(colormaps["turbo"](i / (num_colours - 1))) for i in range(num_colours)]
    return [(colour, dashes) for dashes in _DASHES for colour in colours][:num_runs]


def curve_names(runs: Mapping[str, Mapping[str, Series]], scalars: Sequence[str] = ()) -> list[str]:
    """Which scalars `draw_curves` draws, in order; arguments and errors are its."""
    there = list(dict.fromkeys(name for series in runs.values() for name in sorted(series)))
    if not there:
        raise ValueError(f"no scalars in {', '.join(runs) or 'no run'}")
    chosen = []
    for wanted in scalars:
        matching = [name for name in there if wanted in (name, name.split("/")[-1])]
        if not matching:
            raise ValueError(f"no scalar {wanted!r}; there are: {', '.join(there)}")
        chosen += matching
    lines = [name for name in there if any(len(s.get(name, [])) > 1 for s in runs.values())]
    return list(dict.fromkeys(chosen)) or lines or there


def save_plot(path: str | Path, figure: "Figure") -> None:
    """Writes a figure as a PNG file whole or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(png_of(figure))


def png_of(figure: "Figure", dots_per_inch: int = _DOTS_PER_INCH) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = BytesIO()
    with missing_letters_as_boxes():
        figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


def run_labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart: the folder's name, or more of its path.

    Raises:
        ValueError: if a folder is given twice.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100
    for index, own in enumerate(parts):
        if own in parts[:index]:
            raise ValueError(f"the folder {folders[index]} is given twice")
    longest = max(map(len, parts), default=0)
    for length in range(1, longest + 1):
        labels = ["/".join(own[-length:]) for own in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _title(name: str) -> str:
    room = _TITLE_SHARE * _PANEL_INCHES[0] * _DOTS_PER_INCH
    return wrap(name, room, plotted_width(_TITLE_POINTS, _DOTS_PER_INCH))


def _add_legend(figure: "Figure", entries: Sequence[tuple["Line2D", str]]) -> None:
    # A label that begins with an underscore would be left out, so each is set afterwards.
    legend = figure.legend(
        [line for line, _ in entries],
        ["run"] * len(entries),
        loc="outside upper left",
        frameon=False,
        fontsize=_LEGEND_POINTS,
    )
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
