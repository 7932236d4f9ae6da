"""Checkpoints: atomic, loadable with ``weights_only``, and two strictly separate uses.

`Checkpointer` restores a whole run (auto-resume). `initialise_weights` takes weights only, from a
run that may have had another task, head or input size, and reports what it did.
"""

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.files import atomic_write

_logger = logging.getLogger(__name__)

FORMAT = "vimpac_ext checkpoint 1"
State = dict[str, Tensor]
BACKBONE = "backbone."  # prefix of the backbone's keys in a task's state


class CheckpointError(ValueError):
    """A file that is not the checkpoint that is needed; the message says why."""


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


class Checkpointer:
    """Saves and restores runs in ``folder/checkpoints``.

    Args:
        folder: OUTPUT_DIR of the run.
        config_text: YAML of the run's config, stored in every checkpoint.
        facts: further plain values to store, e.g. the tokenizer's fingerprint.
    """

    def __init__(self, folder: Path, config_text: str, facts: Mapping[str, Any]) -> None:
        self.folder = folder / "checkpoints"
        self.config_text = config_text
        self.facts = dict(facts)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, update: int
    ) -> Path:
        """Writes ``checkpoint_epoch_<epoch>.pyth`` (``epoch`` epochs done) whole or not at all."""
        path = self.folder / f"checkpoint_epoch_{epoch:05d}.pyth"
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "format": FORMAT,
            "model_state": model.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "optimizer_names": _names_in_order(model, optimizer),
            "epoch": epoch,
            "update": update,
            "rng_state": torch.get_rng_state(),
            "cuda_rng_state": torch.cuda.get_rng_state_all(),
            "cfg": self.config_text,
            "facts": self.facts,
        }
        with atomic_write(path, "wb") as file:
            torch.save(checkpoint, file)
        return path

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Continues from the newest checkpoint, if there is one.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            CheckpointError: if the newest checkpoint is damaged, of another model or other tokens.
        """
        path = newest_checkpoint(self.folder)
        if path is None:
            return None
        hint = "; choose another OUTPUT_DIR, or TRAIN.AUTO_RESUME False to start again"
        checkpoint = read_checkpoint(path)
        if "rng_state" not in checkpoint:
            raise CheckpointError(
                f"{path} has the weights of a run but not its state; give it as "
                f"TRAIN.CHECKPOINT_FILE_PATH{hint}"
            )
        _require_same_facts(path, checkpoint["facts"], self.facts, hint)
        _require_same_model(path, model.state_dict(), checkpoint["model_state"], hint)
        model.load_state_dict(checkpoint["model_state"])
        optimizer.load_state_dict(checkpoint["optimizer_state"])
        torch.set_rng_state(checkpoint["rng_state"])
        if torch.cuda.is_available() and checkpoint["cuda_rng_state"]:
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng_state"])
        _logger.info("resumed from %s (%d epochs done)", path, checkpoint["epoch"])
        return checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest epoch in ``folder``, or None."""
    found = {}
    for path in folder.glob("checkpoint_epoch_*.pyth"):
        match = re.fullmatch(r"checkpoint_epoch_(\d+)\.pyth", path.name)
        if match:
            found[int(match[1])] = path
    return found[max(found)] if found else None


def find_checkpoint(path: Path) -> Path:
    """The file that a user means: a checkpoint, or the newest one of a run's folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    if path.is_file():
        return path
    newest = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if newest is None:
        raise FileNotFoundError(f"no checkpoint: {path} is neither a file nor a folder with one")
    return newest


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Raises:
        CheckpointError: if the file is damaged or not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {first_line}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program (no format {FORMAT!r})")
    return checkpoint


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
    _require_same_facts(path, checkpoint["facts"], facts)
    _require_same_model(path, model.state_dict(), checkpoint["model_state"])
    model.load_state_dict(checkpoint["model_state"])
    return int(checkpoint["update"])


def initialise_weights(path: Path, task: Any, facts: Mapping[str, Any]) -> LoadReport:
    """Takes the weights that fit from another run's checkpoint.

    The backbone must be the same but for its input size: one with a method
    ``adapt_state(state) -> (state, changed names)`` resizes what depends on it (position tables).
    Heads may differ.

    Args:
        path: checkpoint.
        task: receives the weights; its backbone is ``task.backbone``.
        facts: what the checkpoint's data must have in common with this run's.

    Raises:
        CheckpointError: if the backbone is another one, or was trained on other tokens.
    """
    checkpoint = read_checkpoint(path)
    _require_same_facts(path, checkpoint["facts"], facts)
    stored, own = dict(checkpoint["model_state"]), task.state_dict()
    changed: list[str] = []
    if hasattr(task.backbone, "adapt_state"):
        adapted, changed = task.backbone.adapt_state(_below(stored, BACKBONE))
        stored.update({BACKBONE + key: value for key, value in adapted.items()})
    _require_same_model(path, _below(own, BACKBONE), _below(stored, BACKBONE))
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
    names = _names_in_order(task, optimizer)
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
        adapted, _ = task.backbone.adapt_state(_below(values, BACKBONE))
        for key, value in adapted.items():
            stored[BACKBONE + key][moment] = value
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


def _names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _below(state: State, prefix: str) -> State:
    """The part of a state whose keys start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _require_same_facts(
    path: Path, stored: Mapping[str, Any], own: Mapping[str, Any], hint: str = ""
) -> None:
    for name, value in own.items():
        if name in stored and not _agree(stored[name], value):
            raise CheckpointError(
                f"{path} was trained with {name} {stored[name]!r}, this run has {value!r}{hint}"
            )


def _agree(stored: Any, own: Any) -> bool:
    """Whether two facts can both be true.

    A tokenizer's fingerprint is its name, a colon and the hash of its weights. Which weights made
    the authors' tokens is not known: theirs is the name alone, which agrees with any weights.
    """
    (name, _, weights), (own_name, _, own_weights) = (str(f).partition(":") for f in (stored, own))
    return stored == own or (name == own_name and not (weights and own_weights))


def _require_same_model(path: Path, own: State, stored: State, hint: str = "") -> None:
    problems = [f"{key} is missing" for key in own if key not in stored]
    problems += [f"{key} is not in the model" for key in stored if key not in own]
    problems += [
        f"{key} has shape {tuple(stored[key].shape)}, the model needs {tuple(own[key].shape)}"
        for key in own
        if key in stored and own[key].shape != stored[key].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {'; '.join(problems[:3])}{more}{hint}"
        )
