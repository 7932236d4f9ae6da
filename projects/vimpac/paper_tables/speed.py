"""Speed of the rows of a table on this machine: training steps of random tokens, in turns."""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from paper_tables.hardware import code_version, hardware
from paper_tables.plan import Planner
from paper_tables.resolved import words_of
from paper_tables.spec import REPOSITORY, Row, TableError
from vimpac_ext.benchmarks.train_step import StepOptions, TrainStep

# Part of the name of a measurement's folder; rises with what is measured.
VERSION = 2
_STEPS = 3  # in a turn; the fastest counts
_CHECKPOINTING = "BACKBONE.activation_checkpointing"


def time_rows(
    planner: Planner, rows: list[Row], device: str, videos: int, rounds: int, threads: int = 1
) -> Iterator[dict[str, Any]]:
    """Times pre-training steps: masking, forward, losses, backward, clipping and update.

    The rows take turns in every round, so that a machine that becomes slower does so for all of
    them; in a turn the fastest of three steps counts, since other work only makes one slower.
    Activation checkpointing is off, the precision is TRAIN.PRECISION, two steps are not timed.

    Args:
        planner: of the table.
        rows: those with pre-training are timed.
        device: "cpu" or "cuda".
        videos: in a step; each gives two clips. At least 2, the contrast needs others.
        rounds: how often each row has its turn.
        threads: of the processor.

    Yields:
        "row", "round", "seconds" of a step by the clock, "cpu_seconds" of the processor (on one
        thread of it only: there it is the time that the step takes on a machine without other
        work), "clips" in a step, "parameters" of the backbone in millions, "load" (load average
        of the machine), "hardware" and "code" (commit).

    Raises:
        TableError: if there is no row to time, or less than two videos.
    """
    rows = [row for row in rows if row.pretrain]
    if not rows or videos < 2:
        raise TableError(f"nothing to time: {len(rows)} rows with pre-training, {videos} videos")
    torch.set_num_threads(threads)
    steps = {row.name: training_step(planner, row, device, videos) for row in rows}
    for step in steps.values():
        for _ in range(2):
            step.seconds()
    for turn in range(rounds):
        for name, step in steps.items():
            alone = device == "cpu" and threads == 1
            yield {
                "row": name,
                "round": turn,
                **_fastest(step, alone),
                "clips": step.num_clips,
                "parameters": round(_size(step), 3),
                "load": round(os.getloadavg()[0], 2),
                "hardware": hardware(device),
                "code": code_version(REPOSITORY),
            }


def training_step(planner: Planner, row: Row, device: str, videos: int) -> TrainStep:
    """The step of a row's (last) pre-training, as the row configures it."""
    overrides = planner.pretrain_overrides(row) | {_CHECKPOINTING: False}
    path = str(REPOSITORY / row.pretrain[-1])
    return TrainStep(StepOptions(path, tuple(words_of(overrides)), videos=videos, device=device))


def _fastest(step: TrainStep, with_processor_time: bool) -> dict[str, float]:
    clock, processor = [], []
    for _ in range(_STEPS):
        started = time.process_time()
        clock.append(step.seconds())
        processor.append(time.process_time() - started)
    found = {"seconds": float(f"{min(clock):.4g}")}
    if with_processor_time:
        found["cpu_seconds"] = float(f"{min(processor):.4g}")
    return found


def _size(step: TrainStep) -> float:
    return sum(parameter.numel() for parameter in step.task.backbone.parameters()) / 1e6
