"""What every supervised or self-supervised task does with its heads and losses."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def apply_heads(heads: nn.ModuleDict, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs, extended by every head in turn (later heads see what earlier ones gave)."""
    extended = dict(outputs)
    for head in heads.values():
        extended.update(head(extended))
    return extended


def weighted_losses(
    losses: nn.ModuleDict, outputs: Mapping[str, Any], targets: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Each loss as "<name>_loss" (unweighted) and "loss", their weighted sum."""
    values = {name: loss(outputs, targets) for name, loss in losses.items()}
    total = sum(losses[name].weight * value for name, value in values.items())
    scalars = {f"{name}_loss": value.detach() for name, value in values.items()}
    return {"loss": total, **scalars}
