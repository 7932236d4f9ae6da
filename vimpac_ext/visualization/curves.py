"""Curves of one run or several: a panel for each scalar, a colour for each run."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.run_files import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_PANEL_INCHES = (4.6, 3.0)
_LEGEND_LINE_INCHES = 0.25
_DOTS_PER_INCH = 110
_COLUMNS = 2
_MARKED_POINTS = 25  # up to here each point is marked: a single one would not show as a line


def draw_curves(runs: Mapping[str, Mapping[str, Series]], scalars: Sequence[str] = ()) -> "Figure":
    """Draws scalars over updates.

    Args:
        runs: label of a run -> name of a scalar ("train_iter/loss") -> (update, value).
        scalars: those to draw, in order; a name without a slash means every kind of it. None given
            = all that have several values in some run.

    Returns:
        The figure; a scalar that a run lacks has no line of that run.

    Raises:
        ValueError: if there is no such scalar; lists those that are there.
    """
    from matplotlib.figure import Figure

    names = _chosen(runs, scalars)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    width, height = columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]
    figure = Figure((width, height + _LEGEND_LINE_INCHES * len(runs)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    lines: dict[str, Line2D] = {}
    for panel, name in zip(panels.flat, names, strict=False):
        panel.set_title(name, parse_math=False)
        panel.set_xlabel("update")
        panel.grid(alpha=0.3)
        for colour, (label, series) in enumerate(runs.items()):
            if name not in series:
                continue
            updates, values = zip(*series[name], strict=True)
            mark = "." if len(updates) <= _MARKED_POINTS else ""
            [line] = panel.plot(updates, values, color=f"C{colour % 10}", marker=mark, lw=1.2)
            line.set_linestyle("-" if colour < 10 else "--")
            lines.setdefault(label, line)
    legend = figure.legend(
        list(lines.values()), list(lines), loc="outside upper left", frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def save_plot(path: str | Path, figure: "Figure") -> None:
    """Writes a figure as a PNG file whole or not at all."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)


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


def _chosen(runs: Mapping[str, Mapping[str, Series]], scalars: Sequence[str]) -> list[str]:
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
