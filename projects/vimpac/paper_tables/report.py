"""RESULTS.md from the csv files of the runs; nothing in it is typed by hand but the comments."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_tables.computed import compute, computed_markdown, computed_title
from paper_tables.copies import copies_name, copies_section, copies_summary, read_copies
from paper_tables.findings import NOT_RUN, Finding, Verdict, judge, load_findings
from paper_tables.measures import DONE, Line, line_fields, measure
from paper_tables.output import (
    NOTHING,
    SPEED_FIELDS,
    RowResult,
    markdown_cell,
    markdown_table,
    read_csv,
    results_of,
    write_csv,
    write_results,
)
from paper_tables.spec import SIZES, Table, TableError, load_table, table_numbers
from vimpac_ext.files import atomic_write

_HEAD = """# Results

Written by `python projects/vimpac/results.py` from the files in `projects/vimpac/results/`: do not
edit.

How to read the tables: a cell is the mean ± standard deviation over the seeds that the last column
names. A seed decides the videos of the demo, the initial weights, the order and the masks, so the
spread holds all of these. The paper's numbers stand beside ours for the order of the rows; the
values cannot be compared, since the miniature has other videos and a far smaller model, and hides
42 % of the tokens where the paper hides about 15 %. Mask-Accu. and CL-Loss are on held-out videos,
in miniature on 200 unlabelled ones for each seed. "-" was not measured.

How to read the verdicts: "shows" and "the opposite shows" need a 95 % confidence interval that
excludes zero. It is that of the mean difference over the seeds (Student's t over the difference in
each seed), and for accuracies at least as wide as the number of test videos alone makes it. Three
seeds reach that only for differences far above their spread; else the difference is "not told from
noise". One seed gives no verdict. "No difference found" needs an interval within 5 points of zero.
No correction is made for the number of comparisons. In brackets is the difference with its
interval, in the unit of what is compared. Rates and other settings of the miniature were chosen on
the test videos of seed 0, which is one of the seeds.

The miniature comes in three forms. With all 500 labels, most models that were pre-trained to
predict masked tokens are above 90 % of the motions, where little is left to differ in. "Few labels"
fine-tunes the same pre-trained models with 80 of the labels, which depends much on which 80
(`run_table.py --few-labels`). "Frozen features" fits linear classifiers to the features of the same
pre-trained models, without fine-tuning, to 8 labelled videos of each class; each number is the mean
over 20 draws of them (`run_table.py --probe`). What is not an accuracy is the same in all three.
Below the tables: how well hidden tokens of real videos are recovered by copying a neighbour.
"""


def collect(root: Path, results: Path, note: str = "", replace: bool = False) -> list[Path]:
    """Copies the runs of all tables below ``root``, their numbers read again from the run folders.

    Args:
        root: output folder of ``run_table.py``.
        results: receives ``<size>_table_NN_runs.csv``, ``_speed.csv`` and the plots.
        note: on how the runs were made, kept with each; without one, a note that was given before
            for the same run stays.
        replace: whether results that ``results`` has and ``root`` lacks may be lost.

    Returns:
        The files of runs that were written.

    Raises:
        TableError: if something would be lost; nothing is written then.
    """
    found = {table.name: _collected(root, table) for table in _tables()}
    if not replace:
        _check_nothing_is_lost(root, results, found)
    written = []
    for table in _tables():
        source = root / "tables" / f"{table.name}_runs.csv"
        if not source.is_file():
            continue
        lines = found[table.name]
        before = {_run_of(line): line.get("note", "") for line in read_csv(results / source.name)}
        lines = [{**line, "note": note or before.get(_run_of(line), "")} for line in lines]
        speed = read_csv(root / "tables" / f"{table.name}_speed.csv")
        if speed:
            write_csv(results / f"{table.name}_speed.csv", SPEED_FIELDS, speed)
        write_csv(results / source.name, line_fields(table), lines)
        write_results(results, table, results_of(table, lines, speed), command_of(table, lines))
        (results / f"{table.name}.md").unlink()  # RESULTS.md has it
        written.append(results / source.name)
    for size in SIZES:
        counts = root / "tables" / f"{load_table(13, size).name}.csv"
        if any(line["train videos"] != "" for line in read_csv(counts)):
            with atomic_write(results / counts.name) as file:
                file.write(counts.read_text(encoding="utf-8"))
            written.append(results / counts.name)
    return written


def _collected(root: Path, table: Table) -> list[Line]:
    lines = read_csv(root / "tables" / f"{table.name}_runs.csv")
    return [_measured_again(root, line) for line in lines]


def _check_nothing_is_lost(root: Path, results: Path, found: Mapping[str, list[Line]]) -> None:
    lost = []
    for name, lines in found.items():
        done = {(line["row"], line["seed"]) for line in lines if line["status"] == DONE}
        lost += [
            f"{name}: {line['row']!r}, seed {line['seed']}"
            for line in read_csv(results / f"{name}_runs.csv")
            if lines and line["status"] == DONE and (line["row"], line["seed"]) not in done
        ]
    if lost:
        raise TableError(
            f"{results} has {len(lost)} results that {root} lacks ({'; '.join(lost[:3])}"
            f"{', ...' if lost[3:] else ''}). Run them there with run_table.py, or replace what "
            f"{results} has by what is there with --replace"
        )


def report(results: Path) -> str:
    """The text of RESULTS.md."""
    findings = load_findings()
    sections = [_section(table, results, findings) for table in _tables()]
    copies = [copies_section(path) for path in sorted(results.glob("copy_paste_*.csv"))]
    body = [_HEAD, _overview(results, findings), *filter(None, sections)]
    return "\n".join([*body, *_computed_sections(results), *copies])


def _computed_sections(results: Path) -> Iterator[str]:
    """Tables without training: the formula's as it is, counts from their files."""
    for table in [load_table(number, size) for number in table_numbers() for size in SIZES]:
        if table.kind == "runs" or (table.kind, table.size) == ("induced_ratios", "full"):
            continue
        formula = table.kind == "induced_ratios" and table.size == "demo"
        path = results / f"{table.name}.csv"
        lines = compute(table) if formula else read_csv(path)
        if not lines:
            continue
        command = " ".join(["python projects/vimpac/run_table.py", str(table.number), *table.flags])
        yield (
            f"## {computed_title(table)}\n\nComputed by `{command}`.\n\n{computed_markdown(lines)}"
        )


def command_of(table: Table, lines: Sequence[Line]) -> str:
    """The command that gives these lines."""
    seeds = sorted({line["seed"] for line in lines})
    words = ["python projects/vimpac/run_table.py", str(table.number)]
    words += table.flags
    words += ["--seeds", *map(str, seeds)]
    run = {line["row"] for line in lines}
    if any(row.name not in run for row in table.rows if not row.quoted):
        words += ["--rows", *(f'"{row.name}"' for row in table.rows if row.name in run)]
    return " ".join([*words, *_settings(lines)])


def _settings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The option that gave the settings of these lines, as one types it."""
    settings = sorted({str(line["settings"]) for line in lines if line.get("settings")})
    return ["--set", *settings] if settings else []


def _tables() -> list[Table]:
    tables = [load_table(number, size) for number in table_numbers() for size in SIZES]
    return [table for table in tables if table.kind == "runs"]


def _measured_again(root: Path, line: Line) -> Line:
    """A line with what its stages' folders say now; as it is, where one is gone or never was."""
    stages: dict[str, str] = json.loads(line["stages"]) if line.get("stages") else {}
    if not stages or not all((root / name).is_dir() for name in stages.values()):
        return line
    planned = ("row", "seed", "parameters", "settings", "note", "stages")
    return {key: line[key] for key in planned if key in line} | measure(root, stages)


def _run_of(line: Line) -> tuple[Any, ...]:
    return line["row"], line["seed"], line.get("stages", "")


def load_results(table: Table, results: Path) -> list[RowResult]:
    """What the files say of a table's rows."""
    lines = read_csv(results / f"{table.name}_runs.csv")
    return results_of(table, lines, read_csv(results / f"{table.name}_speed.csv"))


def _overview(results: Path, findings: Sequence[Finding]) -> str:
    """Each finding with its verdict in every size that was run; the miniature always."""
    sizes = [
        size for size in SIZES if size == "demo" or any(results.glob(f"{size}_table_*_runs.csv"))
    ]
    words = [load_table(findings[0].table, size).size_words for size in sizes]
    lines = ["## Findings\n", f"| table | finding | {' | '.join(words)} |"]
    lines.append(f"| --- | --- |{' --- |' * len(sizes)}")
    for finding in findings:
        tables = [load_table(finding.table, size) for size in sizes]
        verdicts = [judge(finding, t, load_results(t, results)) for t in tables]
        cells = " | ".join(
            _verdict(t, finding, verdict) for t, verdict in zip(tables, verdicts, strict=True)
        )
        lines.append(f"| {finding.table} | {markdown_cell(finding.finding)} | {cells} |")
    text = "\n".join(lines) + "\n"
    for path in sorted(results.glob("copy_paste_*.csv")):
        text += f"\n{copies_summary(read_copies(path), copies_name(path))}\n"
    return text


def _verdict(table: Table, finding: Finding, verdict: Verdict) -> str:
    """In a cell: the word and the difference; a dash for what was not run beside the miniature."""
    if table.size != "demo" and (verdict.word == NOT_RUN or not _is_told(table, finding)):
        return NOTHING
    return f"**{verdict.word}**" + (f" ({verdict.difference})" if verdict.difference else "")


def _is_told(table: Table, finding: Finding) -> bool:
    """What is not an accuracy is the miniature's in its other forms, too, and is told once."""
    return table.size in ("demo", "full") or finding.measure.startswith("top1:")


def _section(table: Table, results: Path, findings: Sequence[Finding]) -> str:
    rows = load_results(table, results)
    lines = [line for row in rows for line in row.lines]
    speed = read_csv(results / f"{table.name}_speed.csv")
    if not lines and not speed and table.size != "demo":
        return ""
    size = table.size_words
    parts = [f"## Table {table.number}: {table.title} ({size})\n", provenance(table, lines, speed)]
    parts.append(markdown_table(table, rows))
    if (results / f"{table.name}.png").is_file():
        parts.append(f"![Table {table.number}, {size}](results/{table.name}.png)\n")
    for finding in findings:
        if finding.table == table.number and _is_told(table, finding):
            verdict = judge(finding, table, rows)
            parts.append(
                f"- {finding.finding} **{verdict.word}**: {verdict.sentence} {finding.comment}"
            )
    return "\n".join(parts) + "\n"


def provenance(table: Table, lines: Sequence[Line], speed: Sequence[dict[str, Any]]) -> str:
    """Command, seeds, seconds, hardware, and what else the machine did."""
    if not lines and not speed:
        return f"Not run. `python projects/vimpac/run_table.py {table.number}` would.\n"
    words, notes = [], []
    if lines:
        videos = sorted({line["test_videos"] for line in lines if line.get("test_videos")})
        words += [
            f"`{command_of(table, lines)}`",
            _time_of(lines),
            f"test videos: {', '.join(map(str, videos)) or 'none yet'}",
            f"on {_machines(lines) or 'nothing yet'}",
        ]
        code = sorted({str(line["code"]) for line in lines if line.get("code")})
        words += [f"code {'; '.join(code)}"] if code else []
        notes = sorted({line["note"] for line in lines if line.get("note")})
    if speed:
        rounds = len({entry["round"] for entry in speed})
        said = "" if lines else f"`{_timing(table, speed)}`; "
        clock = "in processor time" if speed[0].get("cpu_seconds") else "by the clock"
        words.append(
            f"{said}speed: steps of pre-training (forward, backward, update) with "
            f"{speed[0]['clips']} clips, {clock}, the rows in turns, median of {rounds} rounds, "
            f"on {_machines(speed)}"
        )
    return " ".join(["; ".join(words) + ".", *notes]) + "\n"


def _timing(table: Table, speed: Sequence[Mapping[str, Any]]) -> str:
    words = ["python projects/vimpac/run_table.py", str(table.number), *table.flags, "--speed"]
    return " ".join([*words, *_settings(speed)])


def _time_of(lines: Sequence[Line]) -> str:
    """Seconds by the clock, of stages that rows share once, and of the processor if known."""
    stages: dict[str, float] = {}
    for line in lines:
        stages |= json.loads(line["stage_seconds"]) if line.get("stage_seconds") else {}
    text = f"{sum(stages.values()):.0f} s for {len(stages)} trainings and evaluations"
    done = [line for line in lines if line.get("seconds")]
    if done and all(line.get("cpu_seconds") for line in done):
        text += ", {:.0f} % of it processor time".format(
            100 * sum(line["cpu_seconds"] for line in done) / sum(line["seconds"] for line in done)
        )
    return text


def _machines(entries: Sequence[Mapping[str, Any]]) -> str:
    """The hardware, and how loaded it was at most."""
    names = {str(e["hardware"]) for e in entries if e.get("hardware")}
    # Earlier records say "1 threads".
    machines = "; ".join(sorted({re.sub(r"\b1 threads$", "1 thread", name) for name in names}))
    loads = [float(entry["load"]) for entry in entries if entry.get("load")]
    return machines + (f" (load average up to {max(loads):.1f})" if loads else "")
