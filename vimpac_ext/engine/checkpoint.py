"""Checkpoints: atomic, loadable with ``weights_only``, and two strictly separate uses.

`Checkpointer` restores a whole run (auto-resume). `initialise_weights` takes weights only, from a
run that may have had another task, head or input size, and reports what it did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vimpac_ext.engine.checkpoint_files import (
    FORMAT,
    CheckpointError,
    State,
    find_checkpoint,
    names_in_order,
    newest_checkpoint,
    read_checkpoint,
    require_same_facts,
    require_same_model,
    stage_folders,
    weights_in,
)
from vimpac_ext.engine.checkpointer import Checkpointer

__all__ = [
    "FORMAT",
    "CheckpointError",
    "Checkpointer",
    "LoadReport",
    "find_checkpoint",
    "initialise_moments",
    "initialise_weights",
    "load_model",
    "moments_by_name",
    "newest_checkpoint",
    "read_checkpoint",
    "stage_folders",
    "take_weights",
]

BACKBONE = "backbone."  # prefix of the backbone's keys in a task's state


@dataclass
class LoadReport:
    """What happened to each key when weights were taken from another run."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # in the file, not in the model
    missing: list[str] = field(default_factory=list)  # in the model, not in the file

    def __str__(self) -> str:
        lines = [
            f"{len(self.loaded)} loaded, {len(self.resized)} resized, "
            f"{len(self.skipped)} skipped (not in the model), "
            f"{len(self.missing)} left at their initialisation"
        ]
        for title in ("resized", "skipped", "missing"):
            names = getattr(self, title)
            if names:
                lines.append(f"  {title}: {', '.join(names)}")
        return "\n".join(lines)


def load_model(path: Path, model: nn.Module, facts: Mapping[str, Any]) -> int:
    """Loads all weights of a model for testing; every key must fit.

    Args:
        path: checkpoint.
        model: receives the weights.
        facts: what the checkpoint's data must have in common with the test's.

    Returns:
        Updates that the model has had.

    Raises:
        CheckpointError: if the checkpoint is of another model or other tokens.
    """
    checkpoint = read_checkpoint(path)
    require_same_facts(path, checkpoint["facts"], facts)
    weights = weights_in(checkpoint)
    require_same_model(path, model.state_dict(), weights)
    model.load_state_dict(weights)
    return int(checkpoint["update"])


def initialise_weights(
    path: Path, task: Any, facts: Mapping[str, Any], raw: bool = False
) -> LoadReport:
    """Takes the weights that fit from another run's checkpoint.

    The backbone must be the same but for its input size: one with a method
    ``adapt_state(state) -> (state, changed names)`` resizes what depends on it (position tables).
    Heads may differ.

    Args:
        path: checkpoint.
        task: receives the weights; its backbone is ``task.backbone``.
        facts: what the checkpoint's data must have in common with this run's.
        raw: take the weights as trained even if there are averaged ones (TRAIN.EMA_DECAY), to go
            on with their moments.

    Raises:
        CheckpointError: if the backbone is another one, or was trained on other tokens.
    """
    checkpoint = read_checkpoint(path)
    require_same_facts(path, checkpoint["facts"], facts)
    return take_weights(path, checkpoint["model_state"] if raw else weights_in(checkpoint), task)


def take_weights(path: Path, stored: State, task: Any) -> LoadReport:
    """Takes the weights that fit; see `initialise_weights`.

    Args:
        path: where they are from, for errors.
        stored: state dict of another task.
        task: receives the weights.

    Raises:
        CheckpointError: if the backbone is another one.
    """
    stored = dict(stored)
    own = task.state_dict()
    changed: list[str] = []
    if hasattr(task.backbone, "adapt_state"):
        adapted, changed = task.backbone.adapt_state(_below(stored, BACKBONE))
        stored.update({BACKBONE + key: value for key, value in adapted.items()})
    require_same_model(path, _below(own, BACKBONE), _below(stored, BACKBONE))
    report = LoadReport(resized=[BACKBONE + name for name in changed])
    for key, value in stored.items():
        if key not in own or own[key].shape != value.shape:
            report.skipped.append(key)
            continue
        own[key] = value
        if key not in report.resized:
            report.loaded.append(key)
    used = {*report.loaded, *report.resized}
    report.missing = [key for key in own if key not in used]
    task.load_state_dict(own)
    return report


def initialise_moments(path: Path, task: Any, optimizer: torch.optim.Optimizer) -> None:
    """Takes an earlier stage's Adam moments, resized like the parameters that they belong to.

    Raises:
        CheckpointError: if the checkpoint's optimizer had other parameters, or no moments.
    """
    checkpoint = read_checkpoint(path)
    hint = "; set TRAIN.CHECKPOINT_OPTIMIZER False"
    names = names_in_order(task, optimizer)
    if set(checkpoint["optimizer_names"]) != set(names):
        raise CheckpointError(f"{path} has optimizer state for other parameters{hint}")
    # By name: the parameters may be in other groups than before, and so in another order.
    stored = moments_by_name(checkpoint)
    if not stored:
        raise CheckpointError(f"{path} has no optimizer state{hint}")
    for moment in ("exp_avg", "exp_avg_sq"):
        if any(moment not in entry for entry in stored.values()):
            raise CheckpointError(f"{path} has the state of an optimizer without {moment}{hint}")
        values = {name: entry[moment] for name, entry in stored.items()}
        if hasattr(task.backbone, "adapt_state"):
            adapted, _ = task.backbone.adapt_state(_below(values, BACKBONE))
            values.update({BACKBONE + key: value for key, value in adapted.items()})
        for name, parameter in task.named_parameters():
            if name in values and values[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{path} has {moment} of shape {tuple(values[name].shape)} for {name}, needed "
                    f"{tuple(parameter.shape)}{hint}"
                )
            if name in values:
                stored[name][moment] = values[name]
    state = {number: stored[name] for number, name in enumerate(names) if name in stored}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def moments_by_name(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The optimizer's state in a checkpoint, by the names of the parameters that have one."""
    state = checkpoint["optimizer_state"]["state"]
    return {
        name: dict(state[number])
        for number, name in enumerate(checkpoint["optimizer_names"])
        if number in state
    }


def _below(state: State, prefix: str) -> State:
    """The part of a state whose keys start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
