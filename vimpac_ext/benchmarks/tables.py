"""Tables of a comparison as Markdown, csv and plot, and their place in a document."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimpac_ext.files import atomic_write

NOTHING = "-"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *safe])


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell, with so many digits after the point; "-" for None."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows, at least one, under a header; None is empty."""
    with atomic_write(path, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def replace_block(path: Path, name: str, text: str) -> None:
    """Puts text between ``<!-- name -->`` and ``<!-- end of name -->`` of a document.

    Raises:
        ValueError: the document has not exactly one such place.
    """
    require_block(path, name)
    block = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->"
    content = path.read_text(encoding="utf-8")
    with atomic_write(path) as file:
        file.write(_block(name).sub(lambda _: block, content))


def require_block(path: Path, name: str) -> None:
    """Raises ValueError unless a document has exactly one place for `replace_block`."""
    if not path.is_file():
        raise ValueError(f"there is no document {path} to put the table into")
    if len(_block(name).findall(path.read_text(encoding="utf-8"))) != 1:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        raise ValueError(f"{path} must have one place between {begin!r} and {end!r}")


def _block(name: str) -> re.Pattern:
    begin, end = re.escape(f"<!-- {name} -->\n"), re.escape(f"<!-- end of {name} -->")
    return re.compile(f"{begin}.*?{end}", re.DOTALL)


@dataclass(frozen=True)
class Panel:
    """A scatter plot.

    Attributes:
        x: what the horizontal, logarithmic axis shows.
        y: what the vertical axis shows.
        points: label -> (x, y).
    """

    x: str
    y: str
    points: Mapping[str, tuple[float, float]]


def save_scatter(path: Path, panels: Sequence[Panel]) -> None:
    """Draws panels side by side, a colour for each label.

    Args:
        path: PNG file, replaced.
        panels: at least one.
    """
    # Not pyplot: it needs a window system and keeps figures.
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for panel in panels for label in panel.points))
    height = max(4.0, 0.22 * len(labels))
    figure = Figure(figsize=(4.2 * len(panels) + 2.4, height), dpi=120, layout="constrained")
    axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(axes_row, panels, strict=True):
        for index, label in enumerate(labels):
            if label in panel.points:
                mark = "os^Dv"[index // 10 % 5]
                axes.scatter(*panel.points[label], color=f"C{index % 10}", marker=mark, label=label)
        axes.set(xscale="log", xlabel=panel.x, ylabel=panel.y)
        axes.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axes in axes_row:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")
