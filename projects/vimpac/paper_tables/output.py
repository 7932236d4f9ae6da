"""Results of a table as csv, Markdown and a plot."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_tables.measures import DONE, FAILED, Line, line_fields
from paper_tables.spec import Row, Table
from paper_tables.spread import Spread, spread_of
from vimpac_ext.files import atomic_write

TITLES = {
    "mask_accuracy": "Mask-Accu. (%)",
    "contrast_loss": "CL-Loss",
    "parameters": "Params (M)",
    "speed": "Speed (clips/s)",
}
DIGITS = {"contrast_loss": 2, "parameters": 1}
SPEED_FIELDS = (
    *("row", "round", "seconds", "cpu_seconds", "clips", "parameters", "load", "hardware"),
    *("settings", "code"),
)
NOTHING = "-"


@dataclass(frozen=True)
class RowResult:
    """A row with what was measured.

    Attributes:
        row: of the table.
        lines: one for each seed that was asked for.
        speed: one for each round of its timing, see `paper_tables.speed`.
    """

    row: Row
    lines: list[Line]
    speed: list[Line]

    def values(self, column: str) -> dict[int, float]:
        """Seed (or timing round) -> value, of the seeds that have one."""
        if column == "speed":
            return {entry["round"]: speed_of(entry) for entry in self.speed}
        found = {
            line["seed"]: line[column] for line in self.lines if line.get(column) not in (None, "")
        }
        if column == "parameters" and not found:
            timed = [entry[column] for entry in self.speed if entry.get(column)]
            return dict(enumerate(timed[:1]))  # of a row that was timed and not run
        return found

    def spread(self, column: str) -> Spread | None:
        """Mean and spread over the seeds; of the speed the median over the rounds."""
        values = list(self.values(column).values())
        if column == "speed" and values:
            return Spread(statistics.median(values), None, len(values))
        if column == "parameters":
            return Spread(values[0], None, 1) if values else None
        return spread_of(values)

    @property
    def state(self) -> str:
        """In words: which seeds are done, what failed and why."""
        if self.row.quoted:
            return "quoted from the paper, another method"
        done = [line["seed"] for line in self.lines if line["status"] == DONE]
        parts = [f"seeds {', '.join(map(str, done))}"] if done else []
        parts += [
            f"seed {line['seed']} failed: {line['reason']}"
            for line in self.lines
            if line["status"] == FAILED
        ]
        waiting = [str(line["seed"]) for line in self.lines if line["status"] not in (DONE, FAILED)]
        parts += [f"seeds {', '.join(waiting)} not finished"] if waiting else []
        return "; ".join(parts) or ("timed, not trained" if self.speed else "not run")


def speed_of(entry: Mapping[str, Any]) -> float:
    """Clips a second in a round: of processor time where that was measured, else by the clock."""
    return float(entry["clips"] / (entry.get("cpu_seconds") or entry["seconds"]))


def results_of(
    table: Table, lines: Sequence[Line], speed: Sequence[Mapping[str, Any]] = ()
) -> list[RowResult]:
    """Every row of the table, in order, with its lines.

    Raises:
        ValueError: if a line is of a row that the table does not have.
    """
    known = {row.name for row in table.rows}
    strange = {line["row"] for line in [*lines, *speed]} - known
    if strange:
        raise ValueError(f"{table.name} has results of rows that it does not describe: {strange}")
    return [
        RowResult(
            row,
            [line for line in lines if line["row"] == row.name],
            [dict(entry) for entry in speed if entry["row"] == row.name],
        )
        for row in table.rows
    ]


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows under a header; what a row lacks is empty."""
    with atomic_write(path, newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Line]:
    """Rows of a file by `write_csv`; what looks like a number is one."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: value if key == "row" else _number(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def write_runs(folder: Path, table: Table, lines: Sequence[Line]) -> Path:
    """``<size>_table_NN_runs.csv``: one line for each row and seed."""
    path = folder / f"{table.name}_runs.csv"
    write_csv(path, line_fields(table), lines)
    return path


def write_results(folder: Path, table: Table, results: Sequence[RowResult], command: str) -> None:
    """``<size>_table_NN.csv``, ``.md`` and ``.png``: mean and spread beside the paper's numbers."""
    write_csv(folder / f"{table.name}.csv", _summary_fields(table), _summary(table, results))
    with atomic_write(folder / f"{table.name}.md") as file:
        file.write(f"# Table {table.number}: {table.title} ({table.size_words})\n\n`{command}`\n\n")
        file.write(markdown_table(table, results))
    if any(result.spread(column) for result in results for column in table.columns):
        from paper_tables.plot import save_plot

        save_plot(folder / f"{table.name}.png", table, results)


def markdown_table(table: Table, results: Sequence[RowResult]) -> str:
    """Rows with "mean ± std" of what was measured, and the paper's numbers."""
    header, *rows = table_cells(table, results)
    lines = [
        header,
        ["---"] * len(header),
        *([markdown_cell(cell) for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def table_cells(table: Table, results: Sequence[RowResult]) -> list[list[str]]:
    """The header and the rows of a table as text: what was measured, and the paper's numbers."""
    columns, paper = table.columns, table.paper_columns
    cells = [["row", *map(title_of, columns), *map(paper_title, paper), "state"]]
    unit = _unit_of_speed(results)
    for result in results:
        line = [result.row.label]
        for column in columns:
            found = result.spread(column)
            text = found.shown(digits_of(table, column)) if found else NOTHING
            if found and column == "speed":
                text += f" ({found.mean / unit['here']:.2f}x)"
            line.append(text)
        for name in paper:
            value = result.row.paper.get(name)
            text = NOTHING if value is None else f"{value:.{DIGITS.get(name, 1)}f}"
            if value is not None and name == "speed":
                text += f" ({value / unit['paper']:.2f}x)"
            line.append(text)
        cells.append([*line, result.state])
    return cells


def _unit_of_speed(results: Sequence[RowResult]) -> dict[str, float]:
    """What is 1.00x: here and in the paper the same row, of those timed the paper's fastest."""
    by_paper = sorted(results, key=lambda result: -result.row.paper.get("speed", 0.0))
    unit = {"paper": by_paper[0].row.paper.get("speed", 0.0)} if by_paper else {}
    timed = [(result, own) for result in by_paper if (own := result.spread("speed"))]
    if timed:
        first, own = timed[0]
        unit |= {"here": own.mean, "paper": first.row.paper.get("speed", unit["paper"])}
    return unit


def markdown_cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def digits_of(table: Table, column: str) -> int:
    """Digits behind the point; the miniature's models have less than two million parameters."""
    small = column == "parameters" and table.size != "full"
    return 2 if small else DIGITS.get(column, 1)


def title_of(column: str) -> str:
    """How a column is headed."""
    if column.startswith("top1:"):
        return f"{column.removeprefix('top1:')} top-1 (%)"
    return TITLES.get(column, column)


def paper_title(column: str) -> str:
    """How a column of the paper's numbers is headed; its speed is in units of its own."""
    return f"paper: {'Speed (normalised)' if column == 'speed' else title_of(column)}"


def _summary_fields(table: Table) -> list[str]:
    own = [f"{column} {part}" for column in table.columns for part in ("mean", "std", "n")]
    return ["row", "label", *own, *(f"paper {name}" for name in table.paper_columns), "state"]


def _summary(table: Table, results: Sequence[RowResult]) -> Iterable[Line]:
    for result in results:
        line: Line = {"row": result.row.name, "label": result.row.label, "state": result.state}
        for column in table.columns:
            found = result.spread(column)
            if found:
                std = "" if found.std is None else f"{found.std:.6g}"
                line |= {f"{column} mean": f"{found.mean:.6g}", f"{column} std": std}
                line[f"{column} n"] = found.count
        yield line | {f"paper {name}": value for name, value in result.row.paper.items()}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
