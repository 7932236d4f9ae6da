"""Reads what a run leaves in its OUTPUT_DIR: scalars, test result, tables."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Not of interest as a curve: counters, and how fast the machine was.
UNPLOTTED = (
    *("epoch", "iter", "eta", "dt", "dt_data", "dt_net", "videos_per_second", "clips_per_second"),
    *("tokens_per_second", "mfu", "gpu_mem", "cpu_mem"),
)

Series = list[tuple[int, float]]  # update, value


class RunFileError(ValueError):
    """A file of a run that cannot be read; the message names file and line."""


class Metrics(NamedTuple):
    """The scalars of a run.

    Attributes:
        series: "train_iter/loss" and so on -> (update, value), in the order of the updates; values
            that are not finite are left out.
        timings: likewise for what is in `UNPLOTTED` and a number.
    """

    series: dict[str, Series]
    timings: dict[str, Series]


def read_metrics(folder: Path) -> Metrics:
    """Reads ``metrics.jsonl``.

    A last line that was cut off when a run was killed is left out. Of several values for one
    update (a test that was repeated) the last counts.

    Args:
        folder: OUTPUT_DIR.

    Raises:
        FileNotFoundError: if there is none.
        RunFileError: for a line that is not an event.
    """
    path = folder / "metrics.jsonl"
    found: dict[str, dict[int, float]] = {}
    timings: dict[str, dict[int, float]] = {}
    for number, text in enumerate(_whole_lines(path), 1):
        kind, update, scalars = _event(text, f"{path}, line {number}")
        for name, value in scalars.items():
            finite = _as_number(name, value)
            if finite is not None:
                target = timings if name in UNPLOTTED else found
                target.setdefault(f"{kind}/{name}", {})[update] = finite
    return Metrics(*({key: sorted(s.items()) for key, s in x.items()} for x in (found, timings)))


def read_result(folder: Path) -> dict[str, Any] | None:
    """Content of ``test/result.json``, or None if the run has not been tested.

    Raises:
        RunFileError: if it is not what a test writes.
    """
    path = folder / "test" / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFileError(f"{path} is not JSON: {error}") from error
    needed = {"top1", "top5", "mean_class_accuracy", "protocol", "protocol_id"}
    absent = needed - set(result) if isinstance(result, dict) else needed
    if absent:
        raise RunFileError(f"{path} is not the result of a test: no {', '.join(sorted(absent))}")
    return dict(result)


def read_table(path: Path) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of a csv file, or None if there is no such file.

    Raises:
        RunFileError: for an empty file, or a row of another length than the header.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise RunFileError(f"{path} is empty")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise RunFileError(
                f"{path}, row {number} has {len(row)} cells, the header has {len(rows[0])}"
            )
    return rows[0], rows[1:]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _event(text: str, where: str) -> tuple[str, int, Mapping[str, Any]]:
    try:
        event = json.loads(text)
        kind, update = event.pop("_type"), event.pop("update")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunFileError(
            f'{where}: expected {{"_type": ..., "update": ..., ...}}, found {text.strip()[:60]!r}'
        ) from error
    return kind, int(update), event


def _as_number(name: str, value: Any) -> float | None:
    """Finite numbers, and accuracies, which are written as text ("68.00"); None for all else."""
    if isinstance(value, str) and name.endswith("_acc"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
