"""Speed of the rows of a table on this machine: a timing function, no training and no data."""

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from paper_tables.hardware import hardware
from paper_tables.plan import Planner
from paper_tables.resolved import resolve
from paper_tables.spec import Row, TableError
from vimpac_ext.engine.assembly import build_task, token_grid


def time_rows(
    planner: Planner,
    rows: list[Row],
    device: torch.device,
    videos: int,
    rounds: int,
    steps: int = 3,
) -> Iterator[dict[str, Any]]:
    """Times pre-training steps (masking, forward, loss, backward) of random tokens.

    The rows take turns in every round, so that a machine that becomes slower does so for all of
    them. Activation checkpointing is off, the precision is TRAIN.PRECISION, one step is not timed.

    Args:
        planner: of the table.
        rows: with pre-training.
        device: where.
        videos: in a step; each gives two clips. At least 2, the contrast needs others.
        rounds: how often each row has its turn.
        steps: in a turn; their median counts.

    Yields:
        "row", "round", "seconds" (of a step), "clips" (in a step), "load" (load average of the
        machine) and "hardware".

    Raises:
        TableError: if there is no row to time, or less than two videos.
    """
    rows = [row for row in rows if row.pretrain]
    if not rows or videos < 2:
        raise TableError(f"nothing to time: {len(rows)} rows with pre-training, {videos} videos")
    timers = {}
    for row in rows:
        overrides = planner.pretrain_overrides(row) | {"BACKBONE.activation_checkpointing": False}
        timers[row.name] = _Timer(resolve(row.pretrain[-1], overrides), device, videos)
        timers[row.name].step()
    for turn in range(rounds):
        for name, timer in timers.items():
            seconds = statistics.median(timer.step() for _ in range(steps))
            yield {
                "row": name,
                "round": turn,
                "seconds": float(f"{seconds:.4g}"),
                "clips": 2 * videos,
                "load": round(os.getloadavg()[0], 2),
                "hardware": hardware(device.type),
            }


class _Timer:
    """One row's model with a batch for it."""

    def __init__(self, cfg: CfgNode, device: torch.device, videos: int) -> None:
        torch.manual_seed(0)
        self.device = device
        self.task: Any = build_task(cfg).to(device).train()
        self.bf16 = cfg.TRAIN.PRECISION == "bf16"
        grid = token_grid(cfg, cfg.DATA.TRAIN_CROP_SIZE)
        self.clips: Tensor = torch.randint(cfg.DATA.VOCAB_SIZE, (videos, 2, *grid), device=device)
        self.generator = torch.Generator(device).manual_seed(0)

    def step(self) -> float:
        """Seconds of one step."""
        self._synchronize()
        started = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.task.training_step({"clips": self.clips}, self.generator)["loss"]
        loss.backward()
        self._synchronize()
        seconds = time.perf_counter() - started
        self.task.zero_grad(set_to_none=True)
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
