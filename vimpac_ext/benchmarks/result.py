"""What a benchmark gives back, and on which machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vimpac_ext.engine.environment import processor


@dataclass
class Result:
    """Measured numbers under their names.

    Attributes:
        title: what was measured, with the sizes.
        rows: name (with its unit) -> number.
    """

    title: str
    rows: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        return "\n".join([self.title, *(f"  {k:<{width}}  {v:,.4g}" for k, v in self.rows.items())])


def machine() -> dict[str, Any]:
    """Hardware and versions that the numbers depend on, and how busy the machine was."""
    load = os.getloadavg()[0]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(load, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class Speed(NamedTuple):
    """How fast something is.

    Attributes:
        per_second: units done in a second of wall-clock time.
        cpu_ms: milliseconds of processor time for a unit, all threads of the process together;
            unlike the first it says the same on a busy machine.
    """

    per_second: float
    cpu_ms: float


def speeds_in_turns(
    candidates: Mapping[str, Callable[[], int]], seconds: float, num_rounds: int = 5
) -> dict[str, Speed]:
    """Measures things that are to be compared in turns, so that a busy moment hits them all.

    Args:
        candidates: name -> function that does some work and returns how many units it did.
        seconds: for each candidate, all rounds together.
        num_rounds: how often each has its turn, after one to warm up.

    Returns:
        Name -> medians of the rounds.
    """
    measured: dict[str, list[Speed]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(num_rounds):
        for name, work in candidates.items():
            start, cpu_start, done = time.perf_counter(), time.process_time(), 0
            while not done or time.perf_counter() - start < seconds / num_rounds:
                done += work()
            cpu_ms = 1000 * (time.process_time() - cpu_start) / done
            measured[name].append(Speed(done / (time.perf_counter() - start), cpu_ms))
    return {
        name: Speed(*(statistics.median(column) for column in zip(*speeds, strict=True)))
        for name, speeds in measured.items()
    }
