"""Optimizer states of the authors' code <-> moments by the names of our parameters.

Their ``optimizer.pt`` numbers parameters: first those with weight decay, then those without, each
in the order of their model, tied ones once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.backbones.vimpac import convert_original_state_dict
from vimpac_ext.backbones.vimpac.original_names import (
    TIED_COPIES,
    original_position,
    patterns_of_original,
)
from vimpac_ext.backbones.vimpac.weights import split_to_original
from vimpac_ext.checkpoints.components import (
    is_undecayed,
    merge_components,
    original_state_names,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

Moments = dict[str, dict[str, Tensor]]  # parameter -> "exp_avg", "exp_avg_sq", "step"


def numbered_parameters(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """The authors' parameters with and without weight decay, in the order of their numbers.

    Args:
        keys: of a state dict of their model.
    """
    names = sorted(
        (key for key in keys if key not in TIED_COPIES and not key.endswith(_BUFFERS)),
        key=original_position,
    )
    return [n for n in names if not is_undecayed(n)], [n for n in names if is_undecayed(n)]


def moments_from_original(
    optimizer: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module
) -> Moments:
    """Reads the moments out of ``optimizer.pt``.

    Args:
        optimizer: content of that file.
        state: the authors' state dict.
        model: the `VimpacModel` that it became.

    Returns:
        The moments of each parameter of ``model`` that has any; the step count is a float32
        scalar, as `torch.optim.AdamW` keeps it.

    Raises:
        ValueError: if the optimizer is not that of the model.
    """
    entries = _entries_by_name(optimizer, state)
    merged = {
        moment: merge_components(
            model,
            convert_original_state_dict({name: entry[moment] for name, entry in entries.items()}),
        )
        for moment in MOMENTS
    }
    names = original_state_names(model, patterns_of_original(state))
    moments = {}
    for ours in merged[MOMENTS[0]]:
        # A backbone alone has no prefix in their state dict.
        parts = [n if n in entries else n.removeprefix("backbone.") for n in names[ours]]
        steps = {_steps(entries[part]) for part in parts}
        if len(steps) != 1:
            raise ValueError(f"the parts of {ours} have had different numbers of steps")
        moments[ours] = {moment: merged[moment][ours] for moment in MOMENTS}
        moments[ours]["step"] = torch.tensor(float(steps.pop()))
    return moments


def moments_to_original(
    moments: Mapping[str, Mapping[str, Tensor]],
    model: nn.Module,
    num_patterns: Sequence[int],
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The inverse of `moments_from_original`.

    Args:
        moments: as returned there.
        model: `VimpacModel` with these parameters.
        num_patterns: for each attention block of a layer, how many axes it attends in parallel.
        groups: the hyperparameters of the decayed and of the undecayed parameters.

    Returns:
        Content of an ``optimizer.pt``.
    """
    names = original_state_names(model, num_patterns)
    original: dict[str, dict[str, Any]] = {}
    for moment in MOMENTS:
        ours = {name: entry[moment] for name, entry in moments.items()}
        for name, tensor in split_to_original(ours, names).items():
            original.setdefault(name, {})[moment] = tensor
    for ours_name, entry in moments.items():
        for name in names[ours_name]:
            original[name]["step"] = int(entry["step"])
    decayed, undecayed = numbered_parameters(n for stack in names.values() for n in stack)
    order = [*decayed, *undecayed]
    return {
        "state": {
            number: {key: original[name][key] for key in ("step", *MOMENTS)}
            for number, name in enumerate(order)
            if name in original
        },
        "param_groups": [
            {**groups[0], "params": list(range(len(decayed)))},
            {**groups[1], "params": list(range(len(decayed), len(order)))},
        ],
    }


def _entries_by_name(
    optimizer: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Any]]:
    """Their parameter -> its entry in the optimizer's state, checked against the parameter."""
    groups = numbered_parameters(state)
    found, entries = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(found, list) or not isinstance(entries, Mapping):
        raise ValueError("it is not the state of an optimizer")
    numbers: list[Any] = [group.get("params") for group in found if isinstance(group, Mapping)]
    if not all(isinstance(n, list) and all(type(i) is int for i in n) for n in numbers):
        raise ValueError("its groups have no numbered parameters")
    if [len(group) for group in numbers] != [len(group) for group in groups]:
        raise ValueError(
            f"it has groups of {', '.join(str(len(group)) for group in numbers)} parameters; the "
            f"model has {len(groups[0])} with and {len(groups[1])} without weight decay"
        )
    order = dict(
        zip((n for group in numbers for n in group), [*groups[0], *groups[1]], strict=True)
    )
    by_name: dict[str, Mapping[str, Any]] = {}
    for number, entry in entries.items():
        name = order.get(number)
        if name is None or not isinstance(entry, Mapping):
            raise ValueError(f"it has a state for number {number!r}, which is no parameter's")
        for moment in MOMENTS:
            tensor = entry.get(moment)
            if not isinstance(tensor, Tensor) or tensor.shape != state[name].shape:
                raise ValueError(f"{moment} of number {number} does not have the shape of {name}")
        if _steps(entry) < 0:
            raise ValueError(f"number {number} ({name}) has no number of steps")
        by_name[name] = entry
    return by_name


def _steps(entry: Mapping[str, Any]) -> int:
    """Updates that a parameter has had: a number, or a tensor of one; -1 if it is neither."""
    step = entry.get("step")
    if isinstance(step, Tensor):
        step = step.item() if step.numel() == 1 else None
    return int(step) if isinstance(step, (int, float)) and math.isfinite(step) else -1
