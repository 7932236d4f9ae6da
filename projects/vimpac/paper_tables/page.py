"""A table as one self-contained web page: numbers, plot, findings, curves, changes of the rows."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paper_tables.findings import judge, load_findings
from paper_tables.measures import Line, line_fields
from paper_tables.output import SPEED_FIELDS, RowResult, speed_of, table_cells, title_of
from paper_tables.plan import Planner
from paper_tables.spec import Row, Table
from vimpac_ext.engine.run_report import curves_pictures
from vimpac_ext.files import atomic_write
from vimpac_ext.visualization import html, read_metrics
from vimpac_ext.visualization.run_files import Series


def write_page(path: Path, planner: Planner, results: Sequence[RowResult], provenance: str) -> None:
    """Writes an HTML file that needs no other file, no server and no network.

    Args:
        path: file, replaced. The table's plot is taken from beside it.
        planner: of the table; its folder holds the runs whose curves are shown.
        results: of the table's rows.
        provenance: how they were made.
    """
    table = planner.table
    title = f"Table {table.number} ({table.size_words}): {table.title}"
    body = [
        html.paragraph(f"Section {table.section} of the paper. {provenance.replace('`', '')}"),
        html.table(*_header_and_rows(table_cells(table, results))),
        *_plot(path.with_suffix(".png"), table, results),
        *_findings(table, results),
        *_curves(planner.root, results),
        *_changes(planner),
        *_runs(table, results),
        *_rounds(results),
    ]
    with atomic_write(path) as file:
        file.write(html.page(title, body))


def _header_and_rows(cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return cells[0], cells[1:]


def _plot(path: Path, table: Table, results: Sequence[RowResult]) -> Iterator[str]:
    if not path.is_file():
        return
    parts = []
    for column in table.columns:
        found = [(result.row.label, result.spread(column)) for result in results]
        values = ", ".join(f"{label} {spread.mean:.3g}" for label, spread in found if spread)
        parts += [f"{title_of(column)}: {values}"] if values else []
    caption = "Mean and standard deviation, every seed as a dot; of speeds the median, every round "
    caption += "as a dot. Crosses are the paper's, on axes of their own"
    yield html.image(path.read_bytes(), "image/png", caption, "; ".join(parts))


def _findings(table: Table, results: Sequence[RowResult]) -> Iterator[str]:
    findings = [finding for finding in load_findings() if finding.table == table.number]
    if not findings:
        return
    yield html.heading(2, "Findings of the paper")
    verdicts = [(finding, judge(finding, table, results)) for finding in findings]
    yield html.table(
        ["finding", "here", "numbers", "comment"],
        [(f.finding, v.word, v.sentence, f.comment.replace("`", "")) for f, v in verdicts],
    )


def _curves(root: Path, results: Sequence[RowResult]) -> Iterator[str]:
    """Curves of the stages of each row's first seed; a stage that rows share is drawn once."""
    roles: dict[str, dict[str, dict[str, Series]]] = {}
    drawn: set[str] = set()
    for result in results:
        for role, name in _stages(result.lines[:1]).items():
            if name in drawn or not (root / name / "metrics.jsonl").is_file():
                continue
            drawn.add(name)
            series = read_metrics(root / name).series
            if series:
                roles.setdefault(role, {})[result.row.label] = series
    for role, runs in roles.items():
        yield html.heading(2, f"Curves: {role}")
        yield html.paragraph("First seed of each row; a run that rows share stands at the first.")
        yield from curves_pictures(runs)


def _changes(planner: Planner) -> Iterator[str]:
    """What each row changes in the shipped configurations."""
    yield html.heading(2, "What the rows change in the configurations")
    entries: list[tuple[str, str, str, str]] = []
    for row in planner.table.rows:
        if not row.quoted:
            entries += _changes_of(planner, row)
    yield html.table(["row", "configuration", "key", "value"], entries)


def _changes_of(planner: Planner, row: Row) -> Iterator[tuple[str, str, str, str]]:
    try:
        own = planner.pretrain_overrides(row) if row.pretrain else {}
    except ValueError as error:  # a wrong row is reported, the others are shown
        yield row.label, " ".join(row.pretrain), "cannot be resolved", str(error)
        return
    parts: list[tuple[str, dict[str, Any]]] = [(config, own) for config in row.pretrain]
    parts += [(t.config, planner.finetune_overrides(t.overrides)) for t in row.targets]
    for config, overrides in parts:
        for key, value in (overrides or {"nothing": ""}).items():
            yield row.label, config, key, json.dumps(value)


def _runs(table: Table, results: Sequence[RowResult]) -> Iterator[str]:
    yield html.heading(2, "Every seed")
    fields = [
        field for field in line_fields(table) if field not in ("stages", "stage_seconds", "note")
    ]
    lines = [line for result in results for line in result.lines]
    if not lines:
        yield html.paragraph("No row has been run.", missing=True)
        return
    yield html.table(
        [*fields, "folders"],
        [
            [*(_value(line, field) for field in fields), ", ".join(_stages([line]).values())]
            for line in lines
        ],
    )
    yield html.paragraph("tools/report.py makes a page of each folder of a training.")


def _rounds(results: Sequence[RowResult]) -> Iterator[str]:
    entries = [entry for result in results for entry in result.speed]
    if not entries:
        return
    yield html.heading(2, "Every round of the timing")
    fields = ["row", "round", "clips/s", *SPEED_FIELDS[2:]]
    yield html.table(
        fields,
        [
            [_value(entry | {"clips/s": f"{speed_of(entry):.4g}"}, field) for field in fields]
            for entry in entries
        ],
    )


def _value(line: Line, field: str) -> Any:
    value = line.get(field)
    return None if value == "" else value


def _stages(lines: Sequence[Line]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        found |= json.loads(line["stages"]) if line.get("stages") else {}
    return found
