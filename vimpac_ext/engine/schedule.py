"""Learning rate as a function of the update."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from fvcore.common.config import CfgNode

Policy = Literal["linear", "cosine", "step", "constant"]


def learning_rate(
    update: int,
    num_updates: int,
    base_lr: float,
    warmup: int,
    policy: Policy = "linear",
    *,
    start_lr: float = 0.0,
    end_lr: float = 0.0,
    steps: Sequence[tuple[int, float]] = (),
) -> float:
    """Rate of one update: linear warm-up from ``start_lr``, then the policy (Table 12: linear).

    As in the authors' schedule, update 0 has rate 0 when there is a warm-up, and the linear decay
    would reach 0 at ``num_updates``. Decays begin where the warm-up ends.

    Args:
        update: 0-based.
        num_updates: in the whole run.
        base_lr: peak.
        warmup: updates of the warm-up.
        policy: "linear" decay to 0; "cosine", half a period down to ``end_lr``; "step"; or
            "constant".
        start_lr: of the warm-up.
        end_lr: of "cosine", reached at ``num_updates``.
        steps: of "step", (update, factor): from that update on the rate is factor * base_lr.
    """
    if update < warmup:
        return start_lr + (base_lr - start_lr) * update / warmup
    if policy == "constant":
        return base_lr
    if policy == "step":
        factors = [1.0, *(factor for first, factor in steps if update >= first)]
        return base_lr * factors[-1]
    left = max(0.0, (num_updates - update) / max(1, num_updates - warmup))  # from 1 to 0
    if policy == "linear":
        return base_lr * left
    return end_lr + (base_lr - end_lr) * (1 - math.cos(math.pi * left)) / 2


def schedule_of(
    base_lr: float,
    policy: Policy,
    updates_per_epoch: int,
    num_epochs: float,
    *,
    start_epoch: float = 0,
    warmup_ratio: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_steps: int = 0,
    start_lr: float = 0.0,
    end_lr: float = 0.0,
    step_epochs: Sequence[float] = (),
    step_factors: Sequence[float] = (),
) -> Callable[[int], float]:
    """Update of this run -> rate; the run may be one stage of a longer schedule.

    Args:
        base_lr: peak.
        policy: see `learning_rate`.
        updates_per_epoch: of this run.
        num_epochs: that the schedule spans.
        start_epoch: of the schedule, at which this run begins.
        warmup_ratio: share of the schedule's updates, rounded down; the default warm-up.
        warmup_epochs: takes its place if not 0, rounded to whole updates, at least 1.
        warmup_steps: updates; takes its place if not 0.
        start_lr: of the warm-up.
        end_lr: of "cosine".
        step_epochs: of "step", when the rate changes.
        step_factors: of "step", what base_lr is multiplied by from then on.
    """
    num_updates = int(num_epochs * updates_per_epoch)
    if warmup_steps > 0:
        warmup = warmup_steps
    elif warmup_epochs > 0:
        warmup = max(1, round(warmup_epochs * updates_per_epoch))
    else:
        warmup = int(warmup_ratio * num_updates)
    steps = [
        (round(epoch * updates_per_epoch), factor)
        for epoch, factor in zip(step_epochs, step_factors, strict=True)
    ]
    offset = int(start_epoch * updates_per_epoch)

    def rate(update: int) -> float:
        return learning_rate(
            offset + update,
            num_updates,
            base_lr,
            warmup,
            policy,
            start_lr=start_lr,
            end_lr=end_lr,
            steps=steps,
        )

    return rate


def build_schedule(solver: CfgNode, updates_per_epoch: int) -> Callable[[int], float]:
    """The schedule that a config's SOLVER section describes: update -> learning rate."""
    return schedule_of(
        solver.BASE_LR,
        solver.LR_POLICY,
        updates_per_epoch,
        solver.SCHEDULE_EPOCHS or solver.SCHEDULE_START_EPOCH + solver.MAX_EPOCH,
        start_epoch=solver.SCHEDULE_START_EPOCH,
        warmup_ratio=solver.WARMUP_RATIO,
        warmup_epochs=solver.WARMUP_EPOCHS,
        warmup_steps=solver.WARMUP_STEPS,
        start_lr=solver.WARMUP_START_LR,
        end_lr=solver.COSINE_END_LR,
        step_epochs=solver.STEPS if solver.LR_POLICY == "step" else (),
        step_factors=solver.LRS if solver.LR_POLICY == "step" else (),
    )
