"""A checkpoint of ours -> a snapshot folder of the authors' code."""

import argparse
import pickle
import pprint
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from vimpac_ext.backbones.vimpac import parse_layout, to_original_state_dict
from vimpac_ext.checkpoints import VimpacModel
from vimpac_ext.checkpoints.components import parts_of
from vimpac_ext.checkpoints.configuration import architecture_of_config, training_options
from vimpac_ext.checkpoints.model import require_same_shapes
from vimpac_ext.checkpoints.optimizer import MOMENTS, Moments, moments_to_original
from vimpac_ext.checkpoints.options import architecture_options, require_original
from vimpac_ext.checkpoints.source import (
    ARGUMENTS,
    ARGUMENTS_TEXT,
    OPTIMIZER,
    SCHEDULER,
    WEIGHTS,
)
from vimpac_ext.engine.checkpoint import (
    CheckpointError,
    find_checkpoint,
    moments_by_name,
    read_checkpoint,
)
from vimpac_ext.engine.conversion.report import (
    ConversionReport,
    describe_model,
    describe_moments,
    describe_written,
    require_free,
)
from vimpac_ext.files import atomic_write

_NAMES = (ARGUMENTS, ARGUMENTS_TEXT, OPTIMIZER, SCHEDULER, WEIGHTS)


def convert_to_original(
    source: Path, target: Path, overwrite: bool = False, with_optimizer: bool = True
) -> ConversionReport:
    """Writes a checkpoint of ours as a snapshot folder of the authors' code.

    Args:
        source: checkpoint, or folder of a run, whose newest one is taken.
        target: folder to write ``classifier.pt``, ``args.pickle`` and so on into.
        overwrite: replace such files that are there.
        with_optimizer: convert the optimizer's moments too, where there are any.

    Raises:
        FileExistsError: if a file is there already.
        CheckpointError: if the source is no checkpoint of ours, or of a model that the authors'
            code has not. Nothing is written in either case.
    """
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; the authors' format is a folder")
    require_free([target / name for name in _NAMES], overwrite)
    path = find_checkpoint(source)
    checkpoint = read_checkpoint(path)
    try:
        model, contents, moments = _contents(checkpoint, with_optimizer)
    except KeyError as error:
        raise CheckpointError(f"{path} cannot be converted: it has no {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be converted: {error}") from error
    _write(target, contents)
    return ConversionReport(
        (
            f"read {path}",
            *describe_model(model),
            f"  epochs done: {checkpoint['epoch']}, updates: {checkpoint['update']}",
            f"  optimizer: {describe_moments(moments)}",
            *describe_written([target / name for name in _NAMES if name in contents]),
        )
    )


def _contents(
    checkpoint: Mapping[str, Any], with_optimizer: bool
) -> tuple[VimpacModel, dict[str, Any], Moments]:
    """The model, the content of each file to write, and the moments that are in them."""
    tree = yaml.safe_load(checkpoint["cfg"])
    architecture, head_names = architecture_of_config(tree)
    require_original(architecture)
    with torch.device("meta"):
        model = VimpacModel(architecture)
    # A run may have averaged its weights, which are then the ones to use.
    averaged = checkpoint.get("ema_state")
    state = _with_standard_names(averaged or checkpoint["model_state"], head_names)
    require_same_shapes(model.state_dict(), state)
    components = {
        component: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for component, prefix, _ in parts_of(model)
    }
    layout = architecture.backbone["layout"]
    kept = checkpoint.get("original", {})
    if "original" in checkpoint:  # converted: what was not known then is not known now
        options = dict(kept["options"]) or architecture_options(architecture)
    else:
        options = {**training_options(tree), **architecture_options(architecture)}
    if checkpoint["epoch"]:
        options["epoch"] = checkpoint["epoch"] - 1  # theirs counts from 0
    contents: dict[str, Any] = {
        WEIGHTS: OrderedDict(to_original_state_dict(components, layout)),
        ARGUMENTS: argparse.Namespace(**options),
        ARGUMENTS_TEXT: options,
    }
    moments = _with_standard_names(moments_by_name(checkpoint), head_names)
    if averaged or not with_optimizer:
        moments = {}
    if any(key not in entry for entry in moments.values() for key in MOMENTS):  # e.g. of sgd
        moments = {}
    if moments:
        num_patterns = [len(block) for block in parse_layout(layout)]
        groups = kept.get("optimizer_groups") or _groups(checkpoint, tree)
        contents[OPTIMIZER] = moments_to_original(moments, model, num_patterns, groups)
    if moments or kept.get("scheduler"):
        contents[SCHEDULER] = kept.get("scheduler") or _scheduler(checkpoint, tree)
    return model, contents, moments


def _with_standard_names(named: Mapping[str, Any], head_names: Mapping[str, str]) -> dict[str, Any]:
    """Heads may have any name with us; here they have the shipped configurations' names."""
    renamed = {}
    for name, value in named.items():
        for standard, ours in head_names.items():
            if name.startswith(f"heads.{ours}."):
                name = f"heads.{standard}.{name.removeprefix(f'heads.{ours}.')}"
                break
        renamed[name] = value
    return renamed


def _groups(checkpoint: Mapping[str, Any], tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hyperparameters as their optimizer writes them, with and without weight decay."""
    solver = tree["SOLVER"]
    last_lr = checkpoint["optimizer_state"]["param_groups"][0]["lr"]
    return [
        {
            "weight_decay": weight_decay,
            "lr": last_lr,
            "betas": tuple(solver["BETAS"]),
            "eps": solver["EPS"],
            "correct_bias": True,
            "initial_lr": solver["BASE_LR"],
        }
        for weight_decay in (solver["WEIGHT_DECAY"], 0.0)
    ]


def _scheduler(checkpoint: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """As `torch.optim.lr_scheduler.LambdaLR` writes it; it steps with every update."""
    last_lr = checkpoint["optimizer_state"]["param_groups"][0]["lr"]
    return {
        "base_lrs": [tree["SOLVER"]["BASE_LR"]] * 2,
        "last_epoch": checkpoint["update"],
        "_step_count": checkpoint["update"] + 1,
        "_last_lr": [last_lr] * 2,
        "lr_lambdas": [{}, {}],
    }


def _write(target: Path, contents: Mapping[str, Any]) -> None:
    """Writes all files beside their places, then puts them there; old ones do not stay."""
    target.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Any, IO[bytes]], Any]] = {
        ARGUMENTS: pickle.dump,
        ARGUMENTS_TEXT: lambda options, file: file.write(f"{pprint.pformat(options)}\n".encode()),
    }
    with tempfile.TemporaryDirectory(dir=target, prefix=".converting-") as folder:
        for name, content in contents.items():
            with atomic_write(Path(folder) / name, "wb") as file:
                writers.get(name, torch.save)(content, file)
        for name in _NAMES:  # the weights last: without them there is no checkpoint
            if name in contents:
                (Path(folder) / name).replace(target / name)
            else:
                (target / name).unlink(missing_ok=True)
