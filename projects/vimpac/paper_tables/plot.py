"""Plot of a table: what was measured, with its spread, beside the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paper_tables.output import RowResult, paper_title, title_of
from paper_tables.spec import Table
from vimpac_ext.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OWN, _PAPER = "#1f5fa8", "#b0472a"


def save_plot(path: Path, table: Table, results: Sequence[RowResult]) -> None:
    """Draws one panel for each measured column: mean with standard deviation, every seed as a dot.

    The paper's numbers have an axis of their own above, since only the order of the rows can be
    compared, not the values.

    Args:
        path: PNG file, replaced.
        table: its columns and titles.
        results: of its rows.
    """
    # Not pyplot: it needs a window system and keeps figures.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = [c for c in table.columns if any(result.spread(c) for result in results)]
    height = 1.5 + 0.38 * len(results)
    figure = Figure(figsize=(2.2 + 3.2 * len(columns), height), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        _panel(axes, table, results, column)
        for own in axes.figure.axes:
            own.xaxis.set_major_locator(MaxNLocator(5))  # numbers that do not run together
    labels = [result.row.label for result in results]
    panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
    panels[0].invert_yaxis()
    figure.suptitle(f"Table {table.number} ({table.size_words}): {table.title}", fontsize=10)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")


def _panel(axes: "Axes", table: Table, results: Sequence[RowResult], column: str) -> None:
    for position, result in enumerate(results):
        found = result.spread(column)
        if found is None:
            continue
        values = list(result.values(column).values())
        axes.plot(values, [position] * len(values), ".", color=_OWN, alpha=0.4, markersize=5)
        axes.errorbar(found.mean, position, xerr=found.std or 0, fmt="o", color=_OWN, capsize=3)
    axes.set_xlabel(f"here: {title_of(column)}", color=_OWN, fontsize=8)
    axes.tick_params(axis="x", colors=_OWN, labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    name = table.paper_column(column)
    printed = [(result.row.paper.get(name), i) for i, result in enumerate(results)]
    printed = [(value, i) for value, i in printed if value is not None]
    if printed:
        above = axes.twiny()
        above.plot(*zip(*printed, strict=True), "x", color=_PAPER)
        above.set_xlabel(paper_title(name), color=_PAPER, fontsize=8)
        above.tick_params(axis="x", colors=_PAPER, labelsize=8)
