"""Reads what a run leaves in its OUTPUT_DIR: scalars, test result, tables."""

import csv
import json
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Not of interest as a curve: counters, and how fast the machine was.
UNPLOTTED = (
    *("epoch", "iter", "eta", "dt", "dt_data", "dt_net", "videos_per_second", "clips_per_second"),
    *("tokens_per_second", "mfu", "gpu_mem", "cpu_mem"),
)

_LISTED = 6  # updates without a finite value

Series = list[tuple[int, float]]  # update, value


class RunFileError(ValueError):
    """A file of a run that cannot be read; the message names file and line."""


class Metrics(NamedTuple):
    """The scalars of a run.

    Attributes:
        series: "train_iter/loss" and so on -> (update, value), in the order of the updates; values
            that are not finite are left out.
        timings: likewise for what is in `UNPLOTTED` and a number.
        not_finite: name of a scalar that has values that are not finite -> their updates.
    """

    series: dict[str, Series]
    timings: dict[str, Series]
    not_finite: dict[str, list[int]]

    def left_out(self) -> list[str]:
        """The scalars with values that are not finite, in words, with how many and where."""
        return [f"{name} ({_in_words(updates)})" for name, updates in self.not_finite.items()]


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
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not the OUTPUT_DIR of a run that was trained: it has no metrics.jsonl"
        )
    found: dict[str, dict[int, float]] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        kind, update, numbers = _event(text, f"{path}, line {number}")
        for name, value in numbers.items():
            found.setdefault(f"{kind}/{name}", {})[update] = value
    metrics = Metrics({}, {}, {})
    for name, values in found.items():
        finite = sorted((u, value) for u, value in values.items() if math.isfinite(value))
        if finite:
            is_timing = name.split("/")[-1] in UNPLOTTED
            (metrics.timings if is_timing else metrics.series)[name] = finite
        if len(finite) < len(values):
            metrics.not_finite[name] = sorted(values.keys() - {update for update, _ in finite})
    return metrics


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


def _event(line: bytes, where: str) -> tuple[str, int, dict[str, float]]:
    """Kind, update and numbers of a line; what else it has is left out."""
    try:
        event = json.loads(line.decode("utf-8"))
        kind, update = event.pop("_type"), operator.index(event.pop("update"))
        numbers = {name: _as_number(name, value) for name, value in event.items()}
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        found = line.decode("utf-8", "replace").strip()[:60]
        raise RunFileError(
            f'{where}: expected {{"_type": ..., "update": 1, ...}}, found {found!r} ({error})'
        ) from error
    return kind, update, {name: value for name, value in numbers.items() if value is not None}


def _as_number(name: str, value: Any) -> float | None:
    """Numbers, and accuracies, which are written as text ("68.00"); None for all else."""
    if isinstance(value, str) and name.endswith("_acc"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _in_words(updates: Sequence[int]) -> str:
    """How many values are not finite, and where."""
    if len(updates) == 1:
        return f"1 value not finite, update {updates[0]}"
    listed = [str(update) for update in updates]
    if len(listed) > _LISTED:
        listed = [*listed[: _LISTED - 1], "...", listed[-1]]
    return f"{len(updates)} values not finite, updates {', '.join(listed)}"
