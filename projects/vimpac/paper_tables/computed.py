"""Tables that need no training: masking ratios by formula (10) and sizes of data sets (13)."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_tables.output import NOTHING, markdown_cell, write_csv
from paper_tables.resolved import resolve
from paper_tables.spec import Table
from vimpac_ext.data.decode import open_record
from vimpac_ext.engine.assembly import build_dataset
from vimpac_ext.files import atomic_write
from vimpac_ext.maskers import induced_mask_ratio
from vimpac_ext.structures import VideoRecord
from vimpac_ext.visualization import html

Line = dict[str, Any]
Lines = list[Line]

_SAMPLE = 50  # videos whose length is looked up


def compute(table: Table, demo_videos: Path | None = None) -> Lines:
    """Rows of a computed table, the paper's numbers beside ours.

    Args:
        table: of kind "induced_ratios" or "dataset_counts".
        demo_videos: folder of the demo's data, for the counts of the miniature.
    """
    if table.kind == "induced_ratios":
        return _ratios(table)
    if table.size == "full":
        return [_counts(entry, None) for entry in table.content["datasets"]]
    return [_counts(entry, demo_videos) for entry in table.content["demo_datasets"]]


def write_computed(folder: Path, table: Table, lines: Sequence[Line], command: str) -> None:
    """``<size>_table_NN.csv``, ``.md`` and ``.html``."""
    fields = _fields(lines)
    write_csv(folder / f"{table.name}.csv", fields, lines)
    with atomic_write(folder / f"{table.name}.md") as file:
        file.write(f"# {computed_title(table)}\n\n`{command}`\n\n")
        file.write(computed_markdown(lines))
    body = [
        html.paragraph(f"Section {table.section} of the paper. {command}; nothing is trained."),
        html.table(
            fields, [[_shown(field, line.get(field)) for field in fields] for line in lines]
        ),
    ]
    title = computed_title(table)
    with atomic_write(folder / f"{table.name}.html") as file:
        file.write(html.page(title, body))


def computed_title(table: Table) -> str:
    """A heading; a formula is the same at every size."""
    words = f" ({table.size_words})" if table.kind == "dataset_counts" else ""
    return f"Table {table.number}: {table.title}{words}"


def computed_markdown(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    fields = _fields(lines)
    rows = [[_cell(_shown(field, line.get(field))) for field in fields] for line in lines]
    rows = [fields, ["---"] * len(fields), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _ratios(table: Table) -> Lines:
    lines = []
    for entry in table.content["grids"]:
        grid = tuple(entry["grid"])
        line: Line = {"grid": " x ".join(map(str, grid)), "chosen blocks": entry["chosen"]}
        for blocks, printed in zip(table.content["blocks"], entry["paper"], strict=True):
            line[f"{blocks} blocks (%)"] = round(100 * induced_mask_ratio(grid, blocks), 2)
            line[f"paper: {blocks}"] = printed
        lines.append(line)
    return lines


def _counts(entry: Line, root: Path | None) -> Line:
    """Videos of a data set by its annotations; the reason where they are not there."""
    paper = entry.get("paper", {})
    line: Line = {"data set": entry["name"]}
    state = ""
    videos: Sequence[VideoRecord] = ()
    overrides = {} if root is None else {"DATA.PATH_TO_DATA_DIR": str(root)}
    cfg = resolve(entry["config"], overrides)
    phases = {"train": "TRAIN"} | ({"test": "TEST"} if cfg.TEST.DATASET.NAME else {})
    for name, phase in phases.items():
        line |= {f"{name} videos": None, f"paper: {name}": paper.get(name)}
        try:
            records = build_dataset(cfg, phase).records
            videos = videos or records
            line[f"{name} videos"] = len(records)
        except FileNotFoundError as error:
            reason = str(error).split(". ")[0]
            state = f"not here: {reason.replace(f'{Path.cwd()}/', '')}"
    if cfg.MODEL.NUM_CLASSES:
        line |= {"classes": cfg.MODEL.NUM_CLASSES, "paper: classes": paper.get("classes")}
    line |= {"mean seconds": _mean_seconds(videos), "paper: seconds": paper.get("seconds")}
    return line | {"state": state}


def _mean_seconds(records: Sequence[VideoRecord]) -> float | None:
    """Mean length of some training videos, at equal distances in the list; None without any."""
    found = []
    for record in records[:: max(1, len(records) // _SAMPLE)][:_SAMPLE]:
        if Path(record.path).exists():
            with open_record(record) as reader:
                found.append(reader.duration)
    return round(statistics.fmean(found), 2) if found else None


def _fields(lines: Sequence[Line]) -> list[str]:
    found = dict.fromkeys(key for line in lines for key in line)
    last = ["state"] if "state" in found else []
    return [name for name in found if name != "state"] + last


def _shown(field: str, value: Any) -> Any:
    """Numbers of a column with as many digits each: two of a share, one like the paper's else."""
    if not isinstance(value, float):
        return None if value == "" else value
    return f"{value:.{2 if '(%)' in field else 1}f}"


def _cell(value: Any) -> str:
    return NOTHING if value in (None, "") else markdown_cell(str(value))
