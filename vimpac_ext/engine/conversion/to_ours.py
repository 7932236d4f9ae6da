"""A checkpoint of the authors' code -> a checkpoint of ours, with its configuration."""

from pathlib import Path
from typing import Any

import torch
import yaml

from vimpac_ext.backbones.vimpac.original_names import TIED_COPIES
from vimpac_ext.checkpoints import OriginalCheckpointError, VimpacModel, read_original
from vimpac_ext.checkpoints.configuration import full_config
from vimpac_ext.checkpoints.model import OriginalModel, understand
from vimpac_ext.checkpoints.optimizer import Moments, moments_from_original
from vimpac_ext.checkpoints.source import OPTIMIZER
from vimpac_ext.engine.checkpoint import FORMAT
from vimpac_ext.engine.conversion.report import (
    ConversionReport,
    describe_model,
    describe_moments,
    describe_written,
    require_free,
)
from vimpac_ext.engine.optim import parameter_groups
from vimpac_ext.files import atomic_write

_HEADER = """# Configuration of {name}, converted from a checkpoint of the authors' code.
# What its options did not say is as in the paper. It needs a data set and a token store, for
# example from configs/vimpac/, and starts from the weights with
# TRAIN.CHECKPOINT_FILE_PATH {name}
"""


def convert_to_ours(
    source: Path,
    target: Path,
    overwrite: bool = False,
    with_optimizer: bool = True,
    grid: tuple[int, int, int] | None = None,
    layout: str | None = None,
    num_heads: int | None = None,
) -> ConversionReport:
    """Writes a checkpoint of the authors' code as one of ours, with its configuration beside it.

    Args:
        source: zip, snapshot folder or ``classifier.pt``.
        target: file to write; the configuration has its name with ``.yaml``.
        overwrite: replace files that are there.
        with_optimizer: convert the optimizer's moments too, where there are any.
        grid: see `load_original`; likewise `layout` and `num_heads`.
        layout: see there.
        num_heads: see there.

    Raises:
        FileExistsError: if a file is there already.
        OriginalCheckpointError: if the source cannot be understood. Nothing is written in either
            case.
    """
    config_path = target.with_suffix(".yaml")
    if config_path == target:
        raise ValueError(f"{target} is the name of the configuration; give that of a checkpoint")
    require_free([target, config_path], overwrite)
    original = understand(read_original(source, with_optimizer), grid, layout, num_heads)
    files, shape = original.files, original.model.architecture.grid
    if shape.height != shape.width:
        raise OriginalCheckpointError(
            f"{files.where} is for clips of {tuple(shape)} tokens; a configuration has square "
            "frames only: use vimpac_ext.checkpoints.load_original"
        )
    moments = _moments(original)
    checkpoint = _checkpoint(original, moments)
    header = _HEADER.format(name=target)
    with atomic_write(target, "wb") as file:
        torch.save(checkpoint, file)
    with atomic_write(config_path) as file:
        file.write(header + yaml.safe_dump(original.tree, sort_keys=False))
    copies = [key for key in TIED_COPIES if key in files.state]
    return ConversionReport(
        (
            f"read {files.where}",
            f"  sha256 {files.sha256}",
            *describe_model(original.model),
            f"  epochs done: {checkpoint['epoch'] or 'unknown'}, "
            f"updates: {checkpoint['update'] or 'unknown'}",
            f"  optimizer: {describe_moments(moments)}",
            f"  ignored: {', '.join(copies)} (copies)" if copies else "  ignored: nothing",
            *(f"  note: {note}" for note in original.notes),
            *describe_written([target, config_path]),
        )
    )


def _moments(original: OriginalModel) -> Moments:
    files = original.files
    if files.optimizer is None:
        return {}
    try:
        return moments_from_original(files.optimizer, files.state, original.model)
    except ValueError as error:
        raise OriginalCheckpointError(
            f"{OPTIMIZER} beside {files.where} is not its optimizer: {error}; leave it out with "
            "--no-optimizer"
        ) from error


def _checkpoint(original: OriginalModel, moments: Moments) -> dict[str, Any]:
    """As `vimpac_ext.engine.checkpoint.Checkpointer` writes it, but for the random states."""
    files = original.files
    cfg = full_config(original.tree)
    steps = [int(entry["step"]) for entry in moments.values()]
    last_update = (files.scheduler or {}).get("last_epoch")  # their scheduler steps with updates
    epoch = files.arguments.get("epoch")
    groups, order = _groups(original.model, cfg.SOLVER.WEIGHT_DECAY)
    adam = {"lr": cfg.SOLVER.BASE_LR, "betas": tuple(cfg.SOLVER.BETAS), "eps": cfg.SOLVER.EPS}
    return {
        "format": FORMAT,
        "model_state": original.state,
        "optimizer_state": {
            "state": {i: moments[name] for i, name in enumerate(order) if name in moments},
            "param_groups": [{**adam, **group} for group in groups],
        },
        "optimizer_names": order,
        "epoch": epoch + 1 if isinstance(epoch, int) else 0,  # theirs counts from 0
        "update": max(steps, default=last_update if isinstance(last_update, int) else 0),
        "cfg": cfg.dump(),
        "facts": {},  # which tokens it was trained on, their files do not say
        # What has no place in our format, kept so that the way back is exact.
        "original": {
            "options": files.arguments,
            "scheduler": files.scheduler,
            "optimizer_groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in (files.optimizer or {}).get("param_groups", [])
            ],
        },
    }


def _groups(model: VimpacModel, weight_decay: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Groups of an optimizer's state, and the names of the parameters that they number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    order: list[str] = []
    for group in parameter_groups(model, weight_decay, "original"):
        numbers = list(range(len(order), len(order) + len(group["params"])))
        order += [names[id(parameter)] for parameter in group["params"]]
        groups.append({"weight_decay": group["weight_decay"], "params": numbers})
    return groups, order
