"""Learning rate as a function of the update."""

from typing import Literal


def learning_rate(
    update: int,
    num_updates: int,
    base_lr: float,
    warmup_ratio: float,
    policy: Literal["linear", "constant"] = "linear",
) -> float:
    """Rate of one update: linear warm-up from 0, then decay (Table 12).

    As in the authors' schedule, update 0 has rate 0 when there is a warm-up, and the linear decay
    would reach 0 at ``num_updates``.

    Args:
        update: 0-based.
        num_updates: in the whole run.
        base_lr: peak.
        warmup_ratio: share of all updates, rounded down.
        policy: "linear" decay to 0, or "constant".
    """
    warmup = int(warmup_ratio * num_updates)
    if update < warmup:
        return base_lr * update / warmup
    if policy == "constant":
        return base_lr
    return base_lr * max(0.0, (num_updates - update) / max(1, num_updates - warmup))
