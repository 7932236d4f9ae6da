"""What every supervised or self-supervised task does with its heads and losses."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Modules = nn.ModuleDict | Mapping[str, nn.Module]


def apply_heads(heads: Modules, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs, extended by every head in turn (later heads see what earlier ones gave).

    Raises:
        ValueError: if a head reads an output that is not there.
    """
    extended = dict(outputs)
    for name, head in heads.items():
        try:
            extended.update(head(extended))
        except KeyError as error:
            _explain_missing(error, f"HEADS.{name} ({type(head).__name__})", extended)
            raise
    return extended


def weighted_losses(
    losses: Modules, outputs: Mapping[str, Any], targets: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Each loss as "<name>_loss" (unweighted) and "loss", their weighted sum.

    Raises:
        ValueError: if there is no loss, or a loss reads an output or target that is not there.
    """
    if not losses:
        raise ValueError("LOSSES is empty: there is nothing to minimise")
    values = {}
    for name, loss in losses.items():
        try:
            values[name] = loss(outputs, targets)
        except KeyError as error:
            _explain_missing(
                error, f"LOSSES.{name} ({type(loss).__name__})", {**outputs, **targets}
            )
            raise
    total = sum(losses[name].weight * value for name, value in values.items())
    scalars = {f"{name}_loss": value.detach() for name, value in values.items()}
    return {"loss": total, **scalars}


def _explain_missing(error: KeyError, reader: str, given: Mapping[str, Any]) -> None:
    """Raises an explanation if the `KeyError` comes of an output that nothing gives."""
    key = error.args[0]
    if key in given:  # it comes from some other dictionary, within the component
        return
    fix = f"Add a head that gives it, or remove {reader.split()[0]}"
    if key == "mask":
        fix = "Set MASKER.NAME, and leave the head out of TASK.unmasked_heads"
    raise ValueError(
        f"{reader} reads {key!r}, which nothing gives (there are: "
        f"{', '.join(sorted(given)) or 'none'}). {fix}"
    ) from error
