"""The comparison's rows as Markdown, csv and plot, and in the documentation."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.benchmarks.comparison import TITLES, Row
from vimpac_ext.benchmarks.tables import (
    Panel,
    markdown_table,
    number,
    read_csv,
    replace_block,
    save_scatter,
    write_csv,
)
from vimpac_ext.files import atomic_write

_TEXTS = ("model", "title", "processor")
_HEADER = (
    *("model", "params (M)", "GFLOPs × views", "seconds", "seconds before", "top-1 %"),
    "each seed",
)


def write_comparison(folder: Path, rows: Sequence[Row], stem: str = "comparison") -> None:
    """Writes ``<stem>.csv`` (a line for each model and seed), ``.md`` and ``.png``."""
    write_csv(folder / f"{stem}.csv", rows)
    with atomic_write(folder / f"{stem}.md") as file:
        file.write(f"{table_of(rows)}\n{facts_of(rows)}\n")
    groups = _by_model(rows)
    costs = {title: _flops_of_views(group[0]) for title, group in groups.items()}
    times = {title: _mean(group, "seconds") for title, group in groups.items()}
    top1 = {title: _mean(group, "top1") for title, group in groups.items()}
    panels = [
        Panel(name, "top-1 %", {title: (values[title], top1[title]) for title in groups})
        for name, values in (("GFLOPs × views", costs), ("seconds of training and test", times))
    ]
    save_scatter(folder / f"{stem}.png", panels)


def read_comparison(path: Path) -> list[Row]:
    """Rows of a csv file by `write_comparison`."""
    return [
        {key: value if key in _TEXTS else float(value) for key, value in row.items()}
        for row in read_csv(path)
    ]


def publish(document: Path, rows: Sequence[Row]) -> None:
    """Puts the table into a document; csv, Markdown and plot (``<document>_demo.*``) beside it.

    Raises:
        ValueError: the document has no place for it (see `replace_block`).
    """
    stem = f"{document.stem}_demo"
    replace_block(document, "demo", block_of(rows, stem))
    write_comparison(document.parent, rows, stem)


def block_of(rows: Sequence[Row], stem: str) -> str:
    """Table, facts and the link to the plot, for a document."""
    return f"{table_of(rows)}\n{facts_of(rows)}\n\n![The models of the table]({stem}.png)"


def table_of(rows: Sequence[Row]) -> str:
    """The Markdown table: means over the seeds, with standard deviations of top-1."""
    lines = []
    for title, group in _by_model(rows).items():
        first = group[0]
        views = f"{first['temporal_views']:.0f} x {first['spatial_crops']:.0f}"
        values = [row["top1"] for row in group]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(
            [
                *(title, number(first["parameters"], 2)),
                f"{number(first['gflops'], 3)} × {views}",
                number(_mean(group, "seconds"), 0),
                number(_mean(group, "seconds_before"), 0),
                f"{statistics.mean(values):.1f}{spread}",
                ", ".join(f"{value:.1f}" for value in values),
            ]
        )
    return markdown_table(_HEADER, lines)


def facts_of(rows: Sequence[Row]) -> str:
    """One sentence of what the table was measured on, from the rows."""
    seeds = list(dict.fromkeys(f"{row['seed']:.0f}" for row in rows))
    processors = "; ".join(dict.fromkeys(row["processor"] for row in rows))
    threads = ", ".join(dict.fromkeys(f"{row['threads']:.0f}" for row in rows))
    busiest = max(row["load_average"] for row in rows)
    return (
        f"`python tools/benchmark.py demo --seeds {' '.join(seeds)}` on {processors}, {threads} "
        f"threads, load average up to {busiest:.1f} after a test; "
        f"{rows[0]['test_videos']:.0f} test videos a seed. Seconds are of training and test; "
        "seconds before, of extracting tokens and of pre-training. GFLOPs are 10^9 multiply-adds "
        "of a clip, the tokenizer's included."
    )


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups = {title: [row for row in rows if row["title"] == title] for title in TITLES.values()}
    return {title: group for title, group in groups.items() if group}


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _flops_of_views(row: Row) -> float:
    return float(row["gflops"] * row["temporal_views"] * row["spatial_crops"])
