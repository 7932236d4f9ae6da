"""What was measured of several models, as Markdown, csv and plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vimpac_ext.benchmarks.models import ModelCost
from vimpac_ext.benchmarks.tables import (
    NOTHING,
    Panel,
    markdown_table,
    number,
    read_csv,
    save_scatter,
    write_csv,
)
from vimpac_ext.files import atomic_write

_HEADER = (
    *("config", "backbone", "clip", "params (M)", "GFLOPs × views", "test clips/s"),
    *("train clips/s", "test MB", "train MB", "precision", "top-1 %"),
)


def accuracies_of(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Reads top-1 accuracies from a csv file with the columns ``name`` and ``top1`` (percent).

    Args:
        path: csv file.
        names: of the configurations that are measured.

    Raises:
        ValueError: a column is missing, a value is no percentage, or a name is not measured.
    """
    found = {}
    for line, row in enumerate(read_csv(path), start=2):
        try:
            name, top1 = row["name"], float(row["top1"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {line}: expected the columns name,top1 with a number, found {row}"
            ) from error
        if name not in names:
            raise ValueError(
                f"{path}, line {line}: {name!r} is not measured; it is one of {', '.join(names)}"
            )
        if not 0 <= top1 <= 100:
            raise ValueError(f"{path}, line {line}: top1 is a percentage, found {top1:g}")
        found[name] = top1
    return found


def models_markdown(costs: Sequence[ModelCost]) -> str:
    """The table; what could not be measured or drawn is listed below it with the reason."""
    rows = []
    for cost in costs:
        views = f"{cost.temporal_views} x {cost.spatial_crops}"
        flops = NOTHING if cost.gflops is None else f"{number(cost.gflops, 2)} × {views}"
        rows.append(
            [
                *(cost.name, cost.backbone or NOTHING, cost.clip or NOTHING),
                *(number(cost.parameters, 2), flops),
                *(number(v, 2) for v in (cost.test_clips_per_second, cost.train_clips_per_second)),
                *(number(v, 0) for v in (cost.test_peak_mb, cost.train_peak_mb)),
                *(cost.precision or NOTHING, number(cost.top1)),
            ]
        )
    notes = [f"- {cost.name} was not measured: {cost.error}" for cost in costs if cost.error]
    unknown = [cost.name for cost in costs if cost.top1 is None and not cost.error]
    if any(cost.top1 is not None for cost in costs) and unknown:
        notes.append(f"- without an accuracy, and so not in the plot: {', '.join(unknown)}")
    text = markdown_table(_HEADER, rows)
    return text + ("\n" + "\n".join(notes) + "\n" if notes else "")


def write_models(
    folder: Path, costs: Sequence[ModelCost], heading: str, stem: str = "models"
) -> None:
    """Writes ``<stem>.md``, ``<stem>.csv`` and, if anything was measured, ``<stem>.png``.

    Args:
        folder: made if needed; files are replaced.
        costs: at least one.
        heading: above the table: command and hardware.
        stem: of the files' names.
    """
    rows = [{**asdict(cost), "gflops_of_all_views": cost.gflops_of_all_views} for cost in costs]
    write_csv(folder / f"{stem}.csv", rows)
    with atomic_write(folder / f"{stem}.md") as file:
        file.write(f"{heading}\n\n{models_markdown(costs)}")
    panels = _panels(costs)
    if panels:
        save_scatter(folder / f"{stem}.png", panels)


def _panels(costs: Sequence[ModelCost]) -> list[Panel]:
    measured = [cost for cost in costs if not cost.error]
    if not any(cost.top1 is not None for cost in measured):
        points = {
            cost.name: (cost.gflops, cost.test_clips_per_second)
            for cost in measured
            if cost.gflops and cost.test_clips_per_second
        }
        return [Panel("GFLOPs of a clip", "test clips/s", points)] if points else []
    panels = []
    for title, attribute in (
        ("GFLOPs × views", "gflops_of_all_views"),
        ("test clips/s", "test_clips_per_second"),
    ):
        points = {
            cost.name: (getattr(cost, attribute), cost.top1)
            for cost in measured
            if cost.top1 is not None and getattr(cost, attribute)
        }
        panels.append(Panel(title, "top-1 %", points))
    return panels
